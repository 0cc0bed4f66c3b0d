"""The benches' eager detector equals the recorded tensors, and the comparison notices when not."""

from pathlib import Path

import pytest
import torch

from benches import eager_detections, eager_detector
from tests.golden import FINE
from tests.parity import eager_detector as parity
from tests.parity.__main__ import main
from tests.parity.fine_case import FineCase

pytestmark = pytest.mark.oldest

CASE = FINE / "tiny_v2_sharp.json"


@pytest.mark.parametrize("name", ["tiny_v2", "tiny_v2_sharp", "tiny_v3"])
def test_recorded_case(name):
    comparison = parity.compare_case(FINE / f"{name}.json")
    assert comparison.ok, str(comparison)
    # Of what a case records, only what anchors learn is not compared.
    case = FineCase(FINE / f"{name}.json")
    assert {n for n in case.tensors if not n.startswith("atss.")} == comparison.compared - {
        "num_params"
    }


def test_the_command_prints_each_case(capsys, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([CASE]))
    monkeypatch.setattr(parity, "compare_case", _quick)
    assert main(["fine", str(FINE), "--model", "eager"]) == 0
    assert "compared tiny_v2_sharp" in capsys.readouterr().out


def _quick(path):
    class Agrees:
        ok = True

        def __str__(self):
            return f"compared {path.stem}"

    return Agrees()


MISTAKES = {
    "windows that the shift joined read one another": (eager_detector, "SEPARATED", 0.0),
    "a sigmoid in place of the clipped line": (eager_detector, "hard_sigmoid", torch.sigmoid),
    "sizes of boxes cut low": (eager_detections, "MAX_LOG_SCALE", -0.5),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, monkeypatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    assert not parity.compare_case(CASE).ok


def test_a_tensor_that_is_not_there_is_named():
    case = FineCase(CASE)
    state = case.published_state()
    state["rpn.head.scale"] = state.pop("rpn.head.log_scale")
    case.published_state = lambda: state
    with pytest.raises(ValueError, match=r"missing \['rpn.head.log_scale'\], unexpected \['rpn"):
        parity.build(case)
