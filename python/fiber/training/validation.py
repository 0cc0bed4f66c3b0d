"""Select the finished model: validate at every checkpoint and keep the best weights.

The best weights so far are stored as `best-00000500.safetensors` next to the checkpoints. Each
checkpoint records the best step, so a resumed run selects the same weights as an uninterrupted one.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fiber.atomic_io import write_file
from fiber.checkpoints.model_dir import StoredModel, read_tensors, write_tensors
from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.data.datasets.resolve import Data, has_splits, is_readable
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.data.record import RecordSet
from fiber.data.storage.held_out import ChosenRecords, divided, is_divisible
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.processes import EvalProcesses
from fiber.evaluation.tasks import needed_head, open_records
from fiber.messages import shown, shown_names
from fiber.models.registry import Network
from fiber.tasks import all_evaluations, find_evaluation, find_task
from fiber.tasks.fields import split_source
from fiber.training.checkpoint.folder import best_file
from fiber.training.checkpoint.layout import BEST
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.distributed.collectives import gather_results
from fiber.training.distributed.processes import Processes
from fiber.training.training_data import TrainingData


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out records of a run, and the task to evaluate on them."""

    #: Name of a `fiber eval` task.
    task: str
    records: RecordSet
    vocabulary: Vocabulary
    #: Folder of checkpoints.
    checkpoints: Path
    #: Limits of decoding one image.
    limits: DecodeLimits = DEFAULT_LIMITS

    def evaluate(self, model: Network, threads: int, processes: Processes) -> dict[str, float]:
        """Evaluate a model; return the task's metrics and "score", by which weights are selected.

        All ranks must call this. Each evaluates a part of the batches, and all of them compute the
        metrics of all records. For retrieval, a model without an ITC head scores every pair of
        image and text.

        The random state is restored afterwards, so validation does not affect training. The model
        is in eval mode.
        """
        stored = StoredModel(
            network=model, tokenizer=self.vocabulary.tokenizer, answers=self.vocabulary.answers
        )
        scores_pairs = self.task == "retrieval" and "itc" not in model.config.heads
        devices = [processes.device] if processes.device.type == "cuda" else []
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            if not processes.is_first:
                warnings.simplefilter("ignore")  # Rank 0 warns of the same.
            metrics = evaluate(
                stored,
                self.task,
                data=self.records,
                rerank=None if scores_pairs else False,
                threads=threads,
                processes=EvalProcesses(
                    processes.rank,
                    processes.world_size,
                    partial(gather_results, processes=processes),
                ),
                **self.limits._asdict(),
            )
        if scores_pairs:
            metrics = {name.removeprefix("reranked/"): value for name, value in metrics.items()}
        kept = {name: value for name, value in metrics.items() if "/" not in name}
        chosen_by = find_evaluation(self.task).chosen_by
        if missing := [name for name in chosen_by if name not in metrics]:
            raise ValueError(
                f"validation.task {shown(self.task)} is chosen by {', '.join(missing)}; its metrics"
                f" are {shown_names(metrics)}"
            )
        return {"score": sum(metrics[name] for name in chosen_by), **kept}

    def keep(self, state: dict[str, Tensor], step: int) -> None:
        """Write the best weights so far; earlier ones remain until `forget_others` is called."""
        write_file(self._file(step), lambda part: write_tensors(state, part))

    def forget_others(self, steps: Collection[int]) -> None:
        """Remove the weights of all steps except `steps`."""
        kept = {self._file(step) for step in steps}
        for file in self.checkpoints.glob(f"{BEST}*.safetensors"):
            if file not in kept:
                file.unlink()

    def finish(self, step: int, model_file: Path) -> None:
        """Move a step's weights to `model_file`, and remove the weights of all other steps."""
        self._file(step).rename(model_file)
        self.forget_others(())

    def weights(self, step: int) -> dict[str, Tensor]:
        """Read the weights of a step that were kept."""
        return read_tensors(self._file(step))

    def check(self, best_step: int) -> None:
        """Raise FileNotFoundError if the best weights so far are missing."""
        if best_step and not self._file(best_step).is_file():
            raise FileNotFoundError(
                f"{self._file(best_step)} is missing: step {best_step} has the best score so far,"
                " and resuming needs its weights"
            )

    def _file(self, step: int) -> Path:
        return best_file(self.checkpoints, step)


