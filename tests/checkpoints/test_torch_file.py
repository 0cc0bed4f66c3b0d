"""Third-party files: their content is read, and no code in them is run."""

import argparse
import collections
import enum
import io
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fiber.checkpoints.torch_file import read_checkpoint
from tests.hostile_cases import two_directories

pytestmark = pytest.mark.oldest

#: Memory of this process in pages.
STATM = pathlib.Path("/proc/self/statm")


def read_state(path, weights="raw"):
    return read_checkpoint(path, weights).state


class Running(enum.Enum):
    """Its members are pickled as calls, and may be dict keys."""

    FIT = "fit"


def tensors():
    torch.manual_seed(0)
    return collections.OrderedDict(
        weight=torch.randn(3, 4),
        half=torch.randn(5).half(),
        number=torch.tensor(0.07),
        parameter=torch.nn.Parameter(torch.randn(2)),
        view=torch.randn(4, 6)[1:, ::2],
        ids=torch.arange(3),
    )


def check(state):
    expected = tensors()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype, name


@pytest.fixture
def vanishing_module(monkeypatch):
    """A module that exists while a file is written and cannot be imported afterwards."""
    module = types.ModuleType("vanished_callbacks")

    class ModelCheckpoint:
        pass

    class AttributeDict(dict):
        pass

    class Milestones(list):
        pass

    for each in (ModelCheckpoint, AttributeDict, Milestones):
        each.__module__, each.__qualname__ = module.__name__, each.__name__
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def lightning_content(module, state):
    """What Lightning 1.3.2 writes, and some objects that its users add."""
    return {
        "epoch": 9,
        "global_step": 100000,
        "pytorch-lightning_version": "1.3.2",
        "state_dict": state,
        "callbacks": {module.ModelCheckpoint: {"monitor": "val/the_metric"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [{"milestones": module.Milestones([1, 2]), "when": {Running.FIT: 1}}],
        "hparams_name": "hparams",
        "hyper_parameters": module.AttributeDict(config={"image_size": 384}),
        "arguments": argparse.Namespace(seed=0),
        "path": pathlib.PurePosixPath("/a/b"),
        "score": np.float64(0.5),
        "sets": {1, 2},
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_lightning_file_with_missing_classes_is_read(
    vanishing_module, monkeypatch, tmp_path, protocol
):
    path = tmp_path / "lightning.ckpt"
    content = lightning_content(vanishing_module, tensors())
    torch.save(content, path, pickle_protocol=protocol)
    monkeypatch.delitem(sys.modules, vanishing_module.__name__)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    check(read_state(path))


def test_legacy_lightning_file_is_read(vanishing_module, monkeypatch, tmp_path):
    path = tmp_path / "old.ckpt"
    content = lightning_content(vanishing_module, tensors())
    torch.save(content, path, _use_new_zipfile_serialization=False)
    monkeypatch.delitem(sys.modules, vanishing_module.__name__)
    check(read_state(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pth", {"model": tensors(), "optimizer": {}, "iteration": 3}),
        ("a.pt", tensors()),
        ("a.pth", {"state_dict": {f"module.{name}": each for name, each in tensors().items()}}),
        ("a.bin", dict(tensors())),
    ],
    ids=["model", "top level", "module prefix", "plain dict"],
)
def test_state_dict_is_found_in_known_layouts(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    check(read_state(tmp_path / name))


def test_moving_average_is_selected_by_name(tmp_path):
    path = tmp_path / "fine.pth"
    torch.save({"model": {"w": torch.zeros(2)}, "model_ema": {"w": torch.ones(2)}}, path)
    assert read_state(path)["w"].sum() == 0
    assert read_state(path, "raw")["w"].sum() == 0
    assert read_state(path, "ema")["w"].sum() == 2
    torch.save({"model": {"w": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match=r"fine.pth contains no moving average.*keys are model"):
        read_state(path, "ema")
    with pytest.raises(ValueError, match=r"weights.*raw.*ema.*'best'"):
        read_state(path, "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_safetensors_file_is_read(tmp_path, name):
    state = {name: tensor.detach().contiguous() for name, tensor in tensors().items()}
    save_file(state, tmp_path / name)
    read = read_state(tmp_path / name)
    assert set(read) == set(state)
    assert all(torch.equal(read[each], state[each]) for each in state)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = STATM.read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not STATM.exists(), reason="no /proc to read the memory from")
def test_unused_storages_are_not_read(tmp_path):
    path = tmp_path / "queue.ckpt"
    queue_bytes = 2**26
    torch.save({"state_dict": {"w": torch.ones(2), "queue": torch.zeros(queue_bytes // 4)}}, path)
    before = resident_bytes()
    state = read_state(path)
    assert state["w"].sum() == 2
    assert resident_bytes() - before < queue_bytes / 2
    assert state["queue"].sum() == 0


class Harm:
    """Its pickle requests a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (subprocess.run, "subprocess.run")],
    ids=["system", "eval", "run"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_file_with_code_is_rejected_without_running_it(tmp_path, function, named, legacy):
    trace = tmp_path / "trace"
    command = f"open({str(trace)!r}, 'w')" if function is eval else f"touch {trace}"
    if os.name != "posix":
        pytest.skip("the module of os.system has another name here")
    path = tmp_path / "harm.ckpt"
    content = {"state_dict": tensors(), "callbacks": Harm(function, command)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=rf"harm.ckpt.*calls {named}"):
        read_state(path)
    assert not trace.exists()


def test_archive_that_torch_and_zipfile_read_differently_is_rejected(tmp_path):
    contents = []
    for state in ({"weight": torch.zeros(2)}, {"weight": torch.zeros(2), "bias": torch.zeros(2)}):
        torch.save(state, tmp_path / "one.ckpt")
        contents.append((tmp_path / "one.ckpt").read_bytes())
    (tmp_path / "both.ckpt").write_bytes(two_directories(*contents))
    with pytest.raises(ValueError, match=r"both\.ckpt is (damaged.*two directories|truncated)"):
        read_state(tmp_path / "both.ckpt")


@pytest.mark.parametrize("value", [bytearray(b"abc"), b"abc", 10**30, {5: 1, 10**9: 2}], ids=str)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_values_in_the_file_do_not_matter(tmp_path, value, protocol):
    path = tmp_path / "a.ckpt"
    content = {"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": {"value": value}}
    torch.save(content, path, pickle_protocol=protocol)
    assert torch.equal(read_state(path)["weight"], torch.ones(2))


def test_dtypes_that_are_not_supported_are_named(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2).to(torch.float8_e4m3fn)}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"tensors of torch\.float8_e4m3fn are not supported"):
        read_state(tmp_path / "a.ckpt")


def test_plain_pickles_are_rejected(tmp_path):
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps(Harm(os.system, f"touch {tmp_path / 'trace'}")))
    with pytest.raises(ValueError, match=r"plain.pth tries to run code"):
        read_state(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"plain.pth is a plain pickle"):
        read_state(path)
    # Protocol 0 has no header.
    path.write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "trace").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"plain.pth.*checkpoint"):
        read_state(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.safetensors"])
def test_empty_file_is_rejected(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name}.*empty"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file_is_rejected(tmp_path, kind):
    path = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.ckpt")
    if kind == "safetensors":
        save_file({"w": torch.zeros(100)}, path)
    else:
        state = {"state_dict": tensors()}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for kept in (1, 9, 30, 200, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"{path.name} is"):
            read_state(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_corruption_anywhere_raises_the_same_error_type(tmp_path, legacy):
    path, draws = tmp_path / "whole.ckpt", np.random.default_rng(0)
    content = {"state_dict": tensors(), "callbacks": {Running: {"a": (1, 2)}}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[draws.integers(0, len(whole), 40)] = draws.integers(0, 256, 40)
        path.write_bytes(damaged.tobytes())
        try:
            read_state(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert refused > 20


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"")
    return buffer.getvalue()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"<!DOCTYPE html><html>", "looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff\xd8\xff\xe0 a photograph", "is not a checkpoint.*starts with"),
        (zip_of("word/document.xml"), r"zip archive without data.pkl"),
        (zip_of("model/constants.pkl"), "TorchScript program"),
        (tar_file(), "is not a checkpoint"),
    ],
    ids=["web page", "LFS pointer", "photograph", "other zip", "TorchScript", "tar"],
)
def test_wrong_file_format_is_rejected(tmp_path, blob, reason):
    path = tmp_path / "other.ckpt"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=rf"other.ckpt.*{reason}"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "contains an object of type list"),
        ({"epoch": 1, "loss": 2.0}, "contains no tensors.*its keys are epoch, loss"),
        ({"state_dict": {}}, "contains no tensors"),
        ({"state_dict": {"w": torch.zeros(1), "v": 3}}, "contains values other than tensors: v"),
        (torch.nn.Linear(2, 2), "contains an object of type torch.nn.modules.linear.Linear"),
    ],
    ids=["list", "no tensors", "nothing", "number among tensors", "whole module"],
)
def test_content_without_tensors_is_rejected(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a.pt {reason}"):
        read_state(tmp_path / "a.pt")


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.ckpt.*exist"):
        read_state(tmp_path / "none.ckpt")
