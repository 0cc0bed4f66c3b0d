"""Checkpoints of a training run.

A checkpoint is a folder `step-00000500` with the files of torch.distributed.checkpoint (weights,
optimizer, EMA and objective state; see `TrainingState`), `data.json` (`Position`), and `SHA256SUMS`
with the checksums of these files, in the format of sha256sum. The folder is written under a
temporary name, so one with the final name is complete. The best validated weights are next to it,
as `best-00000500.safetensors`. For finished models see `fiber.checkpoints.model_dir`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch

from fiber.atomic_io import (
    PART,
    read_json,
)
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES
from fiber.checkpoints.weights import list_problems
from fiber.config_io import from_dict
from fiber.messages import printable, shown, shown_names
from fiber.training.checkpoint.layout import BEST, CHECKSUMS, INDEX, STEP, SUFFIX

if TYPE_CHECKING:
    from fiber.training.checkpoint.state import TrainingState

#: Name in `Position.records` and `Position.fingerprints` of the records that are validated on.
VALIDATION = "validation"
#: Counts of data.json are below this bound.
_MAX_COUNT = 2**63
#: Maximum number of characters of the name of a file, as in Linux, and of an error that is quoted.
_MAX_FILE_NAME, _MAX_REASON = 255, 400
#: Errors of readers of damaged or foreign files, and of states that do not fit.
_READ_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, EOFError),
    *(zipfile.BadZipFile, safetensors.SafetensorError),
)


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
    #: Number of records of each task, and of `VALIDATION`.
    records: dict[str, int]
    #: `fiber.training.data.fingerprint` of the same records.
    fingerprints: dict[str, str]
    #: `RunFolder.vocabulary_sha256`.
    vocabulary_sha256: str
    #: Step with the best validation score so far (0 if not validated yet), its score, and the
    #: SHA-256 checksum of its weights ("" if not validated yet).
    best_step: int = 0
    best_score: float = 0.0
    best_sha256: str = ""
    #: Validation scores so far, in order.
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    def files(self) -> list[str]:
        """List the files that a checkpoint consists of, except that of the checksums."""
        shards = sorted(path.name for path in self.folder.glob(f"*{SUFFIX}"))
        return [*shards, INDEX, "data.json"]

    def position(
        self, records: Mapping[str, int], fingerprints: Mapping[str, str], data: str | None = None
    ) -> Position:
        """Read the run's position.

        Args:
            records: number of records of each task, and of `VALIDATION`.
            fingerprints: fingerprints of the same records.
            data: path of the records, for messages.

        Raises:
            ValueError: if a field of data.json is invalid (the message names it), or if it was
                written for other records.
        """
        position = self.read_position()
        changed = [
            f"{_named(name)} had {shown(position.records.get(name, 0))} records and now has"
            f" {records.get(name, 0)}"
            for name in dict.fromkeys((*position.records, *records))
            if position.records.get(name) != records.get(name)
        ] or [
            f"the data of {_named(name)} has changed, although it still has {records[name]} records"
            f" (fingerprint {shown(position.fingerprints.get(name))}, now {shown(current)})"
            for name, current in fingerprints.items()
            if position.fingerprints.get(name) != current
        ]
        if changed:
            than = f" than is in {data} now" if data else ""
            raise ValueError(
                f"{self.folder} was saved with different data{than}:"
                f" {list_problems(changed, '; ')}. Resume with the data of the run, or start a new"
                " run in another folder"
            )
        return position

    def damage(self, *, with_best: bool = True) -> str | None:
        """Describe the damaged file, or return None if the checkpoint is intact.

        `with_best` includes the best weights so far, which only a run that resumes needs.

        Raises:
            ValueError: if the checksums are right, but data.json is invalid.
        """
        for name in (*self.files(), CHECKSUMS):
            if not (self.folder / name).is_file():
                return f"{name} does not exist{self._strangers()}"
        try:
            content = (self.folder / CHECKSUMS).read_bytes()
            if content != checksums(self.folder):
                return _wrong_checksum(self.folder, content.decode("utf-8", errors="replace"))
            return self._damage_of_best() if with_best else None
        except OSError as error:
            return f"a file cannot be read ({printable(str(error), _MAX_REASON)})"

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Re-raise an error from the block as one that names the file and what can be done."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except _READ_ERRORS as error:
            # A reader's error names the file, too.
            reason = str(error).removeprefix(f"{self.folder / name}: ")
            if not isinstance(error, (ValueError, OSError)):
                reason = f"{type(error).__name__} ({reason})"
            raise self._invalid(
                name, f"cannot be used: {printable(reason, _MAX_REASON)}"
            ) from error

    def restore(self, state: TrainingState) -> None:
        """Fill the weights, the optimizer, the EMA and the objectives; all ranks must call this.

        Raises:
            ValueError: if a file is invalid or does not fit the run; the message names it.
        """
        with self.explained(INDEX):
            state.restore(self.folder)

    def read_position(self) -> Position:
        """Read data.json and check its fields.

        Raises:
            ValueError: if a field is invalid; the message names it.
        """
        values = read_json(self.folder / "data.json", MAX_JSON_BYTES)
        try:
            if not isinstance(values, dict):
                raise ValueError(f"expected an object, got {shown(values)}")
            position = from_dict(Position, values)
        except (TypeError, ValueError) as error:
            raise self._invalid("data.json", f"is invalid: {error}") from None
        tasks = sorted(position.records.keys() - {VALIDATION})
        if sorted(position.consumed) != tasks:
            consumed = shown_names(sorted(position.consumed))
            problem = f"has consumed samples of {consumed}; expected {shown_names(tasks)}"
            raise self._invalid("data.json", problem)
        counts = {f"consumed.{name}": count for name, count in position.consumed.items()}
        counts |= {"images": position.images, "seconds": position.seconds}
        limits = {name: (value, 0, _MAX_COUNT) for name, value in counts.items()}
        limits["step"] = (position.step, self.step, self.step + 1)
        limits["best_step"] = (position.best_step, 0, self.step + 1)
        for name, (value, least, end) in limits.items():
            if not least <= value < end:
                expected = least if end == least + 1 else f"{least} to {end - 1:,}"
                raise self._invalid("data.json", f"has {name} {shown(value)}; expected {expected}")
        return position

    def _invalid(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self.folder / name} {problem}. {self._hint()}")

    def _hint(self) -> str:
        return (
            f"Delete {self.folder} to resume from the checkpoint before it, or from the start if"
            " there is none"
        )

    def _damage_of_best(self) -> str | None:
        """Check the best weights of a checkpoint whose own files are intact."""
        position = self.read_position()
        path = best_file(self.folder.parent, position.best_step)
        # A run whose best weights are missing says so when it resumes.
        if position.best_sha256 and path.is_file() and sha256(path) != position.best_sha256:
            return f"the SHA-256 checksum of {path.name}, the best weights so far, has changed"
        return None

    def _strangers(self) -> str:
        """Name the files that are not those of a checkpoint, for a message about a missing one."""
        own = {*self.files(), CHECKSUMS}
        others = sorted({path.name for path in self.folder.iterdir()} - own)
        return f"; it has {shown_names(others)}, which no checkpoint has" if others else ""


def newest_checkpoint(checkpoints: Path) -> RunCheckpoint | None:
    """Return the newest complete checkpoint of a run, or None if there is none."""
    return next(reversed(checkpoints_in(checkpoints)), None)


def checkpoint_at(checkpoints: Path, step: int) -> RunCheckpoint:
    """Return the checkpoint of a step, which is not read."""
    return RunCheckpoint(folder=checkpoints / f"{STEP}{step:08d}", step=step)


def best_steps(checkpoints: Path) -> set[int]:
    """Return the best steps recorded in the checkpoints of a run."""
    steps = set()
    for checkpoint in checkpoints_in(checkpoints):
        # A damaged checkpoint is reported when a run resumes.
        with suppress(ValueError):
            steps.add(checkpoint.read_position().best_step)
    return steps


def newest_intact(checkpoints: Path) -> RunCheckpoint | None:
    """Return the newest intact checkpoint of a run, or None if there are no checkpoints.

    Damaged newer checkpoints are renamed with a warning.

    Raises:
        ValueError: if there are checkpoints and all of them are damaged; nothing is renamed.
    """
    damaged: list[tuple[RunCheckpoint, str]] = []
    for checkpoint in reversed(_folders_in(checkpoints)):
        reason = checkpoint.damage()
        if reason is None:
            break
        damaged.append((checkpoint, reason))
    else:
        if damaged:
            reasons = [f"{each.folder.name}: {reason}" for each, reason in damaged]
            raise ValueError(
                f"{checkpoints} has no intact checkpoint ({list_problems(reasons, '; ')}); delete"
                " the damaged ones to start over"
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


def checkpoints_in(checkpoints: Path) -> list[RunCheckpoint]:
    """List a run's complete checkpoints, oldest first."""
    folders = _folders_in(checkpoints)
    return [
        each for each in folders if all((each.folder / name).is_file() for name in each.files())
    ]


