"""Targets for files that hold models: pickles, checkpoints in containers, and model folders."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiber.checkpoints.load import load_stored, read_model
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.inert_pickle import Inert, StorageRecord, TensorRecord, read_pickle
from tests.fuzz import seeds

#: What `read_pickle` documents for a damaged pickle.
PICKLE_ERRORS = (ValueError, IndexError, KeyError, TypeError, AttributeError)
#: Types of the values that `read_pickle` returns; none of them can be called.
_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, Inert)
#: Magic number, version and system, with which a legacy file of torch.save starts.
_LEGACY = b"".join(
    pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)
#: Content of storage 0 in the containers made here.
_STORAGE = bytes(seeds.STORAGE_BYTES)
#: Maximum size of the data behind a safetensors header made here.
_MOST_DATA = 1 << 20


def pickles(data: bytes, folder: Path) -> bool:
    """Read a pickle; what comes out is plain values and placeholders."""
    try:
        found = read_pickle(io.BytesIO(data))
    except PICKLE_ERRORS:
        return False
    seen: set[int] = set()
    waiting = [found.content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, StorageRecord | TensorRecord):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        else:
            # A mark may be left over; it is compared by identity and has no other use.
            assert isinstance(value, _PLAIN) or type(value).__name__ == "_Mark", type(value)
            assert not callable(value)
    return True


def containers(data: bytes, folder: Path) -> bool:
    """Read a checkpoint: the first byte chooses a container, the rest is its content."""
    kind, body = data[:1], data[1:]
    path = folder / ("model.safetensors" if kind in (b"s", b"h") else "model.ckpt")
    path.write_bytes(container(kind, body))
    # A whole file may hold any tensors, the content of a container those of a published model.
    read = read_checkpoint if kind in (b"r", b"s") else read_model
    return _reads(path, lambda: read(path))


def container(kind: bytes, body: bytes) -> bytes:
    """Put a pickle or a header into a sound container; other kinds are whole files."""
    if kind == b"z":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/data.pkl", body)
            archive.writestr("archive/data/0", _STORAGE)
        return file.getvalue()
    if kind == b"l":
        keys, numel = pickle.dumps(["0"], 2), struct.pack("<q", len(_STORAGE) // 4)
        return _LEGACY + body + keys + numel + _STORAGE
    return _with_data(body) if kind == b"h" else body


def _with_data(header: bytes) -> bytes:
    """A safetensors file with this header and as many zeros as it asks for."""
    return struct.pack("<Q", len(header)) + header + bytes(_data_bytes(header))


def _data_bytes(header: bytes) -> int:
    try:
        entries: Any = json.loads(header)
        most = max(each["data_offsets"][1] for name, each in entries.items() if name[0] != "_")
        return most if 0 <= most <= _MOST_DATA else 0
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0


def model_dirs(data: bytes, folder: Path) -> bool:
    """Load a folder of config.json, a safetensors header, answers.json and classes.json."""
    parts = data.split(seeds.SEPARATOR, 3)
    names = ("config.json", "model.safetensors", "answers.json", "classes.json")
    for name, part in zip(names, parts, strict=False):
        (folder / name).write_bytes(_with_data(part) if name == "model.safetensors" else part)
    return _reads(folder, lambda: load_stored(folder, device="cpu"))


def _reads(path: Path, load: Any) -> bool:
    """Whether a model is loaded; if not, the error must be documented and name the file."""
    try:
        load()
    except (ValueError, OSError) as error:
        assert str(path) in str(error), f"the error does not name the file: {error}"
        return False
    return True
