"""Read the index of a checkpoint's tensors, which torch.distributed.checkpoint (DCP) pickles.

The pickle is not loaded: `inert_pickle` gives records, and DCP's objects are made from what they
hold. An index that does not describe each tensor by chunks that are in the folder is refused, since
the memory of a tensor is allocated before it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from fiber.atomic_io import check_regular_file
from fiber.checkpoints.mapped_file import MAX_NAME, is_tensor_name
from fiber.inert_pickle import MAX_DIMS, Inert, ObjectRecord, read_pickle
from fiber.messages import printable, shown
from fiber.training.checkpoint.layout import SUFFIX

_METADATA = "torch.distributed.checkpoint.metadata"
#: Classes of an index whose objects are used. Others, such as layouts, have no effect.
_SIZE, _CLASSES = (
    "torch.Size",
    {
        Metadata: f"{_METADATA}.Metadata",
        MetadataIndex: f"{_METADATA}.MetadataIndex",
        TensorStorageMetadata: f"{_METADATA}.TensorStorageMetadata",
        TensorProperties: f"{_METADATA}.TensorProperties",
        ChunkStorageMetadata: f"{_METADATA}.ChunkStorageMetadata",
        _StorageInfo: "torch.distributed.checkpoint.filesystem._StorageInfo",
    },
)
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def read_index(path: Path) -> Metadata:
    """Read an index; its files must be next to it.

    Raises:
        OSError: if the index cannot be read.
        ValueError: if it is damaged, contains anything but tensors, or does not fit the files next
            to it. The message names the tensor.
    """
    check_regular_file(path)
    try:
        with path.open("rb") as file:
            # Each opcode has a byte or more, so that time is linear in the size of the file.
            content = read_pickle(
                file,
                objects={_SIZE, *_CLASSES.values()},
                max_operations=path.stat().st_size + 1,
            ).content
    except OSError:
        raise
    except Exception as error:
        reason = printable(str(error), 200)
        raise ValueError(f"{path} is damaged: {type(error).__name__} ({reason})") from error
    try:
        return _Index(path.parent).read(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Index:
    """Makes DCP's objects from the records of an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Size of each file, and how many of its bytes no tensor has been found in so far.
        self._file_bytes: dict[str, int] = {}
        self._free_bytes: dict[str, int] = {}

    def read(self, content: Any) -> Metadata:
        state = _state(content, Metadata)
        entries, storage = state.get("state_dict_metadata"), state.get("storage_data")
        if not isinstance(entries, dict) or not isinstance(storage, dict):
            raise ValueError(
                "expected tensors and their places as dicts, got"
                f" {type(entries).__name__} and {type(storage).__name__}"
            )
        locations = dict(self._location(index, info) for index, info in storage.items())
        tensors: dict[str, Any] = {}
        chunks = 0
        for name, entry in entries.items():
            _check_name(name)
            try:
                tensors[name], count = self._tensor(name, entry, locations, len(locations) - chunks)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            chunks += count
        if chunks != len(storage):
            raise ValueError(f"has {len(storage):,} parts of tensors; expected {chunks:,}")
        return Metadata(tensors, storage_data=locations, storage_meta=StorageMeta())

    def _location(self, index: Any, info: Any) -> tuple[MetadataIndex, _StorageInfo]:
        """Read where a chunk is: in a file next to the index, in bytes of its own."""
        key, location = _state(index, MetadataIndex), _state(info, _StorageInfo)
        name = _check_name(key.get("fqn"))
        file: Any = location.get("relative_path")
        first: Any = location.get("offset")
        length: Any = location.get("length")
        if not isinstance(file, str) or not file.endswith(SUFFIX) or len(file) > MAX_NAME:
            raise ValueError(f"{name} is in file {shown(file)}; expected a name such as 0{SUFFIX}")
        # Compared as a string, and also as another system would read it.
        if file.startswith("..") or not file.isprintable() or set(file) & set("/\\:"):
            raise ValueError(f"{name} is in file {shown(file)}, outside of the folder")
        if location.get("transform_descriptors"):
            raise ValueError(f"{name} is compressed or encrypted, which is not supported")
        if not (_is_count(first) and _is_count(length)):
            raise ValueError(
                f"{name} is at bytes {shown(first)} to {shown(length)} more; expected integers"
            )
        if file not in self._file_bytes:
            path = self._folder / file
            check_regular_file(path)
            self._file_bytes[file] = self._free_bytes[file] = path.stat().st_size
        self._free_bytes[file] -= length
        if first + length > self._file_bytes[file] or self._free_bytes[file] < 0:
            raise ValueError(
                f"{name} has bytes {first:,} to {first + length:,} of {file}, which are beyond its"
                " end or those of another tensor"
            )
        offset = _size(key.get("offset"))
        if any(offset[1:]):
            # Chunks are of rows. Many tuples of other integers have one hash, and as keys of a dict
            # take quadratic time.
            raise ValueError(
                f"{name} has a part at {shown(tuple(offset))}; expected 0 in all dimensions but the"
                " first"
            )
        return MetadataIndex(name, offset), _StorageInfo(file, first, length)

    def _tensor(
        self,
        name: str,
        entry: Any,
        locations: Mapping[MetadataIndex, _StorageInfo],
        most_chunks: int,
    ) -> tuple[TensorStorageMetadata, int]:
        """Read a tensor, and count its chunks."""
        state = _state(entry, TensorStorageMetadata)
        properties = _record(state.get("properties"), TensorProperties).state
        dtype = properties[0] if isinstance(properties, tuple) and properties else None
        if not isinstance(dtype, Inert) or dtype.name not in _DTYPES:
            raise ValueError(f"has dtype {shown(dtype)}; expected one of torch")
        kind, size = _DTYPES[dtype.name], _size(state.get("size"))
        chunk_records = state.get("chunks")
        # One list can be that of many tensors, but each of its chunks is in one place.
        if not isinstance(chunk_records, list) or len(chunk_records) > most_chunks:
            raise ValueError("has parts without a place")
        chunks = [_chunk(each) for each in chunk_records]
        _check_cover(size, chunks)
        for chunk in chunks:
            location = locations.get(MetadataIndex(name, chunk.offsets))
            if location is None:
                raise ValueError(f"the part at {tuple(chunk.offsets)} has no place")
            if location.length < math.prod(chunk.sizes) * kind.itemsize:
                raise ValueError(
                    f"the part of size {tuple(chunk.sizes)} has {location.length:,} bytes of {kind}"
                )
        return TensorStorageMetadata(TensorProperties(dtype=kind), size, chunks), len(chunks)


