"""Memory-mapped weight files, whose tensors are views that are read when they are copied."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from fiber.atomic_io import check_regular_file

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
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    mapped = MappedFile(path)
    with path.open("rb") as raw:
        (header_bytes,) = struct.unpack("<Q", raw.read(8))
        header = json.loads(raw.read(header_bytes))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: {name} has dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}"
            )
        (first, last), shape = entry["data_offsets"], entry["shape"]
        tensor = torch.empty(0, dtype=_DTYPES[entry["dtype"]])
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        storage = mapped.storage(8 + header_bytes + first, last - first)
        tensors[name] = tensor.set_(storage, 0, tuple(shape), tuple(strides))
    return SafetensorsFile(tensors, metadata, mapped.release)