def _folders_in(checkpoints: Path) -> list[RunCheckpoint]:
    """List the folders of a run's checkpoints, also of incomplete ones, oldest first."""
    folders = [
        RunCheckpoint(folder=folder, step=int(folder.name.removeprefix(STEP)))
        for folder in (checkpoints.glob(f"{STEP}*") if checkpoints.is_dir() else ())
        if folder.name.removeprefix(STEP).isdecimal() and folder.is_dir()
    ]
    return sorted(folders, key=lambda checkpoint: checkpoint.step)


def best_file(checkpoints: Path, step: int) -> Path:
    """Return the path of the weights that were the best ones after a step."""
    return checkpoints / f"{BEST}{step:08d}.safetensors"


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> bytes:
    """Return what `CHECKSUMS` of a checkpoint must contain."""
    names = RunCheckpoint(folder=folder, step=0).files()
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in names).encode()


def remove_checkpoint(checkpoint: RunCheckpoint) -> None:
    """Remove a checkpoint."""
    # Rename first, so that an interrupted removal leaves no partial checkpoint.
    name = checkpoint.folder.name
    doomed = checkpoint.folder.rename(checkpoint.folder.with_name(f"{PART}{name}"))
    shutil.rmtree(doomed, ignore_errors=True)


def _wrong_checksum(folder: Path, content: str) -> str:
    """Describe how the content of `CHECKSUMS` differs from what it must be."""
    stored = {
        name: digest for digest, _, name in (line.partition("  ") for line in content.split("\n"))
    }
    names = RunCheckpoint(folder=folder, step=0).files()
    for name in names:
        if name in stored and stored[name] != sha256(folder / name):
            return f"the SHA-256 checksum of {name} differs from {CHECKSUMS}"
    # A file that is gone is listed, too.
    for name in stored:
        is_name = len(name) <= _MAX_FILE_NAME and re.fullmatch(r"[\w.]+", name, re.ASCII)
        if is_name and not (folder / name).exists():
            return f"{name} does not exist, or {CHECKSUMS} has changed"
    return f"{CHECKSUMS} does not list {', '.join(names)} as sha256sum does"


def _named(name: str) -> str:
    return "the validation" if name == VALIDATION else f"task {shown(name)}"
