"""Sharded weights, gradients and optimizer state: sizes, files, and whole copies."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from fiber.models.registry import build_model
from fiber.training.config.run import TrainConfig
from fiber.training.distributed.full_tensor import full_state, full_tensor, shard_like
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.shard import group_size
from fiber.training.distributed.strategy import choose_strategy
from fiber.training.metrics_file import read_metrics
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import build_optimizer
from fiber.training.trainer import Trainer
from tests.losses.two_ranks import run_on_ranks, run_on_two_ranks
from tests.training.distributed.strategy_runs import (
    config_of,
    largest_difference,
    sharded_on_cpu,
    trained,
)
from tests.training.test_trainer import StopError, stop_before

pytestmark = pytest.mark.oldest

CPU = torch.device("cpu")
#: A run with everything that is gathered: checkpoints, EMA, validation, the GOLD reference.
EVERYTHING = {
    "train__ema_decay": 0.9,
    "train__steps": 8,
    "train__checkpoint_every": 3,
    "validation__task": "vqa",
    "tasks__caption__objective": "gold",
    "tasks__caption__gold_copy_every": 2,
}


def sharded_step(strategy="shard", size=0):
    """A step with a new model, and its strategy."""
    run = config_of("coarse")
    torch.manual_seed(0)
    step = TrainStep(build_model(run.model), run.tasks)
    processes = Processes(
        rank=dist.get_rank(), world_size=dist.get_world_size(), device=CPU, timeout_seconds=77
    )
    settings = TrainConfig(strategy=strategy, shard_size=size)
    chosen = choose_strategy(settings, processes)
    chosen.prepare(step)
    return step, chosen, run


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def storage(tensor):
    return local(tensor).untyped_storage()


def parts_held(pictures, output, strategy, size):
    """Parts of all weights, gradients and moments that this rank holds after a step."""
    torch.set_num_threads(1)
    found = []
    real = Trainer._end_step

    def end_step(trainer, *args, **options):
        parameters = list(trainer.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        moments = [
            value
            for state in trainer.optimizer.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        for tensors in (parameters, gradients, moments):
            held = sum(local(tensor).numel() for tensor in tensors)
            # Storages may be larger than the tensors in them.
            storages = {s.data_ptr(): s.nbytes() for s in map(storage, tensors)}
            stored = sum(storages.values()) / 4
            whole = sum(tensor.numel() for tensor in tensors)
            found.append([held / whole, stored / whole])
        real(trainer, *args, **options)

    Trainer._end_step = end_step
    changes = {"train__strategy": strategy, "train__shard_size": size, "train__steps": 1}
    trained(Path(pictures), Path(output), "coarse", **changes)
    return torch.tensor(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "size", "parts"),
    [
        pytest.param("shard", 2, 0, 2, marks=sharded_on_cpu),
        pytest.param("shard", 4, 0, 4, marks=sharded_on_cpu),
        pytest.param("hybrid", 4, 2, 2, marks=sharded_on_cpu),
        ("replicate", 2, 0, 1),
    ],
)
def test_a_rank_holds_its_part(pictures, tmp_path, strategy, ranks, size, parts):
    arguments = (str(pictures), str(tmp_path / "run"), strategy, size)
    for held in run_on_ranks(ranks, parts_held, tmp_path, *arguments):
        assert held.max() <= 1 / parts + 0.02, held
        assert held.min() >= 1 / parts - 0.02, held


def everything(pictures, output, strategy, stop_at, samples_per_pass=0):
    """Train with a strategy, as in `EVERYTHING`; before a step, stop and resume."""
    torch.set_num_threads(1)
    changes = EVERYTHING | {"train__strategy": strategy}
    changes["train__samples_per_pass"] = samples_per_pass
    arguments = (Path(pictures), Path(output), "coarse")
    with pytest.MonkeyPatch.context() as patch:
        if stop_at:
            stop_before(patch, stop_at)
            with pytest.raises(StopError):
                trained(*arguments, **changes)
        return trained(*arguments, resume=stop_at > 0, **changes)


@pytest.mark.slow
@sharded_on_cpu
def test_a_sharded_run_validates_saves_and_resumes(pictures, tmp_path):
    runs = {
        "replicate": ("replicate", 0),
        "passes": ("replicate", 0, 1),
        "shard": ("shard", 0),
        "resumed": ("shard", 5),
    }
    for name, options in runs.items():
        (tmp_path / name).mkdir()
        arguments = (str(pictures), str(tmp_path / name / "run"), *options)
        run_on_two_ranks(everything, tmp_path / name, *arguments)
    lines = {name: read_metrics(tmp_path / name / "run" / "metrics.jsonl") for name in runs}
    models = {name: load_file(tmp_path / name / "run" / "model.safetensors") for name in runs}
    # Bit by bit, from the checkpoint.
    for one, other in zip(lines["shard"], lines["resumed"], strict=True):
        for name in ("losses", "gradient_norm", "mean_gate", "learning_rates"):
            assert one[name] == other[name], one["step"]
        assert one.get("validation") == other.get("validation")
    for one, other in zip(lines["replicate"], lines["shard"], strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-6)
        assert one.get("validation") == other.get("validation")
        assert one["mean_gate"] == pytest.approx(other["mean_gate"], rel=1e-5, abs=1e-9)
    assert sum("validation" in line for line in lines["shard"]) == 3
    # Files have the names and shapes of any other run; the temperature is a scalar.
    assert models["replicate"].keys() == models["shard"].keys() == models["resumed"].keys()
    assert models["shard"]["temperature"].shape == ()
    assert largest_difference(models["shard"], models["resumed"]) == 0
    error = largest_difference(models["passes"], models["replicate"])
    assert 0 < largest_difference(models["shard"], models["replicate"]) <= 2 * error


def values_of_a_scalar():
    step, strategy, _ = sharded_step()
    temperature: Any = step.model.temperature
    assert isinstance(temperature, DTensor) and temperature.shape == (1,)
    found = []
    for value in (1.5, 0.2, -3.0):
        with torch.no_grad():
            temperature.fill_(value)
        step.clamp_parameters()
        found.append(strategy.full_weights(step.model.state_dict())["temperature"])
    return found


@sharded_on_cpu
def test_the_temperature_is_clamped_where_it_is_stored(tmp_path):
    for found in run_on_two_ranks(values_of_a_scalar, tmp_path):
        assert [value.shape for value in found] == [torch.Size()] * 3
        assert torch.stack(found).tolist() == pytest.approx([1.0, 0.2, 0.001])


def gathered_states():
    step, strategy, run = sharded_step()
    torch.manual_seed(0)
    plain = build_model(run.model)
    optimizers = [build_optimizer(model, run.optim) for model in (plain, step.model)]
    # One step on gradients that both know.
    for own, sharded in zip(plain.parameters(), step.model.parameters(), strict=True):
        own.grad = torch.full_like(own, 0.5)
        sharded.grad = shard_like(own.grad, sharded)
    for optimizer in optimizers:
        optimizer.step()
    weights = strategy.full_weights(step.model.state_dict())
    expected = plain.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert strategy.full_weights(step.model.state_dict(), keep=False) == {}
    state = full_state(optimizers[1].state_dict())
    ours, theirs = state["state"], optimizers[0].state_dict()["state"]
    for index, entry in theirs.items():
        for name, value in entry.items():
            assert torch.equal(ours[index][name].reshape(value.shape), value), (index, name)
    on_other_ranks = full_state(optimizers[1].state_dict(), keep=False)["state"][0]["exp_avg"]
    assert on_other_ranks is None
    return torch.tensor(len(theirs))


@sharded_on_cpu
def test_gathered_states_are_those_of_a_whole_model(tmp_path):
    assert all(run_on_two_ranks(gathered_states, tmp_path))


def whole_models(strategy, size):
    step, chosen, run = sharded_step(strategy, size)
    torch.manual_seed(0)
    expected = build_model(run.model).state_dict()
    # As an EMA of the weights: sharded where they are.
    own = step.model.state_dict()
    if strategy == "hybrid":
        mesh = next(iter(own.values())).device_mesh
        assert mesh.mesh.tolist() == [[0, 1], [2, 3]]
        for dim in range(2):
            backend = mesh.get_group(dim)._get_backend(CPU)
            assert backend.options._timeout == timedelta(seconds=77)
    weights = {name: 2 * tensor for name, tensor in own.items()}
    before, versions = torch.get_rng_state(), {n: local(t).clone() for n, t in own.items()}
    with chosen.whole_model(step.model, weights) as whole:
        assert not any(isinstance(tensor, DTensor) for tensor in whole.state_dict().values())
        for name, tensor in whole.state_dict().items():
            assert tensor.shape == expected[name].shape, name
            assert torch.equal(tensor, 2 * expected[name]), name
        # One rank alone may use it.
        if dist.get_rank() == 0:
            side = run.model.image_size
            whole.embed_images(torch.zeros(1, 3, side, side))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(local(t), versions[n]) for n, t in step.model.state_dict().items())
    assert step.model.training
    with pytest.raises(KeyError), chosen.whole_model(step.model, weights):
        raise KeyError
    assert all(torch.equal(local(t), versions[n]) for n, t in step.model.state_dict().items())
    return torch.ones(())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "size"),
    [
        pytest.param("shard", 2, 0, marks=sharded_on_cpu),
        pytest.param("hybrid", 4, 2, marks=sharded_on_cpu),
        ("replicate", 2, 0),
    ],
)
def test_the_whole_model_has_given_weights_on_every_rank(tmp_path, strategy, ranks, size):
    assert all(run_on_ranks(ranks, whole_models, tmp_path, strategy, size))


def test_whole_tensors_pass_through():
    tensor = torch.arange(3.0)
    assert full_tensor(tensor) is tensor
    state = {"a": [tensor, 3], "b": (tensor,)}
    assert full_state(state)["a"][0] is tensor and full_state(state)["b"][0] is tensor
    assert torch.equal(shard_like(torch.tensor(2.0), torch.zeros(1)), torch.tensor([2.0]))


SIZES = [
    ("hybrid", 3, "", r"train\.shard_size.*divisor of the 4 ranks.*got 3"),
    ("hybrid", 1, "", r"train\.shard_size.*more than 1, got 1"),
    ("hybrid", 8, "", r"divisor of the 4 ranks.*got 8"),
    ("hybrid", 0, "3", r"LOCAL_WORLD_SIZE.*divisor of the 4 ranks.*got 3"),
    ("hybrid", 0, "", r"LOCAL_WORLD_SIZE.*''.*set train\.shard_size"),
]


@pytest.mark.parametrize(("strategy", "size", "local_size", "message"), SIZES)
def test_group_sizes_that_do_not_fit(monkeypatch, strategy, size, local_size, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_size)
    settings = TrainConfig(strategy=strategy, shard_size=size)
    with pytest.raises(ValueError, match=message):
        choose_strategy(settings, Processes(rank=0, world_size=4, device=CPU))


def test_many_ranks_share_a_copy_in_groups():
    found = {ranks: group_size(ranks) for ranks in (2, 63, 64, 66, 72, 96, 128, 1000, 1024)}
    assert found == {2: 2, 63: 63, 64: 64, 66: 33, 72: 36, 96: 48, 128: 64, 1000: 50, 1024: 64}
    # No divisor from 32 to 64.
    assert [group_size(ranks) for ranks in (65, 67, 134)] == [65, 67, 134]


def test_an_old_version_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr("fiber.training.distributed.shard.supports_cpu", lambda: False)
    with pytest.raises(
        ValueError, match=rf"'shard' needs a newer PyTorch.*{torch.__version__[:3]}"
    ):
        choose_strategy(TrainConfig(strategy="shard"), Processes(rank=0, world_size=4, device=CPU))


@pytest.mark.parametrize("strategy", ["shard", "hybrid"])
def test_one_process_says_that_nothing_is_sharded(strategy):
    settings = TrainConfig(strategy=strategy)
    with pytest.warns(RuntimeWarning, match=f"'{strategy}' has no effect on one process"):
        chosen = choose_strategy(settings, Processes(rank=0, world_size=1, device=CPU))
    model = SimpleNamespace(model=torch.nn.Linear(1, 1))
    chosen.prepare(model)
    assert not isinstance(model.model.weight, DTensor)


#: Strategy, ranks and size of a shard of the runs that continue from each other's checkpoints.
PLACES = {
    "alone": ("replicate", 1, 0),
    "replicate 2": ("replicate", 2, 0),
    "shard 2": ("shard", 2, 0),
    "shard 4": ("shard", 4, 0),
    "hybrid 4": ("hybrid", 4, 2),
    "3 in passes": ("replicate", 3, 0),
    "alone in passes": ("replicate", 1, 0),
}
#: Every strategy writes for each other one, and for other numbers of ranks and passes.
CHAINS = [
    ("shard 4", "shard 2", "alone", "shard 4"),
    ("replicate 2", "shard 2", "replicate 2", "alone"),
    ("hybrid 4", "alone", "hybrid 4", "shard 2"),
    ("alone", "replicate 2", "hybrid 4", "replicate 2"),
    ("shard 2", "hybrid 4", "3 in passes", "alone in passes"),
]


def part_of_a_run(pictures, output, place, stop_at, resume):
    """Train with a strategy until before a step; return the lines of metrics so far."""
    strategy, _, size = PLACES[place]
    changes = {"train__checkpoint_every": 1, "train__ema_decay": 0.9}
    changes |= {"train__samples_per_pass": 2 if "passes" in place else 0}
    changes |= {"train__strategy": strategy, "train__shard_size": size}
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        if stop_at:
            stop_before(patch, stop_at)
            with pytest.raises(StopError):
                trained(Path(pictures), Path(output), "coarse", resume=resume, **changes)
        else:
            trained(Path(pictures), Path(output), "coarse", resume=resume, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=" to ".join)
def test_checkpoints_are_read_by_other_ranks_and_strategies(pictures, tmp_path, chain):
    trained(pictures, tmp_path / "whole", "coarse", train__ema_decay=0.9, train__checkpoint_every=1)
    output = tmp_path / "run"
    for number, place in enumerate(chain):
        is_last = number == len(chain) - 1
        stop_at = 0 if is_last else 3 * (number + 1)
        arguments = (str(pictures), str(output), place, stop_at, number > 0)
        if PLACES[place][1] == 1:
            part_of_a_run(*arguments)
        else:
            (folder := tmp_path / str(number)).mkdir()
            run_on_ranks(PLACES[place][1], part_of_a_run, folder, *arguments)
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    parts = read_metrics(output / "metrics.jsonl")
    assert (
        [line["step"] for line in parts] == [line["step"] for line in whole] == list(range(1, 11))
    )
    for one, other in zip(whole, parts, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-6), one["step"]
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
    models = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", output)]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-6, atol=1e-7, msg=name)
