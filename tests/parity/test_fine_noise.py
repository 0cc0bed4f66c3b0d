"""The measurement of noise finds the recorded gradient that has a tolerance of its own."""

import pytest

from tests.golden import FINE
from tests.parity.fine_case import FineCase
from tests.parity.fine_noise import main
from tests.parity.test_fine import SHARP
from tests.parity.tolerances import fine_tolerances

pytestmark = pytest.mark.oldest


@pytest.mark.slow
def test_the_noisiest_recorded_gradient_is_the_one_in_the_tolerances(capsys):
    main(["--most", "1"])
    recorded, *ours = (line.split() for line in capsys.readouterr().out.splitlines())
    allowed = fine_tolerances(FineCase(FINE / f"{SHARP}.json").config)
    ((name, tolerance),) = allowed.noisy_gradients.items()
    assert recorded[-1] == name
    assert 1.8e-3 < float(recorded[1]) < 1.84e-3
    assert [line[1] for line in ours] == ["native", "reference"]
    for line in ours:
        assert 0 < float(line[2]) < tolerance - float(recorded[1])
