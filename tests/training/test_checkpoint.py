import dataclasses
import errno
import json
import os
import resource
import stat

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from fiber import atomic_io
from fiber.atomic_io import write_file
from fiber.bad_input import is_bad_input
from fiber.checkpoints import model_dir
from fiber.checkpoints.model_dir import load_model, save_model, write_weights
from fiber.config import preset
from fiber.config_io import to_dict
from fiber.models.registry import build_model
from fiber.training.checkpoint import files
from fiber.training.checkpoint import writer as checkpoint_writer
from fiber.training.checkpoint.files import write_tensors
from fiber.training.checkpoint.folder import (
    Position,
    checkpoint_at,
    checkpoints_in,
    newest_checkpoint,
)
from fiber.training.checkpoint.state import TrainingState
from fiber.training.checkpoint.writer import CheckpointWriter
from fiber.training.config.run import OptimConfig
from fiber.training.distributed.preemption import Preempted
from fiber.training.distributed.processes import Processes
from fiber.training.objectives.state import ObjectiveState
from fiber.training.optim import MovingAverage, build_optimizer, freeze

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(params=["coarse", "fine"])
def model(request):
    torch.manual_seed(0)
    return build_model(preset("micro", stage=request.param))


def state_of(model, config=None):
    """A model with all that a trainer keeps beside it."""
    optimizer = build_optimizer(model, config or OptimConfig())
    return TrainingState(model, optimizer, MovingAverage(model, 0.9), ObjectiveState())


def write(folder, step, model, keep=2):
    position = Position(
        step=step,
        records={"question": 3},
        consumed={"question": 4 * step},
        fingerprints={"question": "a"},
        vocabulary_sha256="b",
    )
    state = model if isinstance(model, TrainingState) else state_of(model)
    with CheckpointWriter(folder, ALONE, keep=keep) as writer:
        writer.save(state.tensors(), position)
    return checkpoint_at(folder, step)


def take_steps(state, count):
    """Update the weights by gradients that differ; some parameters get none."""
    random = torch.Generator().manual_seed(7)
    for _ in range(count):
        for number, parameter in enumerate(state.model.parameters()):
            has_gradient = parameter.requires_grad and number % 5
            parameter.grad = (
                torch.randn(parameter.shape, generator=random) if has_gradient else None
            )
        state.optimizer.step()
        state.average.update(state.model)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_no_folder_holds_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_model_survives_the_disk(tmp_path, model):
    save_model(model, tmp_path / "m", answers=("yes", "näh"))
    stored = load_model(tmp_path / "m")
    assert stored.config == model.config
    assert stored.answers == ("yes", "näh")
    assert stored.tokenizer is None
    assert not stored.network.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored.network.state_dict()[name], tensor), name


def test_config_names_version_and_model(tmp_path, model):
    save_model(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    transformers = {"model_type", "architectures", "dtype"}
    assert set(written) == {"fiber_version", "commit", "model", *transformers}
    assert written["model"] == json.loads(json.dumps(to_dict(model.config)))


@pytest.mark.parametrize(
    "held", ["config.json", "model.safetensors", "tokenizer.json", "checkpoints", "metrics.jsonl"]
)
def test_folder_of_another_model_or_run_is_refused(tmp_path, held):
    folder = tmp_path / "used"
    (folder / held).mkdir(parents=True)
    with pytest.raises(FileExistsError, match=rf"{held}.*folder"):
        save_model(build_model(preset("micro")), folder)
    assert names(folder) == [held]


def test_answers_of_another_model_do_not_stay(tmp_path):
    save_model(build_model(preset("micro")), tmp_path, answers=("yes", "no"))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match=r"contains answers\.json"):
        save_model(build_model(preset("micro")), tmp_path)


