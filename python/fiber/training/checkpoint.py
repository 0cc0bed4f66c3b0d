"""Models and checkpoints on disk. Whatever bears its final name is whole.

A finished model is `config.json`, `model.safetensors`, `tokenizer.json` and, with a VQA head,
`answers.json`, or, trained to detect classes, `classes.json`. A checkpoint is a folder
`step-00000500` with `model.safetensors`, `training.pt` (optimiser and moving average, loadable with
weights_only=True) and `data.json` (position in the data).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiber.atomic_io import PART, explain_write_errors, new_directory, read_json
from fiber.checkpoints.model_dir import _to_disk, load_state, write_tensors
from fiber.config_io import from_dict, to_dict

STEP = "step-"


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is: what data.json holds."""

    #: Steps that were trained.
    step: int = 0
    #: Seconds and pictures that they took.
    seconds: float = 0.0
    images: int = 0
    #: Samples that each task has taken from its stream, over all ranks.
    consumed: dict[str, int] = field(default_factory=dict)
    #: Records of each task; other data give other numbers.
    records: dict[str, int]
    #: The step that measured best so far (0: none was measured), and its score.
    best_step: int = 0
    best_score: float = 0.0
    #: What was measured so far, in order.
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int

    def position(self, expected: Position) -> Position:
        """Read how far the run was.

        Raises:
            ValueError: if its data had other numbers of records than `expected`.
        """
        found = from_dict(Position, read_json(self.folder / "data.json"))
        if found.records != expected.records:
            raise ValueError(
                f"{self.folder} was trained on other data: its tasks had"
                f" {found.records} records, these have {expected.records}"
            )
        return found

    def restore(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Fill the model; gives what training.pt holds."""
        load_state(model, self.folder / "model.safetensors")
        return torch.load(self.folder / "training.pt", map_location=device, weights_only=True)


def write_checkpoint(
    checkpoints: Path,
    *,
    model: nn.Module,
    training: dict[str, Any],
    position: Position,
    keep: int,
) -> Checkpoint:
    """Write a checkpoint under a temporary name, rename it, and remove the oldest beyond `keep`.

    Raises:
        OSError: if it cannot be written (a full disk): nothing of it is left, and every older
            checkpoint is as it was.
    """
    final = checkpoints / f"{STEP}{position.step:08d}"
    with explain_write_errors(final), new_directory(final) as part:
        write_tensors(model.state_dict(), part / "model.safetensors")
        with (part / "training.pt").open("wb") as file:
            torch.save(training, file)
            _to_disk(file)
        with (part / "data.json").open("w", encoding="utf-8") as file:
            json.dump(to_dict(position), file, indent=1)
            _to_disk(file)
    for old in checkpoints_in(checkpoints)[:-keep]:
        # Renamed first, so that a removal that is cut short leaves no half checkpoint.
        doomed = old.folder.rename(checkpoints / f"{PART}{old.folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
    return Checkpoint(folder=final, step=position.step)


def newest_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """Find the newest whole checkpoint of a run, if there is one."""
    found = checkpoints_in(checkpoints)
    return found[-1] if found else None


def checkpoints_in(checkpoints: Path) -> list[Checkpoint]:
    """List the whole checkpoints of a run, oldest first."""
    files = ("model.safetensors", "training.pt", "data.json")
    found = [
        Checkpoint(folder=folder, step=int(folder.name.removeprefix(STEP)))
        for folder in (checkpoints.glob(f"{STEP}*") if checkpoints.is_dir() else ())
        if folder.name.removeprefix(STEP).isdigit() and all((folder / f).is_file() for f in files)
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)
