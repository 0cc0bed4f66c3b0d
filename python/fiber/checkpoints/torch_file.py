"""Read the tensors of an untrusted checkpoint without executing anything in it.

Files of `torch.save` are read by this module and `inert_pickle`, in either container: the zip
archive of torch 1.6 and later, and the file of consecutive pickles before it. Tensors are views of
the memory-mapped file, so that a tensor that nobody uses is never read.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fiber.checkpoints.inert_pickle import (
    HostileFileError,
    Inert,
    StorageRecord,
    TensorRecord,
    read_pickle,
)

#: Which weights of a file that holds both the trained ones and their moving average.
Weights = Literal["raw", "ema"]

#: Suffixes of checkpoint files.
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")

#: Keys under which a file holds its tensors, in the order in which they are looked for.
_PLACES: dict[Weights, tuple[str, ...]] = {"raw": ("state_dict", "model"), "ema": ("model_ema",)}

#: Key under which Lightning writes the settings of a run; of safetensors, a key of the metadata.
SETTINGS = "hyper_parameters"

#: First pickle of a file of torch.save before torch 1.6.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C

#: Element types by the name of the storage class that torch.save writes.
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class Checkpoint(NamedTuple):
    """Tensors and configuration of a checkpoint."""

    #: Tensors by name.
    state: dict[str, Tensor]
    #: Settings of the run that wrote it, by their published names; empty if the file has none.
    config: Mapping[str, Any]


class _TorchFile(NamedTuple):
    """Content of a file of torch.save, its tensors not yet made."""

    path: Path
    content: Any
    #: First byte and number of bytes of each storage by its key.
    storages: Mapping[str, tuple[int, int]]


def read_state(path: Path, weights: Weights = "raw") -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, see `read_checkpoint`."""
    return read_checkpoint(path, weights).state


