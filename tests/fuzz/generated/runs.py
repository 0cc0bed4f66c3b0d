"""Documents of a run's checkpoint: its index, the tensors that it refers to, its checksums."""

from __future__ import annotations

import collections
import hashlib
import io
import pathlib
import pickle
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed.checkpoint.filesystem as filesystem
import torch.distributed.checkpoint.metadata as metadata

from fiber.training.checkpoint.files import read_tensors, stored_tensors
from fiber.training.checkpoint.folder import RunCheckpoint
from fiber.training.checkpoint.layout import CHECKSUMS, INDEX
from tests.fuzz.generated.checkpoints import saved
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.encodings import from_pickle, to_pickle
from tests.fuzz.generated.text_tables import tsv

#: Name of the file of an index's tensors.
_SHARD = "__0_0.distcp"
_NAME = "model/w"
#: Modules whose classes an index may name.
_MODULES: tuple[ModuleType, ...] = (pathlib, metadata, filesystem, collections, torch.serialization)


@cache
def _attributes() -> dict[Any, dict[str, Any]]:
    """The attributes of every class that an index may name, as they were at first."""
    classes = [each for module in _MODULES for each in vars(module).values()]
    classes += [torch.Size, torch.dtype, torch.layout, torch.Tensor]
    return {each: _attributes_of(each) for each in classes if isinstance(each, type)}


def _attributes_of(kind: type) -> dict[str, Any]:
    # Pickling an object of a class, which only tests do, leaves this.
    return {name: value for name, value in vars(kind).items() if name != "__slotnames__"}


def check_attributes() -> None:
    """Check that no class that an index may name has changed in this process.

    Raises:
        AssertionError: if one has; the message names it.
    """
    changed = [each for each, found in _attributes().items() if _attributes_of(each) != found]
    assert not changed, f"classes of this process have changed: {changed}"


def _index(count: int) -> Any:
    properties = metadata.TensorProperties(dtype=torch.float32)
    size, start = torch.Size([2, 3]), torch.Size([0, 0])
    tensor = metadata.TensorStorageMetadata(
        properties, size, [metadata.ChunkStorageMetadata(start, size)]
    )
    names = [f"model/w{number}" for number in range(count + 1)]
    places = {
        metadata.MetadataIndex(name, start): filesystem._StorageInfo(_SHARD, 24 * n, 24)
        for n, name in enumerate(names)
    }
    return _pickled(metadata.Metadata(dict.fromkeys(names, tensor), storage_data=places))


def _chunks(count: int) -> Any:
    """The index of one tensor in many parts."""
    size = torch.Size([1, 3])
    starts = [torch.Size([row, 0]) for row in range(count + 1)]
    tensor = metadata.TensorStorageMetadata(
        metadata.TensorProperties(dtype=torch.float32),
        torch.Size([len(starts), 3]),
        [metadata.ChunkStorageMetadata(start, size) for start in starts],
    )
    places = {
        metadata.MetadataIndex(_NAME, start): filesystem._StorageInfo(_SHARD, 12 * n, 12)
        for n, start in enumerate(starts)
    }
    return _pickled(metadata.Metadata({_NAME: tensor}, storage_data=places))


def _pickled(index: metadata.Metadata) -> Any:
    index.storage_meta = metadata.StorageMeta()
    return from_pickle(pickle.dumps(index))


def _prepare(folder: Path) -> None:
    """As many bytes as the tensors of an index have; they are not read."""
    _attributes()
    (folder / _SHARD).write_bytes(bytes(1 << 20))


def _read_index(folder: Path) -> None:
    try:
        stored_tensors(folder)
    finally:
        check_attributes()


def _write_tensor(tree: Any, folder: Path) -> None:
    """Write the file of one tensor, and an index of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data.pkl", to_pickle(tree))
        archive.writestr("archive/data/0", bytes(24))
    (folder / _SHARD).write_bytes(file.getvalue())
    size, start = torch.Size([2, 3]), torch.Size([0, 0])
    places = {
        metadata.MetadataIndex(_NAME, start): filesystem._StorageInfo(
            _SHARD, 0, len(file.getvalue())
        )
    }
    tensor = metadata.TensorStorageMetadata(
        metadata.TensorProperties(dtype=torch.float32),
        size,
        [metadata.ChunkStorageMetadata(start, size)],
    )
    (folder / INDEX).write_bytes(pickle.dumps(metadata.Metadata({_NAME: tensor}, None, places)))


def _read_tensor(folder: Path) -> None:
    try:
        read_tensors(folder, {_NAME: torch.zeros(2, 3)})
    finally:
        check_attributes()


def _colliding(count: int) -> Any:
    """The index of one tensor in four times as many parts, whose offsets all have one hash.

    An integer and its sum with a multiple of 2^61 - 1 have the same hash.
    """
    prime, dims = 2**61 - 1, 12
    digits = ([number >> 2 * dim & 3 for dim in range(dims)] for number in range(4 * count + 1))
    offsets = [torch.Size([digit * prime for digit in each]) for each in digits]
    assert len({hash(each) for each in offsets}) == 1
    size = torch.Size([1] * dims)
    tensor = metadata.TensorStorageMetadata(
        metadata.TensorProperties(dtype=torch.float32), size, []
    )
    places = {
        metadata.MetadataIndex(_NAME, each): filesystem._StorageInfo(_SHARD, 4 * n, 4)
        for n, each in enumerate(offsets)
    }
    return _pickled(metadata.Metadata({_NAME: tensor}, storage_data=places))


_FILES = (_SHARD, INDEX, "data.json")


def _checksums(count: int) -> list[list[str]]:
    """Lines of a checkpoint's checksums, and of those of files that it does not have."""
    empty = hashlib.sha256().hexdigest()
    lines = [[empty, "", name] for name in _FILES]
    return lines + [[empty, "", f"other{number}"] for number in range(count)]


def _write_checksums(content: Any, folder: Path) -> None:
    text = tsv(content).replace("\t", " ")
    (folder / CHECKSUMS).write_bytes(text.encode("utf-8", "surrogatepass"))


def _write_empty_files(folder: Path) -> None:
    for name in _FILES:
        (folder / name).touch()


def _read_checksums(folder: Path) -> None:
    """Check a checkpoint; what is damaged is the reason in an error, as of `newest_intact`."""
    if (reason := RunCheckpoint(folder=folder, step=0).damage(with_best=False)) is not None:
        raise ValueError(f"{folder}: {reason}")


def documents() -> list[Document]:
    """The index of a checkpoint, a file of its tensors, and its checksums."""

    def write(tree: Any, folder: Path) -> None:
        (folder / INDEX).write_bytes(to_pickle(tree))

    def document(name: str, tree: Any, write: Any, read: Any, growing: Any = None) -> Document:
        return Document(
            "runs", name, tree, write, read, _prepare, is_pickle=True, growing=growing or {}
        )

    return [
        document(INDEX, _index, write, _read_index),
        document(
            f"{INDEX} of parts", _chunks, write, _read_index, {"offsets of one hash": _colliding}
        ),
        document(_SHARD, lambda _: saved(torch.ones(2, 3)), _write_tensor, _read_tensor),
        Document(
            "runs", CHECKSUMS, lambda _: _checksums(0), _write_checksums, _read_checksums,
            _write_empty_files, growing={"other files": _checksums},
        ),
    ]  # fmt: skip
