"""Choosing the finished model: held-out records are measured at every checkpoint, the best is kept.

The weights of the best step lie in the run's folder of checkpoints as `best-00000500.safetensors`;
which step that is stands in the checkpoint itself, so that a resumed run chooses as one that was
never stopped.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import StoredModel, Words, write_tensors
from fiber.data.datasets.resolve import ChosenRecords, Data, has_splits
from fiber.data.record import RecordSet
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import find_task, open_records
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.checkpoint import Position
from fiber.training.config.run import CHOSEN_BY, RunConfig
from fiber.training.data import TrainingData

BEST = "best-"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a run measures to choose its model."""

    #: A task of `fiber eval`.
    task: str
    records: RecordSet
    words: Words
    #: Folder of the run's checkpoints.
    checkpoints: Path

    def measure(
        self, model: FiberImageText | FiberDetector, state: dict[str, Tensor], threads: int
    ) -> dict[str, float]:
        """Measure a state of the model: the task's metrics, and the "score" that chooses.

        The model's weights and the random numbers are afterwards as they were, so that a run trains
        the same with and without.
        """
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        stored = StoredModel(
            network=model, tokenizer=self.words.tokenizer, answers=self.words.answers
        )
        devices = {tensor.device.index for tensor in own.values() if tensor.is_cuda}
        try:
            model.load_state_dict(state)
            with torch.random.fork_rng(devices):
                metrics = evaluate(
                    stored, self.task, data=self.records, rerank=False, threads=threads
                )
        finally:
            model.load_state_dict(own)
            model.train()
        kept = {name: value for name, value in metrics.items() if "/" not in name}
        return {"score": sum(metrics[name] for name in CHOSEN_BY[self.task]), **kept}

    def keep(self, state: dict[str, Tensor], step: int) -> None:
        """Write the weights of the best step so far, beside those of the one before it."""
        write_file(self._file(step), lambda part: write_tensors(state, part))

    def forget_others(self, step: int) -> None:
        """Remove the weights of all steps but one."""
        for file in self.checkpoints.glob(f"{BEST}*.safetensors"):
            if file != self._file(step):
                file.unlink()

    def finish(self, step: int, model_file: Path) -> None:
        """Make the weights of the best step the finished model, and remove all others."""
        self._file(step).rename(model_file)
        self.forget_others(step)

    def check(self, position: Position) -> None:
        """Check that the best weights that a checkpoint knows of are there.

        Raises:
            FileNotFoundError: if they are not.
        """
        if position.best_step and not self._file(position.best_step).is_file():
            raise FileNotFoundError(
                f"{self._file(position.best_step)} is missing: step {position.best_step} measured"
                " best so far, and the run cannot be resumed without its weights"
            )

    def _file(self, step: int) -> Path:
        return self.checkpoints / f"{BEST}{step:08d}.safetensors"


def open_validation(
    config: RunConfig,
    source: TrainingData,
    data: Data,
    held_out: Data | None,
    checkpoints: Path,
) -> tuple[Validation | None, str]:
    """Find the records that choose the model, and say if none can be held out.

    Args:
        config: says what is measured.
        source: what is trained on.
        data: where that came from.
        held_out: records to choose by, if they are not a split of `data`.
        checkpoints: folder of the run's checkpoints.

    Returns:
        What is measured, or None; a sentence for the user if it is None although the config asks.

    Raises:
        FileNotFoundError: if the split has no file.
        ValueError: if the model lacks the head, or records were given and nothing is measured.
    """
    settings = config.validation
    if settings.task is None:
        if held_out is not None:
            raise ValueError(
                "records to validate by were given, but validation.task is None; set it to one of"
                f" {', '.join(CHOSEN_BY)}"
            )
        return None, ""
    head, reader, _ = find_task(settings.task)
    if head not in config.model.heads:
        raise ValueError(
            f"validation.task {settings.task!r} needs the head {head!r}; the model has"
            f" {', '.join(config.model.heads)}"
        )
    is_path = isinstance(data, (str, os.PathLike))
    if held_out is None and not (is_path and has_splits(reader.__name__, data, settings.split)):
        way_out = "Give every line a field 'split', or name"
        if head == "grounding":
            way_out = "Name the folder in place of the file, or"
        return None, (
            f"validation.task is {settings.task!r}, but the data do not tell splits, so that"
            " nothing is held out to choose a step by: the last one becomes the model."
            f" {way_out} other records (--validation FILE, validation=...)"
        )
    try:
        records = open_records(
            data if held_out is None else held_out, settings.task, settings.split
        )
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} (needed to choose the best step: validation.task is {settings.task!r},"
            f" validation.split {settings.split!r}; --set validation.task=none does without)"
        ) from error
    if settings.pictures:
        records = _of_some_pictures(records, settings.pictures)
    validation = Validation(
        task=settings.task, records=records, words=source.words, checkpoints=checkpoints
    )
    return validation, ""


def _of_some_pictures(records: RecordSet, limit: int) -> RecordSet:
    """Choose all records of at most `limit` pictures, the same ones every time."""
    images = [records[index].image_id for index in range(len(records))]
    different = list(dict.fromkeys(images))
    if len(different) <= limit:
        return records
    chosen = set(random.Random(0).sample(different, limit))
    return ChosenRecords(records, [at for at, image in enumerate(images) if image in chosen])