def read_checkpoint(path: Path, weights: Weights = "raw") -> Checkpoint:
    """Read a checkpoint: safetensors, or a file of torch.save of any version since 0.4.

    Tensors are looked for under "state_dict" and "model" (the moving average under "model_ema"),
    else at the top; a prefix `module.` that all names have is dropped. The config is looked for
    under "hyper_parameters", "config"; of safetensors that is JSON in the metadata.

    Args:
        path: the file; its content determines how it is read.
        weights: "raw", as the published tools do, or "ema".

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is empty, truncated, of another kind, holds no tensors or tries to run
            code. Nothing in the file is run.
    """
    if weights not in _PLACES:
        raise ValueError(f"weights: expected raw or ema, got {weights!r}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".safetensors" or start[8:10] in (b'{"', b"{}"):
        content, settings = _read_safetensors(path)
        state = _choose_tensors(path, content, weights)
    else:
        torch_file = _read_torch_file(path, start)
        content = torch_file.content
        settings = content.get(SETTINGS) if isinstance(content, Mapping) else None
        state = _make_tensors(torch_file, _choose_tensors(path, content, weights))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    config = settings.get("config") if isinstance(settings, Mapping) else None
    return Checkpoint(state, config if isinstance(config, Mapping) else {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors, it is cut off, damaged or of another kind:"
            f" {error}"
        ) from error
    try:
        return tensors, json.loads(metadata.get(SETTINGS, "null"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {SETTINGS} in its metadata is not JSON: {error}") from error


def _read_torch_file(path: Path, start: bytes) -> _TorchFile:
    """Read a zip archive or a legacy file of torch.save."""
    is_zip = start.startswith(b"PK")
    if not is_zip:
        _check_legacy_start(path, start)
    try:
        return _read_zip(path) if is_zip else _read_legacy(path)
    except HostileFileError as error:
        raise ValueError(
            f"{path} tries to run code when it is loaded: {error}; nothing of it was run. Do not"
            " load this file with other tools"
        ) from error
    except _OtherKindError:
        raise
    except Exception as error:
        # Damage shows as errors of many kinds, among them a seek to where no file can be.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path} is damaged or cut off: {_said(error)}") from error


class _OtherKindError(ValueError):
    """A whole file that is not a checkpoint."""


def _read_zip(path: Path) -> _TorchFile:
    if not zipfile.is_zipfile(path):
        raise _OtherKindError(
            f"{path} is cut off: it begins as a zip archive, but has no directory at its end"
        )
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        # A record is named by its path below the archive's only folder.
        records = {each.filename.partition("/")[2]: each for each in archive.infolist()}
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in records):
            raise _OtherKindError(
                f"{path} is a TorchScript program; expected weights, as torch.save writes"
            )
        if "data.pkl" not in records:
            raise _OtherKindError(
                f"{path} is a zip archive, but none of torch.save: data.pkl is missing"
            )
        if len(records) < len(archive.infolist()):
            raise ValueError("it holds a file twice")
        for name, record in records.items():
            stored = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
            if not stored or record.compress_size != record.file_size:
                raise ValueError(f"{name} is compressed or encrypted; torch.save stores its files")
        byteorder = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        if byteorder.decode("ascii") != sys.byteorder:
            raise ValueError(f"its numbers are {byteorder.decode('ascii')}-endian")
        content, _ = read_pickle(io.BytesIO(archive.read(records["data.pkl"])))
        storages = {
            name.removeprefix("data/"): (_first_byte(file, record), record.file_size)
            for name, record in records.items()
            if name.startswith("data/")
        }
    return _TorchFile(path, content, storages)


def _first_byte(file: Any, record: zipfile.ZipInfo) -> int:
    """Find the content of a stored file of an archive, which comes after its own header."""
    file.seek(record.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"no header of {record.filename} at byte {record.header_offset}")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return record.header_offset + 30 + name_bytes + extra_bytes


def _check_legacy_start(path: Path, start: bytes) -> None:
    """Check that a file begins as torch.save wrote before torch 1.6."""
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} looks like a web page; the download went wrong")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS; fetch the file itself")
    if not start.startswith(b"\x80") or tarfile.is_tarfile(path):
        raise ValueError(
            f"{path} is not a checkpoint: it begins with {start[:16]!r}; expected what torch.save"
            " or safetensors write"
        )


def _read_legacy(path: Path) -> _TorchFile:
    """Read pickles of a number, version, system, content and storage keys, and the storages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if read_pickle(data).content != _LEGACY_NUMBER:
            raise _OtherKindError(f"{path} is a plain pickle; expected what torch.save writes")
        read_pickle(data)
        if not read_pickle(data).content.get("little_endian", True):
            raise ValueError("its numbers are big-endian")
        content, kinds = read_pickle(data)
        storages: dict[str, tuple[int, int]] = {}
        for key in map(str, read_pickle(data).content):
            (numel,) = struct.unpack("<q", data.read(8))
            size = numel * _dtype(kinds[key]).itemsize
            storages[key] = (data.tell(), size)
            data.seek(size, os.SEEK_CUR)
    return _TorchFile(path, content, storages)


def _choose_tensors(path: Path, content: Any, weights: Weights) -> dict[str, Any]:
    """Find the tensors, or their records, by name."""
    if not isinstance(content, Mapping):
        kind = content.name if isinstance(content, Inert) else type(content).__name__
        raise ValueError(f"{path} holds a {kind}, not tensors by name")
    place = next((key for key in _PLACES[weights] if isinstance(content.get(key), Mapping)), None)
    if place is None and weights == "ema":
        raise ValueError(
            f"{path} holds no moving average (key 'model_ema'); its keys are {_listed(content)}"
        )
    state = content if place is None else content[place]
    others = [
        str(name) for name, value in state.items() if not isinstance(value, Tensor | TensorRecord)
    ]
    if not state or len(others) == len(state):
        raise ValueError(
            f"{path} holds no tensors under 'state_dict', 'model' or at the top; its keys are"
            f" {_listed(content)}"
        )
    if others:
        raise ValueError(
            f"{path} holds values that are not tensors among its tensors: {_listed(others)}"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _make_tensors(file: _TorchFile, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
    """Make tensors as views of the mapped file."""
    size = file.path.stat().st_size
    mapped = torch.UntypedStorage.from_file(str(file.path), shared=False, nbytes=size)
    storages: dict[str, torch.UntypedStorage] = {}
    state = {}
    for name, (storage, offset, shape, stride) in records.items():
        dtype = _dtype(storage)
        first, stored_bytes = file.storages.get(storage.key, (0, 0))
        storage_bytes = storage.numel * dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        holds = 0 in shape or (last < storage.numel and math.prod(shape) < 2**48)
        if not holds or storage_bytes > stored_bytes or first + storage_bytes > size:
            raise ValueError(
                f"{file.path} is damaged or cut off: {name} has shape {shape}, stride {stride} and"
                f" offset {offset}, but {stored_bytes} bytes of {dtype} are stored"
            )
        if storage.key not in storages:
            storages[storage.key] = mapped[first : first + storage_bytes]
        tensor = torch.empty(0, dtype=dtype)
        state[name] = tensor.set_(storages[storage.key], offset, shape, stride)
    return state


def _dtype(storage: StorageRecord) -> torch.dtype:
    if storage.kind not in _DTYPES:
        raise ValueError(f"a storage of type {storage.kind}; expected {', '.join(_DTYPES)}")
    return _DTYPES[storage.kind]


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def _said(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
