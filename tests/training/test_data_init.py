"""Heads of a new model that start from the data."""

import warnings

import pytest
import torch

from fiber.config_io import replace_fields
from fiber.models.registry import build_model
from fiber.training.data import open_data
from fiber.training.data_init import init_from_data
from fiber.training.distributed.processes import Processes
from tests.training.micro_runs import all_records, coarse_config, run
from tests.training.test_trainer import StopError, stop_before, weights_equal

ITC = ("itc_image_transform", "itc_text_transform")


@pytest.fixture(scope="module")
def config():
    return replace_fields(coarse_config(), {"model.weight_start": "fan_in"})


def started(config, pictures, rank=0, world_size=1, new=None):
    """The tensors of a new model that the data have changed, and the answers."""
    records = {name: all_records(pictures)[name] for name in config.tasks.active()}
    data = open_data(config, records, tokenizer=str(pictures / "tokenizer.json"))
    config = data.fit_model(config)
    torch.manual_seed(0)
    model = build_model(config.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    init_from_data(model, before if new is None else new, config, data, processes)
    changed = {n: t for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    return changed, data


def test_only_embeddings_and_answers_start_from_the_data(config, pictures):
    changed, data = started(config, pictures)
    expected = {f"{name}.{part}" for name in ITC for part in ("weight", "bias")}
    assert set(changed) == expected | {"vqa_head.output.bias"}
    priors = changed["vqa_head.output.bias"].sigmoid()
    assert priors.tolist() == pytest.approx(data.answer_priors, abs=1e-4)
    assert sum(data.answer_priors) == pytest.approx(1)


def test_all_ranks_start_alike(config, pictures):
    alone, second = started(config, pictures)[0], started(config, pictures, 1, 2)[0]
    assert alone.keys() == second.keys()
    assert all(torch.equal(alone[name], second[name]) for name in alone)


def test_tensors_of_another_model_are_kept(config, pictures):
    assert set(started(config, pictures, new=["vqa_head.output.bias"])[0]) == {
        "vqa_head.output.bias"
    }


def test_published_starts_do_not_read_the_data(config, pictures):
    published = replace_fields(config, {"model.weight_start": "published"})
    assert started(published, pictures)[0] == {}


def test_a_resumed_run_does_not_start_again(config, pictures, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    whole = run(config, pictures, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, 6)
        run(config, pictures, tmp_path / "r")
    resumed = run(config, pictures, tmp_path / "r", resume=True)
    assert weights_equal(whole.folder, resumed.folder)


def test_frozen_parameters_of_a_new_model_are_named(pictures, tmp_path):
    frozen = {"optim.frozen": ("backbone.image.patch_embedding", "itm_head.bias"), "train.steps": 1}
    config = replace_fields(coarse_config(), frozen)
    expected = (
        r"optim.frozen: 5 parameters keep their random values, such as backbone\.image\.patch"
    )
    with pytest.warns(RuntimeWarning, match=expected):
        run(config, pictures, tmp_path / "new")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="optim.frozen")
        run(config, pictures, tmp_path / "next", init=tmp_path / "new")
