"""Models of checkpoints: `fiber convert RUN/checkpoints/step-N OUT`."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import fiber
from fiber.checkpoints.model_dir import MODEL_FILES, load_model
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.cli import main
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.models.registry import build_model
from fiber.training.checkpoint.folder import Position
from fiber.training.checkpoint.layout import CHECKSUMS
from fiber.training.checkpoint.model import read_checkpoint_model
from fiber.training.checkpoint.state import TrainingState
from fiber.training.checkpoint.writer import CheckpointWriter
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.strategy import choose_strategy
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import MovingAverage, build_optimizer
from fiber.training.run_dir import RunFolder
from tests.losses.two_ranks import run_on_ranks
from tests.training.distributed.strategy_runs import config_of as run_config
from tests.training.distributed.strategy_runs import largest_difference, sharded_on_cpu, trained
from tests.training.micro_runs import coarse_config, fine_config, run
from tests.training.test_trainer import StopError, stop_before

STEP = "step-00000004"
#: A learning rate that does not depend on the number of steps, so that runs begin in the same way.
CONSTANT = {
    "optim__schedule": "multistep",
    "optim__milestones": (0.99,),
    "optim__warmup_fraction": 0.0,
}


def cut(pictures, output, config, at=5):
    """Train until after the checkpoint of step 4; return the checkpoint's folder."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        stop_before(patch, at)
        run(config, pictures, output)
    return output / "checkpoints" / STEP


def config_of(stage, ema, **changes):
    build = fine_config if stage == "fine" else coarse_config
    return build(train__ema_decay=ema, train__checkpoint_every=4, **CONSTANT, **changes)


def convert(source, target, *arguments):
    return main(["convert", str(source), str(target), *map(str, arguments)])


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """A checkpoint of a run with an EMA; tests that change it copy the run."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fiber.training.run_dir.RunFolder.draw", lambda *_: None)
        return cut(pictures, folder / "run", config_of("coarse", 0.9))


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of the run; its checkpoint."""
    shutil.copytree(stopped.parents[1], tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / STEP


def test_an_empty_folder_is_no_checkpoint(tmp_path, capsys):
    (folder := tmp_path / "checkpoints" / STEP).mkdir(parents=True)
    assert convert(folder, tmp_path / "out") == 2
    assert f"{folder} is damaged or incomplete: .metadata does not exist" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def one_line(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("stage", "ema"),
    [
        ("coarse", 0.9),
        ("fine", 0.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("coarse", 0.0), ("fine", 0.9)]),
    ],
)
def test_it_is_the_finished_model_of_a_run_that_ended_there(pictures, tmp_path, capsys, stage, ema):
    whole = config_of(stage, ema)
    folder = cut(pictures, tmp_path / "run", whole)
    ended = run(config_of(stage, ema, train__steps=4), pictures, tmp_path / "ended")
    assert convert(folder, tmp_path / "out") == 0
    report = capsys.readouterr().out
    assert f"read {folder}{', moving average' if ema else ''}: {stage}-stage model" in report
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {name for name in MODEL_FILES if (ended.folder / name).exists()}
    for name in names - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (ended.folder / name).read_bytes(), name
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["model"] == to_dict(ended.config.model)
    fiber.load(tmp_path / "out", device="cpu")


@pytest.mark.slow
def test_weights_as_trained_on_request(stopped, tmp_path, capsys):
    assert convert(stopped, tmp_path / "ema", "--weights", "ema") == 0
    assert convert(stopped, tmp_path / "default") == 0
    assert convert(stopped, tmp_path / "raw", "--weights", "raw") == 0
    reports = capsys.readouterr().out.split("read ")[1:]
    assert [", moving average:" in report for report in reports] == [True, True, False]
    models = {
        name: load_file(tmp_path / name / "model.safetensors") for name in ("ema", "default", "raw")
    }
    assert all(torch.equal(models["ema"][n], models["default"][n]) for n in models["ema"])
    assert not all(torch.equal(models["ema"][n], models["raw"][n]) for n in models["ema"])


def test_a_run_without_an_average_has_none(pictures, tmp_path, capsys):
    folder = cut(pictures, tmp_path / "run", config_of("coarse", 0.0))
    assert convert(folder, tmp_path / "out", "--weights", "ema") == 2
    assert "has no moving average" in one_line(capsys)
    assert convert(folder, tmp_path / "out") == 0


@pytest.mark.slow
def test_other_forms_and_sizes(stopped, tmp_path, capsys):
    assert convert(stopped, tmp_path / "published.pth", "--to", "published") == 0
    assert convert(stopped, tmp_path / "towers", "--to", "towers") == 0
    assert {path.name for path in (tmp_path / "towers").iterdir()} >= {"swin.safetensors"}
    assert convert(stopped, tmp_path / "whole") == 0
    size = load_model(tmp_path / "whole").config.image_size
    for source, target in ((stopped, "direct"), (tmp_path / "whole", "again")):
        assert convert(source, tmp_path / target, "--image-size", 2 * size) == 0
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("direct", "again")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert convert(stopped, tmp_path / "whole") != 0
    assert "already contains" in one_line(capsys)


