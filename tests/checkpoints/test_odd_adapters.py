"""Odd values in the JSON files of an adapter are read, or refused by a message that names them."""

from itertools import islice

import pytest

from fiber.checkpoints.adapters.files import ABOUT, CONFIG, read_about, read_adapter_config
from fiber.config_io import to_dict
from tests.fuzz.generated.model_folders import adapter
from tests.models import small_networks
from tests.runtime.test_metadata import mutants, problems

pytestmark = pytest.mark.oldest

pytest.importorskip("peft")


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_in_the_config_of_an_adapter(tmp_path, every):
    drawn = islice(mutants(adapter(0)), 0, None, every)
    found = problems(tmp_path / CONFIG, lambda: read_adapter_config(tmp_path), drawn)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_in_what_this_package_adds(tmp_path, every):
    model = to_dict(small_networks.network("fine").config)
    about = {"base": "base", "base_sha256": "0" * 64, "model": model, "data": {"split": "train"}}
    about["data_path"] = "/data"
    drawn = islice(mutants(about), 0, None, every)
    found = problems(tmp_path / ABOUT, lambda: read_about(tmp_path), drawn)
    assert not found, "\n".join(found)