def open_validation(
    config: RunConfig,
    source: TrainingData,
    data: Data,
    held_out: Data | None,
    checkpoints: Path,
) -> tuple[Validation | None, str]:
    """Open the held-out records of a run, by default a split of `data`.

    Returns:
        The validation and a message. The validation is None if it is disabled or if there is no
        held-out data; in the latter case the message explains why, otherwise it is empty.

    Raises:
        FileNotFoundError: if the split's file is missing.
        ValueError: if the model lacks the task's head, or `held_out` is given but validation is
            disabled.
    """
    settings = config.validation
    if settings.task is None:
        if held_out is not None:
            raise ValueError(
                "validation data was given, but validation.task is None; expected one of"
                f" {', '.join(all_evaluations())}"
            )
        return None, ""
    head = needed_head(settings.task, config.model.heads)
    if head not in config.model.heads:
        raise ValueError(
            f"validation.task {shown(settings.task)} needs the head {shown(head)}, but the model"
            " only has"
            f" {', '.join(config.model.heads)}"
        )
    divides = held_out is None and lacks_held_out(settings.task, data, settings.split)
    reason = (
        f"validation.task is {shown(settings.task)}, but the data has no held-out split; the model"
        f" of the last step is kept. {find_evaluation(settings.task).split_hint}, or pass"
        " validation records (--validation FILE, validation=...)"
    )
    if held_out is None and not is_readable(data):
        return None, reason
    try:
        records = open_records(
            data if held_out is None else held_out, settings.task, settings.split
        )
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} (needed for validation.task {shown(settings.task)}, validation.split"
            f" {shown(settings.split)}; disable it with --set validation.task=none)"
        ) from error
    if divides and not is_divisible(records):
        return None, reason
    records = _evaluated(records, settings, divides=divides)
    validation = Validation(
        task=settings.task,
        records=records,
        vocabulary=source.vocabulary,
        checkpoints=checkpoints,
        limits=DecodeLimits(config.data.max_pixels, config.data.max_decode_bytes),
    )
    return validation, ""


def open_kept(config: RunConfig, source: TrainingData, keep: Data, checkpoints: Path) -> Validation:
    """Open the held-out records of old data (`--keep`), which show what a model still knows.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if no records can be held out, or those that are evaluated are trained on.
    """
    task, settings = kept_evaluation(config), config.validation
    trained = {*config.data.split.split("+")}
    if config.data.keep_share and trained & {*settings.split.split("+")}:
        raise ValueError(
            f"--keep (keep=...) evaluates validation.split {shown(settings.split)} of the old data,"
            f" which is trained on (data.split {shown(config.data.split)}); expected another split"
        )
    divides = lacks_held_out(task, keep, settings.split)
    try:
        records = open_records(keep, task, settings.split)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--keep (keep=...): {error}") from error
    if divides and not is_divisible(records):
        raise ValueError(
            f"--keep (keep=...): {shown(str(keep))} has no split {shown(settings.split)}, and too"
            " few images to hold out a part"
        )
    return Validation(
        task=task,
        records=_evaluated(records, settings, divides=divides),
        vocabulary=source.vocabulary,
        checkpoints=checkpoints,
        limits=DecodeLimits(config.data.max_pixels, config.data.max_decode_bytes),
    )


def kept_evaluation(config: RunConfig) -> str:
    """Return the evaluation of old data: that of the run's validation, or else of its first task.

    Of the evaluations of a task, it is the first one whose source the task is trained on.
    """
    if config.validation.task is not None:
        return config.validation.task
    for name, options in config.tasks.active().items():
        trained = {split_source(source)[0] for source in options.sources}
        evaluations = find_task(name).evaluations
        for evaluation, about in evaluations.items():
            if about.source in trained:
                return evaluation
    raise ValueError(
        "--keep (keep=...): no task of the run has an evaluation of its sources; choose one with"
        " --set validation.task=TASK"
    )


def lacks_held_out(task: str, data: Data, split: str) -> bool:
    """Return whether data must be divided to be evaluated: a file or rows without splits.

    Arguments must be those of a successful call to `open_source`.
    """
    return is_readable(data) and not has_splits(find_evaluation(task).source, data, split)


def _evaluated(records: RecordSet, settings: ValidationConfig, *, divides: bool) -> RecordSet:
    """Return the records that are held out, of at most `settings.pictures` images."""
    records = divided(records, "val") if divides else records
    return _of_some_images(records, settings.pictures) if settings.pictures else records


def _of_some_images(records: RecordSet, limit: int) -> RecordSet:
    """Sample at most `limit` images with a fixed seed; keep all of their records."""
    images = [records[index].image_id for index in range(len(records))]
    distinct = list(dict.fromkeys(images))
    if len(distinct) <= limit:
        return records
    chosen = set(random.Random(0).sample(distinct, limit))
    return ChosenRecords(records, [at for at, image in enumerate(images) if image in chosen])
