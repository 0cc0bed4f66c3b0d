"""`fiber.evaluate`: compute metrics on a split, and write predictions in official formats."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from fiber.atomic_io import check_target
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.provenance import seen_before
from fiber.data.datasets.resolve import Data
from fiber.data.image_file import MAX_PIXELS, DecodeLimits
from fiber.data.record import RecordSet
from fiber.data.text_lengths import text_warnings
from fiber.evaluation.classes import GivenClasses, classes_of_sets, listed_classes
from fiber.evaluation.context import EvalContext, EvalModel, EvalStages
from fiber.evaluation.odinw import evaluate_odinw
from fiber.evaluation.processes import ONE_PROCESS, EvalProcesses
from fiber.evaluation.tasks import (
    check_classes,
    needed_head,
    open_records,
    run_task,
)
from fiber.models.heads import need_head
from fiber.models.ranking_heads import choose_ranking_heads
from fiber.models.registry import ModelConfig
from fiber.tasks import find_evaluation


def evaluate(
    model: EvalModel | EvalStages | str | os.PathLike[str],
    task: str,
    data: Data,
    split: str = "val",
    *,
    output: str | os.PathLike[str] | None = None,
    permute_images: bool = False,
    fusion: bool = True,
    rerank: bool | None = None,
    candidates: int | None = None,
    classes_per_prompt: int | None = None,
    classes: GivenClasses = None,
    batch_size: int = 64,
    threads: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
    processes: EvalProcesses = ONE_PROCESS,
) -> dict[str, float]:
    """Evaluate a model on a task.

    Warns about texts without words, truncated texts, questions whose answers are not in the model's
    vocabulary (these score 0), records without answers (these yield predictions but no metrics),
    and evaluation on the training split.

    Args:
        model: a model, or anything that `load` accepts.
        task: what to evaluate, such as "vqa", "retrieval", "coco" or "panoptic"; see
            `fiber eval --help`.
        data: a data folder, an annotation file, rows (see `fiber.train`), or records.
        split: split to evaluate. "+" joins splits.
        output: file for the predictions in the task's official format, or a folder for "odinw".
        permute_images: as an ablation, give every record the image of a different record.
        fusion: as an ablation, False sets the gates of all cross-attention layers to 0.
        rerank: for "retrieval", rerank the best ITC candidates with ITM. Default: if the model has
            both heads. A single head ranks all, with a warning unless it is ITC and this is None.
        candidates: for "retrieval", the number of candidates per query to rerank, at least 1.
            Default: 32. ITM scores every pair if this covers all candidates.
        classes_per_prompt: for detection tasks, the maximum number of classes per prompt, or 0 for
            as many as fit. Default: 40 for "lvis", as in the published code, else 0.
        classes: for detection tasks, the prompt text of each class in the order of class ids, as a
            list (see `Model.detect`) or a file (see `--classes-file`). For "odinw", a dict of lists
            by dataset, or a folder with one NAME.json per dataset.
        batch_size: records per batch.
        threads: data loader threads; 0 uses all cores.
        max_pixels: maximum number of pixels of an image file, as in `DataLoader`.
        max_decode_bytes: maximum memory in bytes for decoding one image; None means no limit.
        processes: processes that evaluate together, by calling this with the same arguments.

    Returns:
        Metrics by name. Values are fractions in [0, 1], except for `cider_d` (up to 10). Metrics of
        a group of records are named "group/metric", those after reranking "reranked/metric".

    Raises:
        MissingHeadError: if the model has no head for the task.
        TypeError: if `rerank` is neither bool nor None.
        ValueError: if the task is unknown, a field is missing, or `candidates` does not apply.
        OSError: if `output` cannot be written.
    """
    if output is not None and task != "odinw":
        check_target(Path(output))  # before the evaluation, which may take hours
    model = _model_of(model, task)
    context = EvalContext.of(
        model,
        batch_size=batch_size,
        threads=threads,
        limits=DecodeLimits(max_pixels, max_decode_bytes),
        permute_images=permute_images,
        fusion=fusion,
        candidates=_check_heads(model.network.config, task, rerank, candidates),
        classes_per_prompt=classes_per_prompt,
        processes=processes,
    )
    if task == "odinw":
        return evaluate_odinw(context, data, split, classes_of_sets(classes), output)
    context = replace(context, classes=listed_classes(classes))
    check_classes(context, task)
    records = open_records(data, task, split)
    _warn_about_data(model, context, task, data, split, records)
    return run_task(context, task, records, output)


def _model_of(model: EvalModel | EvalStages | str | os.PathLike[str], task: str) -> EvalModel:
    """Load the model if it is a path, and choose the stage that has a head for the task."""
    if isinstance(model, EvalStages):
        return model.with_head(needed_head(_with_heads(task), model.heads), f"task {task!r}")
    if isinstance(model, EvalModel):
        return model
    return load_stored(model, heads=heads_of(task))


def heads_of(task: str) -> tuple[str, ...]:
    """Return the heads of which a model needs one for a task of evaluation."""
    return find_evaluation(_with_heads(task)).heads


def _with_heads(task: str) -> str:
    """Return the task whose heads a task needs: ODinW evaluates "coco" on several datasets."""
    return "coco" if task == "odinw" else task


def _check_heads(
    config: ModelConfig, task: str, rerank: bool | None, candidates: int | None
) -> int:
    """Check that the model has the required heads. Return the number of candidates to rerank."""
    if task == "retrieval":
        ranking = choose_ranking_heads(config, rerank, candidates, f"task {task!r}", stacklevel=4)
        return ranking.candidates if "itc" in ranking.heads else sys.maxsize
    head = needed_head(_with_heads(task), config.heads)
    need_head(config, head, f"task {task!r}")
    if candidates is not None:
        raise ValueError(
            f"candidates is {candidates}, but task {task!r} ranks no candidates; expected None"
        )
    return 0


def _warn_about_data(
    model: EvalModel,
    context: EvalContext,
    task: str,
    data: Data,
    split: str,
    records: RecordSet,
) -> None:
    """Warn about evaluation on training data and about empty or truncated texts."""
    evaluation = find_evaluation(task)
    lines = []
    if isinstance(data, (str, os.PathLike)):
        lines.append(seen_before(model.trained_on, evaluation.source, data, split))
    if evaluation.reads_texts:
        max_tokens = context.network.config.max_tokens
        lines += text_warnings(records, context.tokenizer, max_tokens)
    for line in filter(None, lines):
        warnings.warn(f"task {task!r}: {line}", RuntimeWarning, stacklevel=3)
