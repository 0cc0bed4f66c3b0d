"""Read the tensors of an untrusted checkpoint without executing any of its code.

`torch.load` is not used. Without weights_only it can execute code from the file. With
weights_only=True it rejects pickle protocols 4 and 5, and files that refer to classes outside
torch, such as Lightning checkpoints. Both formats of `torch.save` are supported: zip archives, and
the legacy format from before torch 1.6. `inert_pickle` parses the pickles. Tensors are views of the
memory-mapped file, so unused tensors are never read.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fiber.atomic_io import JSON_ERRORS, check_regular_file
from fiber.checkpoints.mapped_file import (
    MappedFile,
    check_tensor_name,
    read_safetensors,
)
from fiber.checkpoints.torch_archive import FilePart, NotACheckpointError, read_archive
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES
from fiber.inert_pickle import (
    HostileFileError,
    Inert,
    StorageRecord,
    TensorRecord,
    read_pickle,
    storage_key,
)
from fiber.messages import printable, shown, shown_names

#: Weights to read from a file that holds both the trained weights and their moving average.
Weights = Literal["raw", "ema"]

#: Supported suffixes of checkpoint files.
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")

#: Keys under which to look for the state dict, in order.
_STATE_KEYS: dict[Weights, tuple[str, ...]] = {
    "raw": ("state_dict", "model"),
    "ema": ("model_ema",),
}

#: Key of the run's settings in Lightning files, and in the metadata of safetensors files.
SETTINGS = "hyper_parameters"

#: Magic number of the legacy format, pickled at the start of the file.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C

#: Dtype of each storage class, by the class name that torch.save writes.
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

    #: Tensors in the file, by name.
    state: dict[str, Tensor]
    #: Config of the run that wrote the file, with published field names; empty if not stored.
    config: Mapping[str, Any]
    #: Frees the memory of tensors that have been read; see `MappedFile.release`.
    release: Callable[[], None]


class _TorchFile(NamedTuple):
    """Parsed torch.save file, with records in place of tensors."""

    path: Path
    content: Any
    #: Offset and size of each storage in bytes, by key.
    storages: Mapping[str, tuple[int, int]]


def read_checkpoint(path: Path, weights: Weights = "raw") -> Checkpoint:
    """Read a checkpoint written by safetensors or torch.save (torch 0.4 or later).

    Tensors are looked up under "state_dict", then under "model", then at the top level. The moving
    average is looked up under "model_ema". A `module.` prefix shared by all names is removed. The
    config is read from "config" in "hyper_parameters", which safetensors files store as JSON in
    their metadata, and files of nothing but tensors as a tensor of bytes (`settings_tensor`).

    Args:
        path: checkpoint file; the format is detected automatically.
        weights: "raw" (as in the published tools) or "ema" (moving average).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a regular file, is empty, truncated or in the wrong format,
            has no tensors, or tries to run code. The message gives the reason. Nothing in the file
            is ever executed.
    """
    if weights not in _STATE_KEYS:
        raise ValueError(f"weights: expected 'raw' or 'ema', got {shown(weights)}")
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    check_regular_file(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty; expected a checkpoint")
    if path.suffix == ".safetensors" or start[8:10] in (b'{"', b"{}"):
        content, metadata, release = read_safetensors(path)
        settings = _read_settings(path, metadata)
        state = _choose_tensors(path, content, weights)
    else:
        torch_file = _read_torch_file(path, start)
        content = torch_file.content
        settings = content.get(SETTINGS) if isinstance(content, Mapping) else None
        mapped = MappedFile(path)
        state = _make_tensors(torch_file, mapped, _choose_tensors(path, content, weights))
        release = mapped.release
        if isinstance(state.get(SETTINGS), Tensor):
            settings = _read_settings_tensor(path, state.pop(SETTINGS))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    config = settings.get("config") if isinstance(settings, Mapping) else None
    return Checkpoint(state, config if isinstance(config, Mapping) else {}, release)


def _read_settings(path: Path, metadata: Mapping[str, str]) -> Any:
    try:
        return json.loads(metadata.get(SETTINGS, "null"))
    except JSON_ERRORS as error:
        raise ValueError(
            f"{path}: {SETTINGS} in the metadata is not valid JSON: {error}"
        ) from error


def settings_tensor(settings: Mapping[str, Any]) -> Tensor:
    """Return settings as JSON in UTF-8: a (n,) uint8 tensor."""
    return torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)


def _read_settings_tensor(path: Path, tensor: Tensor) -> Any:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1 or len(tensor) > MAX_JSON_BYTES:
        raise ValueError(
            f"{path}: {SETTINGS} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected"
            f" at most {MAX_JSON_BYTES} bytes of JSON as a uint8 tensor"
        )
    try:
        return json.loads(tensor.numpy().tobytes())
    except JSON_ERRORS as error:
        raise ValueError(f"{path}: {SETTINGS} is not valid JSON: {error}") from error


def _read_torch_file(path: Path, start: bytes) -> _TorchFile:
    """Read a file written by torch.save in the zip or legacy format."""
    is_zip = start.startswith(b"PK")
    if not is_zip:
        _check_legacy_start(path, start)
    with _explained(path):
        return _read_zip(path) if is_zip else _read_legacy(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Re-raise any error of a reader from the block as one that names the file."""
    try:
        yield
    except HostileFileError as error:
        raise ValueError(
            f"{path} tries to run code when loaded: it calls {error}. The code was not run."
            " Do not load this file with other tools"
        ) from error
    except _FormatError:
        raise
    except Exception as error:
        # Parsers may raise any exception on damaged files; an invalid offset raises EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = printable(str(error).strip().partition("\n")[0], 200)
        raise ValueError(
            f"{path} is damaged or truncated: {type(error).__name__} ({reason})"
        ) from error


