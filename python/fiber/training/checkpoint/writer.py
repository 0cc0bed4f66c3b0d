"""Write checkpoints in the background, while training goes on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch import Tensor

from fiber.atomic_io import PART, explain_write_errors, flush_to_disk
from fiber.config_io import to_dict
from fiber.training.checkpoint.files import Staging, write_tensors
from fiber.training.checkpoint.folder import (
    Position,
    checkpoint_at,
    checkpoints_in,
    checksums,
    remove_checkpoint,
)
from fiber.training.checkpoint.layout import CHECKSUMS
from fiber.training.distributed.collectives import any_rank
from fiber.training.distributed.processes import Processes


class CheckpointWriter:
    """Writes one checkpoint at a time; every rank writes the shards that it holds.

    `save` copies the tensors and returns. A thread writes the copies under a temporary name, and
    rank 0 renames the folder when it is complete, then removes all but the newest `keep`.

    Args:
        checkpoints: folder of the run's checkpoints.
        processes: all ranks must make the same calls.
        keep: number of checkpoints to keep.
    """

    def __init__(self, checkpoints: Path, processes: Processes, *, keep: int) -> None:
        self.checkpoints, self.processes, self.keep = checkpoints, processes, keep
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._completed: list[int] = []
        self._saved_at = time.monotonic()
        self._group: dist.ProcessGroup | None = None
        if processes.world_size > 1:
            # The thread's collectives go beside those of the training steps, so they need a group
            # of their own, and on the CPU. It is created before the first step, since a rank that
            # waits for a new group does not notice that another one has died.
            self._group = processes.new_group("gloo" if dist.get_backend() == "nccl" else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the checkpoint that is being written, also if the run ends with an error.

        An error of several ranks may be that one of them is gone, so they do not wait.
        """
        if error is None:
            self.wait()
        elif self.processes.world_size == 1 and self._thread is not None:
            self._thread.join()

    def save(self, tensors: Mapping[str, Tensor], position: Position) -> None:
        """Start to write a checkpoint, after the previous one is complete.

        Args:
            tensors: those of `TrainingState.tensors`; sharded ones are not gathered.
            position: contents of data.json.

        Raises:
            OSError: if the previous checkpoint could not be written.
        """
        self.wait()
        self._saved_at = time.monotonic()
        copies = self._staging.copy(tensors)
        # A daemon: a process that ends because another rank died does not wait for that rank here.
        self._thread = threading.Thread(
            target=self._write, args=(copies, position), name="checkpoint", daemon=True
        )
        self._thread.start()

    def is_due(self, minutes: float) -> bool:
        """Check whether so much time has passed since the last `save`, by the clock of rank 0.

        All ranks must call this. It is False if `minutes` is 0.
        """
        if minutes == 0:
            return False
        passed = time.monotonic() - self._saved_at
        return any_rank(self.processes.is_first and passed >= 60 * minutes, self.processes)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete on this rank.

        Raises:
            OSError: if it could not be written, for example because the disk is full; older
                checkpoints are kept.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def completed(self) -> list[int]:
        """Return the steps of checkpoints that were completed since the last call; on rank 0."""
        completed, self._completed = self._completed, []
        return completed

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written; do not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def _write(self, tensors: dict[str, Tensor], position: Position) -> None:
        final = checkpoint_at(self.checkpoints, position.step).folder
        part = final.with_name(PART + final.name)
        try:
            with explain_write_errors(final):
                part.mkdir(parents=True, exist_ok=True)
                write_tensors(tensors, part, self._group)
                if self.processes.is_first:
                    self._complete(part, final, position)
        except BaseException as error:
            if self.processes.is_first:
                shutil.rmtree(part, ignore_errors=True)
            self._error = error

    def _complete(self, part: Path, final: Path, position: Position) -> None:
        """Write what says that all tensors are there; rename; remove old checkpoints."""
        with (part / "data.json").open("w", encoding="utf-8") as file:
            json.dump(to_dict(position), file, indent=1)
            flush_to_disk(file)
        with (part / CHECKSUMS).open("w", encoding="utf-8") as file:
            file.write(checksums(part).decode())
            flush_to_disk(file)
        part.rename(final)
        self._completed.append(position.step)
        for old in checkpoints_in(self.checkpoints)[: -self.keep]:
            remove_checkpoint(old)
