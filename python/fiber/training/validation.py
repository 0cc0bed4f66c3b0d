"""Select the finished model: evaluate held-out records at every checkpoint, keep the best weights.

The best weights so far are `best-00000500.safetensors` in the folder of checkpoints. The checkpoint
stores their step, so that a resumed run selects the same weights as an uninterrupted one.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import StoredModel, Vocabulary, write_tensors
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
    """Held-out records of a run and the task that they are evaluated with."""

    #: A task of `fiber eval`.
    task: str
    records: RecordSet
    vocabulary: Vocabulary
    #: Folder of the run's checkpoints.
    checkpoints: Path

    def evaluate(
        self, model: FiberImageText | FiberDetector, state: dict[str, Tensor], threads: int
    ) -> dict[str, float]:
        """Evaluate weights: the metrics of the task, and the "score" to select by.

        Weights of the model and random state are restored afterwards, so that training is the same
        with and without validation.
        """
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        stored = StoredModel(
            network=model, tokenizer=self.vocabulary.tokenizer, answers=self.vocabulary.answers
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
        """Write the best weights so far; those before stay until `forget_others`."""
        write_file(self._file(step), lambda part: write_tensors(state, part))

    def forget_others(self, step: int) -> None:
        """Remove the weights of all steps but this one."""
        for file in self.checkpoints.glob(f"{BEST}*.safetensors"):
            if file != self._file(step):
                file.unlink()

    def finish(self, step: int, model_file: Path) -> None:
        """Rename the weights of a step to the finished model, and remove the others."""
        self._file(step).rename(model_file)
        self.forget_others(step)

    def check(self, position: Position) -> None:
        """Check that the best weights of a checkpoint exist.

        Raises:
            FileNotFoundError: if they are missing.
        """
        if position.best_step and not self._file(position.best_step).is_file():
            raise FileNotFoundError(
                f"{self._file(position.best_step)} is missing: step {position.best_step} has the"
                " best score so far, and the run cannot be resumed without its weights"
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
    """Open the held-out records of a run.

    Args:
        config: of the run, with the task and the split.
        source: training data.
        data: where they come from.
        held_out: records to validate with, if they are not a split of `data`.
        checkpoints: folder of the run's checkpoints.

    Returns:
        The validation or None; if it is None against the config, a message for the user.

    Raises:
        FileNotFoundError: if the split has no file.
        ValueError: if the model lacks the head, or records are given but validation is off.
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
            f"validation.task is {settings.task!r}, but the data have no splits to hold out; the"
            " last step becomes the model."
            f" {way_out} other records (--validation FILE, validation=...)"
        )
    try:
        records = open_records(
            data if held_out is None else held_out, settings.task, settings.split
        )
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} (needed to select the best step: validation.task is {settings.task!r},"
            f" validation.split {settings.split!r}; turn it off with --set validation.task=none)"
        ) from error
    if settings.pictures:
        records = _of_some_images(records, settings.pictures)
    validation = Validation(
        task=settings.task, records=records, vocabulary=source.vocabulary, checkpoints=checkpoints
    )
    return validation, ""


def _of_some_images(records: RecordSet, limit: int) -> RecordSet:
    """Sample all records of at most `limit` images, with a fixed seed."""
    images = [records[index].image_id for index in range(len(records))]
    different = list(dict.fromkeys(images))
    if len(different) <= limit:
        return records
    chosen = set(random.Random(0).sample(different, limit))
    return ChosenRecords(records, [at for at, image in enumerate(images) if image in chosen])
