"""Checkpoints of a training run.

A checkpoint is a folder `step-00000500` with `model.safetensors`, `training.pt` (optimizer, EMA and
objective state, loadable with weights_only=True), `data.json` (`Position`), and `SHA256SUMS` with
the checksums of these files, in the format of sha256sum. The folder is written under a temporary
name, so one with the final name is complete. For finished models see `fiber.checkpoints.model_dir`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from fiber.atomic_io import PART, explain_write_errors, new_directory, read_json
from fiber.checkpoints.model_dir import _to_disk, load_state, write_tensors
from fiber.config_io import from_dict, to_dict

STEP = "step-"
#: Files of a checkpoint; checkpoints written by earlier versions have no checksums.
FILES = ("model.safetensors", "training.pt", "data.json")
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Training progress: step, position in the data and validation state (data.json)."""

    #: Completed optimizer steps.
    step: int = 0
    #: Wall time and number of images so far.
    seconds: float = 0.0
    images: int = 0
    #: Consumed samples of each task, over all ranks.
    consumed: dict[str, int] = field(default_factory=dict)
    #: Number of records of each task, to detect changed data.
    records: dict[str, int]
    #: Step with the best validation score so far (0 if not validated yet), and its score.
    best_step: int = 0
    best_score: float = 0.0
    #: Validation scores so far, in order.
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    def position(self, records: dict[str, int]) -> Position:
        """Read the run's position.

        Raises:
            ValueError: if the stored record counts differ from `records`.
        """
        found = from_dict(Position, read_json(self.folder / "data.json"))
        if found.records != records:
            raise ValueError(
                f"{self.folder} was saved with different data: expected record counts"
                f" {found.records}, got {records}"
            )
        return found

    def damage(self) -> str | None:
        """Describe the damaged file, or return None if the checkpoint is intact."""
        sums = self.folder / CHECKSUMS
        if not sums.is_file():
            return _damage_without_checksums(self.folder)
        lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
        stored = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if set(stored) != set(FILES):
            found = ", ".join(stored) or "no files"
            return f"{CHECKSUMS} lists {found}; expected {', '.join(FILES)}"
        for name, digest in stored.items():
            if _sha256(self.folder / name) != digest:
                return f"the SHA-256 checksum of {name} differs from {CHECKSUMS}"
        return None

    def restore(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Load the weights into the model; return the contents of training.pt."""
        load_state(model, self.folder / "model.safetensors")
        return torch.load(self.folder / "training.pt", map_location=device, weights_only=True)


def write_checkpoint(
    checkpoints: Path,
    *,
    model: nn.Module,
    training: dict[str, Any],
    position: Position,
    keep: int,
) -> RunCheckpoint:
    """Write a checkpoint atomically and remove all but the newest `keep`.

    Raises:
        OSError: if the checkpoint cannot be written, for example because the disk is full; older
            checkpoints are kept.
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
        with (part / CHECKSUMS).open("w", encoding="utf-8") as file:
            file.writelines(f"{_sha256(part / name)}  {name}\n" for name in FILES)
            _to_disk(file)
    for old in checkpoints_in(checkpoints)[:-keep]:
        # Rename first, so that an interrupted removal leaves no partial checkpoint.
        doomed = old.folder.rename(checkpoints / f"{PART}{old.folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
    return RunCheckpoint(folder=final, step=position.step)


def newest_checkpoint(checkpoints: Path) -> RunCheckpoint | None:
    """Return the newest complete checkpoint of a run, or None if there is none."""
    return next(reversed(checkpoints_in(checkpoints)), None)


def best_steps(checkpoints: Path) -> set[int]:
    """Return the best steps recorded in the checkpoints of a run."""
    steps = set()
    for checkpoint in checkpoints_in(checkpoints):
        with suppress(
            ValueError, KeyError, TypeError
        ):  # A damaged checkpoint is reported when a run resumes.
            steps.add(int(read_json(checkpoint.folder / "data.json")["best_step"]))
    return steps


def newest_intact(checkpoints: Path) -> RunCheckpoint | None:
    """Return the newest intact checkpoint of a run, or None if there are no checkpoints.

    Damaged newer checkpoints are renamed with a warning.

    Raises:
        ValueError: if there are checkpoints and all of them are damaged; nothing is renamed.
    """
    damaged: list[tuple[RunCheckpoint, str]] = []
    for checkpoint in reversed(checkpoints_in(checkpoints)):
        reason = checkpoint.damage()
        if reason is None:
            break
        damaged.append((checkpoint, reason))
    else:
        if damaged:
            reasons = "; ".join(f"{each.folder.name}: {reason}" for each, reason in damaged)
            raise ValueError(
                f"{checkpoints} has no intact checkpoint ({reasons}); delete the damaged ones to"
                " start over"
            )
        return None
    for each, reason in damaged:
        aside = each.folder.with_name(f"damaged-{each.folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        each.folder.rename(aside)
        warnings.warn(
            f"checkpoint {each.folder} is damaged: {reason}; resuming after step"
            f" {checkpoint.step} instead. The damaged checkpoint was renamed to {aside.name}",
            RuntimeWarning,
            stacklevel=2,
        )
    return checkpoint


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage_without_checksums(folder: Path) -> str | None:
    """Check for damage using the zip archive's CRCs and the safetensors header."""
    name = ""
    try:
        for name, check in (("training.pt", _check_zip), ("data.json", read_json)):
            check(folder / name)
        name = "model.safetensors"
        with safetensors.safe_open(folder / name, framework="pt"):
            pass
    except (ValueError, OSError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        return f"{name}: {error}"
    return None


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"CRC mismatch in archive member {bad}")


def checkpoints_in(checkpoints: Path) -> list[RunCheckpoint]:
    """List a run's complete checkpoints, oldest first."""
    found = [
        RunCheckpoint(folder=folder, step=int(folder.name.removeprefix(STEP)))
        for folder in (checkpoints.glob(f"{STEP}*") if checkpoints.is_dir() else ())
        if folder.name.removeprefix(STEP).isdigit() and all((folder / f).is_file() for f in FILES)
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)