def test_a_file_is_no_folder_for_a_model(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    with pytest.raises(NotADirectoryError, match=r"photo\.jpg.*file.*folder"):
        save_model(build_model(preset("micro")), tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == b"photo"


def test_config_comes_last(tmp_path, monkeypatch):
    written = []
    whole = atomic_io.write_file

    def noted(path, write):
        written.append(path.name)
        whole(path, write)

    # write_json looks it up among the files, the rest in the module of checkpoints.
    for module in (atomic_io, model_dir):
        monkeypatch.setattr(module, "write_file", noted)
    save_model(build_model(preset("micro")), tmp_path, answers=("yes",))
    assert written == [
        *("answers.json", "preprocessor_config.json", "model.safetensors", "config.json")
    ]


def test_stopped_save_leaves_the_folder_free(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    (tmp_path / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_dir, "write_tensors", stopped)
        save_model(build_model(preset("micro")), tmp_path, answers=("yes",))
    assert names(tmp_path) == ["notes.txt"]
    save_model(build_model(preset("micro")), tmp_path)
    load_model(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file_is_named(tmp_path, missing):
    save_model(build_model(preset("micro")), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing}.*does not exist"):
        load_model(tmp_path)


def test_unfinished_run_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="resume it first"):
        load_model(tmp_path)


def test_cut_off_weights_are_refused(tmp_path):
    save_model(build_model(preset("micro")), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a valid"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model = build_model(preset("micro"))
    state = model.state_dict()
    state["temperature"] = torch.zeros(3)
    del state["itm_head.bias"]
    state["stranger"] = torch.zeros(1)
    save_model(model, tmp_path)
    write_weights(tmp_path, state)
    with pytest.raises(ValueError) as caught:
        load_model(tmp_path)
    for fault in ("missing itm_head.bias", "unexpected stranger"):
        assert fault in str(caught.value)
    # Shapes are compared once the names are right.
    write_weights(tmp_path, {**model.state_dict(), "temperature": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"temperature has shape \(3,\), expected \(\)"):
        load_model(tmp_path)


def test_checkpoint_survives_the_disk(tmp_path, model):
    written = write(tmp_path, 3, model)
    assert names(tmp_path) == ["step-00000003"]
    assert names(written.folder) == [".metadata", "SHA256SUMS", "__0_0.distcp", "data.json"]
    other = build_model(model.config)
    written.restore(state_of(other))
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )
    position = written.position({"question": 3}, {})
    assert (position.step, position.consumed) == (3, {"question": 12})


OPTIMIZERS = {
    "AdamW": OptimConfig(lr=0.01, frozen=("backbone.text",)),
    "published": OptimConfig(lr=0.01, published_coarse=True),
    "Muon": OptimConfig(lr=0.01, muon_lr_multiplier=10.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_and_average_go_on_where_they_were(tmp_path, name):
    config, states = OPTIMIZERS[name], []
    for _ in range(2):
        model = build_model(preset("micro"))
        freeze(model, config.frozen)
        states.append(state_of(model, config))
    ours, theirs = states
    take_steps(ours, 3)
    write(tmp_path, 3, ours).restore(theirs)
    for state in states:
        take_steps(state, 2)
    before, after = ours.tensors(), theirs.tensors()
    assert before.keys() == after.keys()
    assert any(key.startswith("optimizer/") for key in before)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key


def test_a_save_holds_the_weights_of_its_moment(tmp_path):
    state = state_of(build_model(preset("micro")))
    take_steps(state, 1)
    expected = {key: tensor.clone() for key, tensor in state.tensors().items()}
    position = Position(
        step=1,
        records={"question": 3},
        consumed={"question": 4},
        fingerprints={"question": "a"},
        vocabulary_sha256="b",
    )
    with CheckpointWriter(tmp_path, ALONE, keep=2) as writer:
        writer.save(state.tensors(), position)
        take_steps(state, 3)
    checkpoint_at(tmp_path, 1).restore(state)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.tensors().items())


def test_other_tensors_are_refused(tmp_path):
    written = write(tmp_path, 3, build_model(preset("micro")))
    config = preset("micro")
    smaller = dataclasses.replace(config.image_text, num_answers=3)
    other = build_model(dataclasses.replace(config, image_text=smaller))
    with pytest.raises(ValueError, match=r"\.metadata.*vqa_head.*has shape .*, expected"):
        written.restore(state_of(other))
    fine = build_model(preset("micro", stage="fine"))
    with pytest.raises(ValueError, match=r"lacks average/.* and has unexpected average/"):
        written.restore(state_of(fine))


def test_other_data_are_refused(tmp_path):
    written = write(tmp_path, 3, build_model(preset("micro")))
    with pytest.raises(ValueError, match="saved with different data"):
        written.position({"question": 4}, {})


def test_what_a_stranger_wrote_is_cut_in_messages(tmp_path):
    checkpoint = write(tmp_path, 3, build_model(preset("micro")))
    path = checkpoint.folder / "data.json"
    stored = json.loads(path.read_text())
    names = [f"task{number}" for number in range(20_000)]
    counts = dict.fromkeys(names, 1)
    path.write_text(json.dumps(stored | {"records": counts, "consumed": counts}))
    with pytest.raises(ValueError, match=r"different data.*'task0' had 1 records.*more") as error:
        checkpoint.position({}, {})
    assert len(str(error.value)) < 3000
    for count in (10**30, 2**63, -1):
        path.write_text(json.dumps(stored | {"consumed": {"question": count}}))
        with pytest.raises(
            ValueError, match=rf"data\.json has consumed\.question {count}; expected"
        ):
            checkpoint.read_position()
    (checkpoint.folder / "SHA256SUMS").write_text(f"{'0' * 64}  {'a' * 5_000_000}\n")
    assert "SHA256SUMS does not list" in checkpoint.damage() and len(checkpoint.damage()) < 500


def test_only_the_newest_are_kept(tmp_path):
    model = build_model(preset("micro"))
    for step in (5, 10, 15, 20):
        write(tmp_path, step, model, keep=2)
    assert [found.step for found in checkpoints_in(tmp_path)] == [15, 20]
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_half_a_checkpoint_is_no_checkpoint(tmp_path):
    model = build_model(preset("micro"))
    write(tmp_path, 5, model)
    (write(tmp_path, 10, model).folder / ".metadata").unlink()
    (tmp_path / "step-soon").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 5


@pytest.mark.parametrize("call", ["write_tensors", "flush_to_disk"])
def test_full_disk_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch, call):
    model = build_model(preset("micro"))
    write(tmp_path, 5, model, keep=1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_writer, call, full)
    with pytest.raises(OSError, match=r"step-00000010.*written.*MB are free.*space") as e:
        write(tmp_path, 10, model, keep=1)
    assert e.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-00000005"]


def test_write_that_really_fails_leaves_the_older_checkpoint_whole(tmp_path):
    # The system refuses files beyond this size, in the middle of the write.
    model = build_model(preset("micro"))
    write(tmp_path, 5, model, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"step-00000010.*written .File too large.*ulimit -f"
        ) as e:
            write(tmp_path, 10, model, keep=1)
        # The system's error, which torch.save hides: not one of the input.
        assert e.value.errno == errno.EFBIG and not is_bad_input(e.value)
        with pytest.raises(OSError, match=r"model\.safetensors.*written"):
            save_model(model, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000005"]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writer, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 10, build_model(preset("micro")))
    assert names(tmp_path) == []


class TestAnErrorInTheMiddleOfTheTensors:
    """torch wraps it in a CheckpointException, which `except Exception` would not catch."""

    @pytest.fixture
    def written(self, tmp_path):
        return write(tmp_path, 3, build_model(preset("micro")))

    @pytest.fixture
    def raised(self, monkeypatch):
        def with_error(error):
            def fail(*_):
                raise error

            # The writer adds what the system says to errors of DCP's own.
            for owner, name in ((files._Reader, "read_data"), (FileSystemWriter, "write_data")):
                monkeypatch.setattr(owner, name, fail)

        return with_error

    @pytest.mark.parametrize("stop", [KeyboardInterrupt(), Preempted("SIGTERM")])
    def test_stops_stay_what_they_are(self, tmp_path, written, raised, stop):
        raised(stop)
        for action in (
            lambda: written.restore(state_of(build_model(preset("micro")))),
            lambda: write_tensors({"a": torch.zeros(2)}, tmp_path / "other"),
        ):
            with pytest.raises(type(stop)) as caught:
                action()
            assert getattr(caught.value, "signal", None) == getattr(stop, "signal", None)

    def test_errors_name_the_checkpoint(self, tmp_path, written, raised):
        raised(RuntimeError("a lost disk"))
        with pytest.raises(ValueError, match=r"step-00000003.*a lost disk"):
            written.restore(state_of(build_model(preset("micro"))))
        with pytest.raises(OSError, match=r"other: rank 0 failed.*a lost disk"):
            write_tensors({"a": torch.zeros(2)}, tmp_path / "other")


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder")):
        with pytest.raises(OSError, match=rf"{name}.*{kind}"):
            write_file(tmp_path / name, lambda part: part.write_text("new"))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "file").write_text("old")
    write_file(tmp_path / "file", lambda part: part.write_text("new"))
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file", "folder", "pipe"]