@pytest.mark.slow
def test_a_relative_path_and_a_short_name(stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(stopped)
    assert convert(".", tmp_path / "here") == 0
    monkeypatch.chdir(stopped.parents[1])
    assert convert(f"checkpoints/{STEP}/", tmp_path / "there") == 0
    assert convert("checkpoints/step-4", tmp_path / "short") == 2
    assert f"step-4 does not exist; checkpoints in {stopped.parent}: {STEP}" in one_line(capsys)


# Checkpoints of many ranks


def train_on_ranks(pictures, output, strategy, samples_per_pass):
    changes = {"train__samples_per_pass": samples_per_pass, "train__strategy": strategy}
    changes |= {"train__ema_decay": 0.9, "train__checkpoint_every": 4, "train__steps": 5}
    trained(Path(pictures), Path(output), "coarse", **changes, **CONSTANT)


@pytest.mark.slow
@sharded_on_cpu
def test_sharded_checkpoints_have_the_weights_of_whole_ones(pictures, tmp_path, capsys):
    found = {}
    runs = {
        "shard": ("shard", 2, 0),
        "two": ("replicate", 2, 0),
        "alone": ("replicate", 1, 0),
        "passes": ("replicate", 1, 1),
    }
    for name, (strategy, count, samples) in runs.items():
        (tmp_path / name).mkdir()
        arguments = (str(pictures), str(tmp_path / name / "run"), strategy, samples)
        if count == 1:
            train_on_ranks(*arguments)
        else:
            run_on_ranks(count, train_on_ranks, tmp_path / name, *arguments)
        folder = tmp_path / name / "run" / "checkpoints" / STEP
        assert len(list(folder.glob("*.distcp"))) == count
        assert convert(folder, tmp_path / name / "out") == 0
        found[name] = load_file(tmp_path / name / "out" / "model.safetensors")
        assert found[name]["temperature"].shape == ()
    error = largest_difference(found["passes"], found["alone"])
    assert 0 < error < 1e-3 * 1e-4 * 4
    for name in ("shard", "two"):
        assert largest_difference(found[name], found["alone"]) <= 2 * error, name


def save_new_model(pictures, output, strategy):
    """Write a checkpoint of step 4 with weights and averages that are the same everywhere."""
    is_alone = not dist.is_initialized()
    rank, world_size = (0, 1) if is_alone else (dist.get_rank(), dist.get_world_size())
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    tokenizer = Tokenizer.from_file(f"{pictures}/tokenizer.json")
    config = run_config("coarse", train__strategy=strategy)
    config = dataclasses.replace(config, model=config.model.with_vocabulary(tokenizer.vocab_size))
    folder = RunFolder(Path(output))
    if processes.is_first:
        folder.open(config, Vocabulary(tokenizer))
    torch.manual_seed(0)
    step = TrainStep(build_model(config.model), config.tasks)
    choose_strategy(config.train, processes).prepare(step)
    average = MovingAverage(step.model, 0.9)
    with torch.no_grad():
        for parameter in step.model.parameters():
            parameter.mul_(2)
    average.update(step.model)
    state = TrainingState(
        step.model, build_optimizer(step.model, config.optim), average, ObjectiveState()
    )
    position = Position(
        step=4,
        records={"question": 3},
        consumed={"question": 16},
        fingerprints={"question": "a"},
        vocabulary_sha256=folder.vocabulary_sha256(),
    )
    with (
        CheckpointWriter(folder.checkpoints, processes, keep=2) as writer,
        pytest.MonkeyPatch.context() as patch,
    ):
        # A rank that waits for a new group does not notice that another one has died.
        patch.delattr(dist, "new_group")
        writer.save(state.tensors(), position)


@pytest.mark.slow
@sharded_on_cpu
def test_equal_weights_of_one_and_more_ranks_become_equal_files(pictures, tmp_path):
    found: dict[str, list[bytes]] = {"raw": [], "ema": []}
    for strategy, count in (("replicate", 1), ("replicate", 2), ("shard", 2), ("shard", 3)):
        output = tmp_path / f"{strategy}-{count}"
        if count == 1:
            save_new_model(str(pictures), str(output), strategy)
        else:
            (folder := tmp_path / f"ranks-{strategy}-{count}").mkdir()
            run_on_ranks(count, save_new_model, folder, str(pictures), str(output), strategy)
        assert len(list((output / "checkpoints" / STEP).glob("*.distcp"))) == count
        for weights, contents in found.items():
            target = output / weights
            assert convert(output / "checkpoints" / STEP, target, "--weights", weights) == 0
            contents.append((target / "model.safetensors").read_bytes())
    for contents in found.values():
        assert len(contents) == 4 and len(set(contents)) == 1
    assert found["raw"][0] != found["ema"][0]


def ended_and_stopped(pictures, output, strategy):
    train_on_ranks(pictures, f"{output}/stopped", strategy, samples_per_pass=0)
    changes = {"train__ema_decay": 0.9, "train__steps": 4, **CONSTANT}
    trained(Path(pictures), Path(output) / "ended", "coarse", train__strategy=strategy, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replicate", pytest.param("shard", marks=sharded_on_cpu)])
def test_a_checkpoint_of_two_ranks_is_their_finished_model(pictures, tmp_path, strategy):
    run_on_ranks(2, ended_and_stopped, tmp_path, str(pictures), str(tmp_path), strategy)
    folder = tmp_path / "stopped" / "checkpoints" / STEP
    assert convert(folder, tmp_path / "out") == 0
    files = [tmp_path / name / "model.safetensors" for name in ("out", "ended")]
    assert files[0].read_bytes() == files[1].read_bytes()


# Damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FAULTS = {
    "flipped": (lambda f: flip(next(f.glob("*.distcp"))), r"checksum of __0_0.distcp differs"),
    "index flipped": (lambda f: flip(f / ".metadata"), r"checksum of .metadata differs"),
    "no tensors": (lambda f: next(f.glob("*.distcp")).unlink(), r"__0_0.distcp does not exist"),
    "no index": (lambda f: (f / ".metadata").unlink(), r".metadata does not exist"),
    "no position": (lambda f: (f / "data.json").unlink(), r"data.json does not exist"),
    "no checksums": (lambda f: (f / CHECKSUMS).unlink(), r"SHA256SUMS does not exist"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_named_and_nothing_is_written(copied, tmp_path, capsys, fault):
    damage, expected = FAULTS[fault]
    shutil.copytree(copied, copied.with_name("step-00000003"))
    damage(copied)
    assert convert(copied, tmp_path / "out") == 2
    error = one_line(capsys)
    assert f"{copied} is damaged or incomplete: " in error and expected in error
    if fault != "no checksums":
        assert "other checkpoints of the run: step-00000003" in error
    assert not (tmp_path / "out").exists()


def test_damaged_best_weights_do_not_matter(pictures, tmp_path):
    folder = cut(pictures, tmp_path / "run", config_of("coarse", 0.9, validation__task="vqa"))
    flip(folder.parent / "best-00000004.safetensors")
    assert convert(folder, tmp_path / "out") == 0


def test_a_checkpoint_set_aside_is_refused(copied, tmp_path, capsys):
    aside = copied.rename(copied.with_name(f"damaged-{STEP}"))
    assert convert(aside, tmp_path / "out") == 2
    assert f"{aside} was set aside as damaged" in one_line(capsys)


def test_a_checkpoint_without_its_run_is_refused(copied, tmp_path, capsys):
    alone = Path(shutil.copytree(copied, tmp_path / STEP))
    assert convert(alone, tmp_path / "out") == 2
    assert f"{alone} has no configuration" in one_line(capsys)
    (copied.parents[1] / "config.json").unlink()
    assert convert(copied, tmp_path / "out") == 2
    assert f"expected RUN/checkpoints/{STEP}, with RUN/config.json" in one_line(capsys)


def test_another_tokenizer_in_the_run_is_refused(copied, tmp_path, capsys):
    path = copied.parents[1] / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert convert(copied, tmp_path / "out") == 2
    assert f"tokenizer.json or answers.json or classes.json in {path.parent} has changed" in (
        one_line(capsys)
    )


def test_another_configuration_is_refused(copied, tmp_path, capsys):
    path = copied.parents[1] / "config.json"
    values = json.loads(path.read_text())
    values["model"]["image_text"]["heads"] = ["vqa"]
    values["tasks"] |= {name: {"share": 0} for name in ("image_text", "reasoning", "caption")}
    path.write_text(json.dumps(values))
    assert convert(copied, tmp_path / "out") == 2
    assert "does not fit the model" in one_line(capsys)


# What is no model says how to get one


def test_loading_a_checkpoint_names_the_command(pictures, tmp_path, capsys):
    folder = cut(pictures, tmp_path / "run", config_of("coarse", 0.9))
    command = f"`fiber convert {folder} OUT`"
    with pytest.raises(FileNotFoundError) as caught:
        fiber.load(folder)
    assert command in str(caught.value)
    assert main(["eval", str(folder), "vqa", "--data", "absent"]) == 2
    assert command in one_line(capsys)
    # A run that is not finished, and its folder of checkpoints, name the newest one.
    for place in (folder.parents[1], folder.parent):
        with pytest.raises(FileNotFoundError) as caught:
            fiber.load(place)
        assert command in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        run(coarse_config(), pictures, tmp_path / "next", init=folder)
    assert command in str(caught.value)


def test_the_model_is_as_a_user_trained_it(stopped):
    """From Python, without files."""
    found = read_checkpoint_model(stopped)
    assert found.weights == "ema" and found.stored.path == stopped
    assert found.stored.tokenizer is not None and found.stored.answers
    assert not found.stored.network.training
