"""Third-party files: their content is read, and no code in them is run."""

import argparse
import builtins
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

from fiber.checkpoints.inert_pickle import Inert, read_pickle
from fiber.checkpoints.torch_file import read_checkpoint
from tests.processes import run_python

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


def noted(*arguments):
    raise AssertionError(f"called with {arguments}")


@pytest.mark.parametrize(
    "stream",
    [
        b"c%b\nnoted\n(I1\ntR.",
        b"(c%b\nnoted\nI1\no.",
        b"(I1\ni%b\nnoted\n.",
        b"\x80\x02c%b\nnoted\n)\x81.",
        b"\x80\x04c%b\nnoted\n)}\x92.",
        b"c%b\nnoted\n(dS'a'\nI1\nsb.",
    ],
    ids=["REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "BUILD"],
)
def test_no_pickle_opcode_calls_the_named_function(stream):
    stream %= __name__.encode()
    found = read_pickle(io.BytesIO(stream)).content
    assert isinstance(found, Inert)
    assert found.name == f"{__name__}.noted"
    assert not callable(found)


def test_build_does_not_change_known_functions():
    """BUILD could otherwise set the defaults of a function that pickles may refer to."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    stream = b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'__defaults__'\n(I1\ntstb."
    read_pickle(io.BytesIO(stream))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_pickled_names_are_not_imported(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", noted)
    found = read_pickle(io.BytesIO(b"cthis_module.is_not\nthere\n.")).content
    assert found.name == "this_module.is_not.there"


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
        ([1, 2], "contains a list"),
        ({"epoch": 1, "loss": 2.0}, "contains no tensors.*its keys are epoch, loss"),
        ({"state_dict": {}}, "contains no tensors"),
        ({"state_dict": {"w": torch.zeros(1), "v": 3}}, "contains values other than tensors: v"),
        (torch.nn.Linear(2, 2), "contains a torch.nn.modules.linear.Linear"),
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


def legacy(pickled: bytes) -> bytes:
    """A file in the format of torch.save before 1.6, with one pickle and no storages."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(each, 2) for each in head) + pickled + pickle.dumps([], 2)


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive in the format of torch.save, with one pickle and no storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


#: A reference to a storage: a mark, "storage" and its class, then its number of elements.
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
NUMEL = b"X\x01\0\0\x000X\x03\0\0\0cpu"

#: Pickles whose contents take far more time, memory or stack than their bytes.
BOMBS = {
    "key of 2^60 leaves": b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.",
    "deep key": b"\x80\x02}N" + b"\x85" * 150_000 + b"Ns.",
    "bytearray of 20 GB": b"\x80\x05\x96" + (20 << 30).to_bytes(8, "little") + b"xx.",
    "bytearray called with 20 GB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\5\x85R.",
    "tensor class called": b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\0\0\0\0\5\x85R.",
    "colliding integers": b"\x80\x02}("
    + b"".join(pickle.dumps(each * (2**61 - 1), 2)[2:-1] + b"N" for each in range(1, 60_000))
    + b"u.",
    "set of a tuple of 2^60 leaves": b"\x80\x02c__builtin__\nset\n]N" + b"2\x86" * 60 + b"a\x85R.",
    "storage whose numel is a tuple of 2^60 leaves": (
        b"\x80\x02" + STORAGE + NUMEL + b"N" + b"2\x86" * 60 + b"tQ."
    ),
    "storage whose key is a tuple of 2^60 leaves": (
        b"\x80\x02" + STORAGE + b"N" + b"2\x86" * 60 + b"X\x03\0\0\0cpuK\x01tQ."
    ),
    "tensor whose size is a tuple of 2^60 leaves": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + (STORAGE + NUMEL + b"K\x01tQK\0N")
        + b"2\x86" * 60
        + b"\x85K\x01\x85\x89NtR."
    ),
    "two million operations": b"\x80\x02" + b"N" * 2_000_000 + b".",
}


@pytest.mark.parametrize("container", [legacy, zipped, bytes])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_small_pickles_need_little_time_and_memory(tmp_path, bomb, container):
    path, script = tmp_path / "bomb.ckpt", tmp_path / "read.py"
    path.write_bytes(container(bomb))
    script.write_text(READ_WITHIN_LIMITS)
    run = run_python([script, path])
    assert run.stdout.startswith("ValueError"), run.stdout + run.stderr


READ_WITHIN_LIMITS = """
import resource, sys
from pathlib import Path
from fiber.checkpoints.torch_file import read_checkpoint

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = int(used.ru_utime + used.ru_stime)
resource.setrlimit(resource.RLIMIT_CPU, (cpu + 6, cpu + 6))
try:
    read_checkpoint(Path(sys.argv[1]))
except ValueError as error:
    print("ValueError", str(error)[:300])
"""


def test_compressed_archive_is_rejected(tmp_path):
    path = tmp_path / "deflated.ckpt"
    path.write_bytes(zipped(b"\x80\x02" + b"\0" * 10_000_000 + b".", zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"deflated.ckpt.*data.pkl is compressed"):
        read_state(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_pickle_protocol_is_read(protocol):
    value = {
        "text": "ä" * 300,
        "bytes": b"ab",
        3: (1, (2.5, None), True),
        "list": [1, -2, 2**70, "x"] * 2,
        "nested": {"a": {"b": [[], {}, ()]}},
        2**65: "a key of many bits",
    }
    read = read_pickle(io.BytesIO(pickle.dumps(value, protocol))).content
    *keys, last = read
    assert isinstance(last, Inert)
    # Protocols 0 to 2 write bytes as a call.
    del keys[1], read["bytes"], value["bytes"]
    assert {key: read[key] for key in keys} == {key: value[key] for key in keys}
    assert read[last] == value[2**65]
