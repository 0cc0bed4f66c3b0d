"""Read and write tensors as files of torch.distributed.checkpoint (DCP).

Every rank writes the shards that it holds, and tensors that all ranks hold are written once. A
reader gives the shapes and the placement that it wants, so files written by one number of ranks and
strategy are read by any other.
"""

from __future__ import annotations

import errno
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load as load_files
from torch.distributed.checkpoint.state_dict_saver import save as save_files
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from fiber.atomic_io import system_error
from fiber.checkpoints.mapped_file import MappedFile
from fiber.checkpoints.torch_file import read_tensor_part
from fiber.messages import printable
from fiber.training.checkpoint.index import read_index
from fiber.training.checkpoint.layout import INDEX
from fiber.training.distributed.full_tensor import shard_like

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
        save_files(dict(tensors), storage_writer=_Writer(folder), process_group=group)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors in a folder.

    Raises:
        ValueError: if the index is damaged, or lists anything but tensors in this folder.
    """
    return {
        name: StoredTensor(entry.size, entry.properties.dtype)
        for name, entry in read_index(folder / INDEX).state_dict_metadata.items()
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
        entry = stored[name]
        if entry.shape != target.shape:
            if not entry.shape.numel() == target.numel() == 1:
                raise ValueError(
                    f"{folder}: {name} has shape {tuple(entry.shape)}, expected"
                    f" {tuple(target.shape)}"
                )
            target = torch.empty(entry.shape, dtype=entry.dtype)
        filled[name] = target
    with _causes(folder):
        load_files(filled, storage_reader=_Reader(folder))
    for name, target in targets.items():
        if filled[name] is not target:
            target.copy_(shard_like(filled[name], target))


@contextmanager
def _causes(folder: Path) -> Iterator[None]:
    """Raise what ended a read or a write on some rank, which DCP wraps.

    Ctrl-C, signals and a ValueError stay what they are; any other error is an OSError.
    """
    try:
        yield
    except CheckpointException as error:
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        for cause in causes.values():
            if not isinstance(cause, Exception):
                raise cause from error
        rank, cause = next(iter(causes.items()))
        if isinstance(cause, OSError | ValueError):
            raise cause from error
        # An error of the system or of torch, which may be gone at the next start.
        text = printable(str(cause).partition("\n")[0], 200)
        message = f"{folder}: rank {rank} failed: {type(cause).__name__} ({text})"
        raise OSError(errno.EIO, message) from error


class _Writer(FileSystemWriter):
    """Writer that raises the system's error, which is lost on the way to another rank."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise system_error(error) or error from None


class _Reader(FileSystemReader):
    """Reader that loads no pickle; those of the index and of tensors are read as data."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        metadata = read_index(Path(self.path) / INDEX)
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        locations = [self.storage_data[item.storage_index] for item in plan.items]
        names = dict.fromkeys(location.relative_path for location in locations)
        files = {name: MappedFile(Path(self.path) / name) for name in names}
        for item, location in zip(plan.items, locations, strict=True):
            file = files[location.relative_path]
            tensor = read_tensor_part(file, location.offset, location.length)
            target = planner.resolve_tensor(item).detach()
            ends = [first + n for first, n in zip(item.storage_offsets, item.lengths, strict=True)]
            if len(ends) != tensor.dim() or any(map(operator.gt, ends, tensor.shape)):
                raise ValueError(
                    f"{file.path}: {item.storage_index.fqn} has shape {tuple(tensor.shape)} at byte"
                    f" {location.offset}; expected {ends} or more"
                )
            for dim, (first, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                tensor = tensor.narrow(dim, first, length)
            target.copy_(tensor)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done
