"""Memory-mapped weight files, whose tensors are views that are read when they are copied."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import operator
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from fiber.atomic_io import check_regular_file
from fiber.inert_pickle import MAX_DIMS
from fiber.messages import printable, shown

#: Dtypes of safetensors files.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


#: Maximum number of characters in the name of a tensor.
MAX_NAME = 512


class MappedFile:
    """Private memory map of a file. Writing to its tensors does not change the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            # A writable map, since torch warns about read-only ones.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes: Any = torch.frombuffer(self._map, dtype=torch.uint8).untyped_storage()

    def storage(self, first: int, size: int) -> torch.UntypedStorage:
        """Return `size` bytes from byte `first` without reading them."""
        return self._bytes[first : first + size]

    def release(self) -> None:
        """Drop the pages that have been read from this process; they are read again if needed.

        Changes to tensors of the file are lost.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class SafetensorsFile(NamedTuple):
    """Content of a safetensors file."""

    #: Tensors by name, as views of the mapped file.
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    #: `MappedFile.release`.
    release: Callable[[], None]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read the header of a safetensors file and map its tensors.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a regular file, damaged or truncated.
    """
    check_regular_file(path)
    try:
        # The library checks that the header is valid and the tensors neither overlap nor leave
        # gaps.
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        reason = printable(str(error), 200)
        raise ValueError(f"{path} is not a valid safetensors file: {reason}") from error
    mapped = MappedFile(path)
    with path.open("rb") as raw:
        (header_bytes,) = struct.unpack("<Q", raw.read(8))
        header = json.loads(raw.read(header_bytes))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        _check_entry(path, name, entry)
        (first, last), shape = entry["data_offsets"], entry["shape"]
        tensor = torch.empty(0, dtype=_DTYPES[entry["dtype"]])
        # Of each dimension, the product of the sizes after it.
        strides = [*itertools.accumulate(shape[:0:-1], operator.mul, initial=1)][::-1]
        storage = mapped.storage(8 + header_bytes + first, last - first)
        tensors[name] = tensor.set_(storage, 0, shape, strides[: len(shape)])
    return SafetensorsFile(tensors, metadata, mapped.release)


def is_tensor_name(name: object) -> bool:
    """Check that a value can be the name of a tensor: a printable string that is not too long."""
    return isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()


def check_tensor_name(path: Path, name: object) -> None:
    """Raise ValueError if a value of a file cannot be the name of a tensor."""
    if not is_tensor_name(name):
        raise ValueError(
            f"{path} contains a tensor called {shown(name)}; expected a name of at most"
            f" {MAX_NAME} printable characters"
        )


def _check_entry(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Check what the library does not: the name of a tensor, and a shape that torch can have."""
    check_tensor_name(path, name)
    if entry["dtype"] not in _DTYPES:
        raise ValueError(
            f"{path}: {name} has dtype {shown(entry['dtype'])}; expected one of"
            f" {', '.join(_DTYPES)}"
        )
    shape = entry["shape"]
    if len(shape) > MAX_DIMS:
        raise ValueError(
            f"{path}: {name} has {len(shape):,} dimensions; expected at most {MAX_DIMS}"
        )
    # A tensor without elements can have any other sizes.
    if math.prod(max(size, 1) for size in shape) >= 2**63:
        raise ValueError(
            f"{path}: {name} has shape {shown(shape)}; expected sizes whose product is below 2**63"
        )
