"""Read and write tensors as files of torch.distributed.checkpoint (DCP).

Every rank writes the shards that it holds, and tensors that all ranks hold are written once. A
reader gives the shapes and the placement that it wants, so files written by one number of ranks and
strategy are read by any other.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load as load_files
from torch.distributed.checkpoint.state_dict_saver import save as save_files

from fiber.training.checkpoint.layout import INDEX
from fiber.training.distributed.full_tensor import shard_like

#: What an index consists of, besides dtypes. It is a pickle, and others are not loaded.
_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}

# A single process needs no process group.
warnings.filterwarnings("ignore", "torch.distributed is .*single process")
# torch 2.6 warns of itself.
warnings.filterwarnings("ignore", "TypedStorage is deprecated")


@dataclass(frozen=True)
class StoredTensor:
    """Shape and dtype of a whole tensor in files."""

    shape: torch.Size
    dtype: torch.dtype


class Staging:
    """Copies of tensors on the CPU, which a later step does not change; memory is reused."""

    def __init__(self) -> None:
        self._stager = BlockingAsyncStager(cache_staged_state_dict=True)
        self._copies: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, which are valid until the next call."""
        if any(tensor.is_cuda for tensor in tensors.values()):
            return self._stager.stage(dict(tensors))
        if self._copies.keys() != tensors.keys():
            self._copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        else:
            for name, tensor in tensors.items():
                self._copies[name].copy_(tensor)
        return self._copies


def write_tensors(
    tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup | None = None
) -> None:
    """Write tensors into a folder; all ranks of `group` must call this.

    Raises:
        OSError: on every rank, if a file of any rank cannot be written.
    """
    with _causes(folder):
        save_files(dict(tensors), storage_writer=FileSystemWriter(folder), process_group=group)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors in a folder.

    Raises:
        ValueError: if the index is damaged, or lists anything but tensors in this folder.
    """
    return {
        name: StoredTensor(entry.size, entry.properties.dtype)
        for name, entry in _Reader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, which may be sharded, from the files of a folder; all ranks must call this.

    A tensor with one element may be stored with another number of dimensions: where it is sharded,
    a 0-D parameter has one.

    Raises:
        ValueError: if a tensor is missing, or has another shape.
        OSError: on every rank, if a file cannot be read on any rank.
    """
    stored = stored_tensors(folder)
    missing = sorted(targets.keys() - stored.keys())
    if missing:
        raise ValueError(f"{folder} has no tensor {', '.join(missing[:4])}")
    filled: dict[str, Tensor] = {}
    for name, target in targets.items():
        found = stored[name]
        if found.shape != target.shape:
            if not found.shape.numel() == target.numel() == 1:
                raise ValueError(
                    f"{folder}: {name} has shape {tuple(found.shape)}, expected"
                    f" {tuple(target.shape)}"
                )
            target = torch.empty(found.shape, dtype=found.dtype)
        filled[name] = target
    with _causes(folder):
        load_files(filled, storage_reader=_Reader(folder))
    for name, target in targets.items():
        if filled[name] is not target:
            target.copy_(shard_like(filled[name], target))


@contextmanager
def _causes(folder: Path) -> Iterator[None]:
    """Raise what ended a read or a write on some rank, which DCP wraps.

    Ctrl-C and signals stay what they are; any other error is an OSError.
    """
    try:
        yield
    except CheckpointException as error:
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        for cause in causes.values():
            if not isinstance(cause, Exception):
                raise cause from error
        rank, cause = next(iter(causes.items()))
        if isinstance(cause, OSError):
            raise cause from error
        raise OSError(f"{folder}: rank {rank} failed: {cause!r}") from error


class _Reader(FileSystemReader):
    """Reader that loads no class but those of an index."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        path = Path(self.path) / INDEX
        try:
            with path.open("rb") as file:
                found = _Unpickler(file).load()
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is damaged: {error!r:.200}") from error
        if not isinstance(found, Metadata):
            raise ValueError(f"{path} is no index of tensors")
        entries = found.state_dict_metadata.items()
        if other := [name for name, e in entries if not isinstance(e, TensorStorageMetadata)]:
            raise ValueError(f"{path}: {other[0]} is not a tensor")
        for place in (found.storage_data or {}).values():
            if Path(place.relative_path).name != str(place.relative_path):
                raise ValueError(f"{path} refers to {place.relative_path}, outside of its folder")
        if getattr(found, "storage_meta", None) is None:
            found.storage_meta = StorageMeta()
        assert found.storage_meta is not None
        found.storage_meta.load_id = self.load_id
        return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an index")
        return super().find_class(module, name)