def _record(value: Any, kind: type) -> ObjectRecord:
    if not isinstance(value, ObjectRecord) or value.name != _CLASSES[kind]:
        got = value.name if isinstance(value, ObjectRecord | Inert) else type(value).__name__
        raise ValueError(f"expected {_CLASSES[kind]}, got {printable(got, 100)}")
    return value


def _state(value: Any, kind: type) -> dict[Any, Any]:
    """Return the fields of an object."""
    state = _record(value, kind).state
    if not isinstance(state, dict):
        raise ValueError(f"expected the fields of {_CLASSES[kind]}, got {type(state).__name__}")
    return state


def _size(value: Any) -> torch.Size:
    arguments = value.arguments if isinstance(value, ObjectRecord) and value.name == _SIZE else ()
    sizes = arguments[0] if len(arguments) == 1 else None
    if not isinstance(sizes, tuple) or len(sizes) > MAX_DIMS or not all(map(_is_count, sizes)):
        raise ValueError(f"expected a size of at most {MAX_DIMS} integers, got {shown(sizes)}")
    if math.prod(max(each, 1) for each in sizes) >= 2**48:
        raise ValueError(f"expected a size of less than 2**48 elements, got {shown(sizes)}")
    return torch.Size(sizes)


def _chunk(value: Any) -> ChunkStorageMetadata:
    state = _state(value, ChunkStorageMetadata)
    return ChunkStorageMetadata(_size(state.get("offsets")), _size(state.get("sizes")))


def _check_cover(size: torch.Size, chunks: list[ChunkStorageMetadata]) -> None:
    """Check that chunks follow one another in the first dimension, as strategies write them."""
    end = 0
    for chunk in sorted(chunks, key=lambda chunk: (chunk.offsets, chunk.sizes)):
        follows = len(chunk.offsets) == len(chunk.sizes) == len(size)
        follows &= chunk.sizes[1:] == size[1:] and not any(chunk.offsets[1:])
        if not follows or chunk.offsets[:1] not in ((), (end,)):
            raise ValueError(
                f"the part at {tuple(chunk.offsets)} of size {tuple(chunk.sizes)} does not follow"
                f" another part of the size {tuple(size)}"
            )
        end += chunk.sizes[0] if size else 1
    if end != (size[0] if size else 1):
        raise ValueError(f"has parts of {end} of {size[0] if size else 1} rows")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_name(name: Any) -> str:
    if not is_tensor_name(name):
        got = f"<{name.name}>" if isinstance(name, Inert) else shown(name)
        raise ValueError(
            f"a tensor is called {got}; expected a name of at most {MAX_NAME} printable characters"
        )
    return name