class _FormatError(ValueError):
    """Raised for an intact file that is not a checkpoint."""


def _read_zip(path: Path) -> _TorchFile:
    if not zipfile.is_zipfile(path):
        raise _FormatError(f"{path} is truncated: the zip archive has no valid central directory")
    with path.open("rb") as file:
        try:
            content, storages = read_archive(file, path.stat().st_size, str(path))
        except NotACheckpointError as error:
            raise _FormatError(f"{path} {error}") from None
    return _TorchFile(path, content, storages)


def read_tensor_part(mapped: MappedFile, first: int, size: int) -> Tensor:
    """Read a tensor that torch.save wrote to a part of a file, as a view of the mapped file.

    Args:
        mapped: the file.
        first: offset of the part in bytes.
        size: size of the part in bytes.

    Raises:
        ValueError: if the part is damaged, or does not contain exactly one tensor.
    """
    with _explained(mapped.path):
        with mapped.path.open("rb") as file:
            # torch takes the position of a file for its start.
            parts = [FilePart(file, first, size) for _ in range(2)]
            content, storages = read_archive(parts[0], size, parts[1])
        if not isinstance(content, TensorRecord):
            raise ValueError(f"expected a tensor at byte {first}, got {_kind(content)}")
        absolute = {key: (first + start, length) for key, (start, length) in storages.items()}
        torch_file = _TorchFile(mapped.path, content, absolute)
        return _make_tensors(torch_file, mapped, {"the tensor": content})["the tensor"]


def _check_legacy_start(path: Path, start: bytes) -> None:
    """Check that a file starts like the legacy format of torch.save."""
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} looks like a web page; the download probably failed")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer; fetch the file itself")
    if not start.startswith(b"\x80") or tarfile.is_tarfile(path):
        raise ValueError(
            f"{path} is not a checkpoint written by torch.save or safetensors; it starts with"
            f" {shown(start[:16])}; pass a model folder, or a file that ends in .pt, .pth, .ckpt or"
            " .safetensors"
        )


def _read_legacy(path: Path) -> _TorchFile:
    """Read a file in the legacy format.

    It contains five pickles (magic number, version, system, content and storage keys), followed by
    the storages.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if read_pickle(data).content != _LEGACY_NUMBER:
            raise _FormatError(f"{path} is a plain pickle; expected a file written by torch.save")
        read_pickle(data)
        if not read_pickle(data).content.get("little_endian", True):
            raise ValueError("unsupported byte order 'big'; expected 'little'")
        content, kinds = read_pickle(data)
        storages: dict[str, tuple[int, int]] = {}
        keys = read_pickle(data).content
        if not isinstance(keys, list):
            raise ValueError(f"expected a list of storage keys, got {type(keys).__name__}")
        for key in map(storage_key, keys):
            if key in storages or key not in kinds:
                raise ValueError(f"storage {key} is listed twice, or no tensor refers to it")
            (numel,) = struct.unpack("<q", data.read(8))
            size = numel * _dtype(kinds[key]).itemsize
            storages[key] = (data.tell(), size)
            data.seek(size, os.SEEK_CUR)
    return _TorchFile(path, content, storages)


def _choose_tensors(path: Path, content: Any, weights: Weights) -> dict[str, Any]:
    """Return the tensors, or their records, by name."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} contains an object of type {_kind(content)}; expected a dict of tensors"
        )
    keys = (key for key in _STATE_KEYS[weights] if isinstance(content.get(key), Mapping))
    key = next(keys, None)
    if key is None and weights == "ema":
        raise ValueError(
            f"{path} contains no moving average (key 'model_ema'); its keys are"
            f" {shown_names(content)}"
        )
    state = content if key is None else content[key]
    others = [name for name, value in state.items() if not isinstance(value, Tensor | TensorRecord)]
    if len(others) == len(state):
        raise ValueError(
            f"{path} contains no tensors under 'state_dict', 'model' or at the top level; its keys"
            f" are {shown_names(content)}"
        )
    if others:
        raise ValueError(f"{path} contains values other than tensors: {shown_names(others)}")
    for name in state:
        check_tensor_name(path, name)
    return dict(state)


def _make_tensors(
    file: _TorchFile, mapped: MappedFile, records: Mapping[str, TensorRecord]
) -> dict[str, Tensor]:
    """Create the tensors as views of the memory-mapped file."""
    storages: dict[str, torch.UntypedStorage] = {}
    state = {}
    for name, (storage, offset, shape, stride) in records.items():
        try:
            dtype = _dtype(storage)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from None
        first, stored_bytes = file.storages.get(storage.key, (0, 0))
        storage_bytes = storage.numel * dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        holds = 0 in shape or (last < storage.numel and math.prod(shape) < 2**48)
        if not holds or storage_bytes > stored_bytes or first + storage_bytes > mapped.size:
            raise ValueError(
                f"{file.path} is damaged or truncated: {name} has shape {shape}, stride {stride}"
                f" and offset {offset}, but its storage has {stored_bytes} bytes of {dtype}"
            )
        if storage.key not in storages:
            storages[storage.key] = mapped.storage(first, storage_bytes)
        tensor = torch.empty(0, dtype=dtype)
        state[name] = tensor.set_(storages[storage.key], offset, shape, stride)
    return state


def _dtype(storage: StorageRecord) -> torch.dtype:
    if storage.kind not in _DTYPES:
        raise ValueError(
            f"unsupported storage type {shown(storage.kind)}; expected one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[storage.kind]


def _kind(value: object) -> str:
    """Return the type of a value for a message, or the name that a pickle gives it."""
    return printable(value.name, 100) if isinstance(value, Inert) else type(value).__name__
