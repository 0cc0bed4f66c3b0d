"""Load a finished model, ask it about pictures, measure it: the face of `fiber` for a user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from fiber.atomic_io import check_target
from fiber.checkpoints.load import load_stored_model
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.torch_file import Weights
from fiber.data import Tokenizer
from fiber.data.datasets.resolve import Data
from fiber.evaluation import evaluate as measuring
from fiber.evaluation.classes import GivenClasses, classes_of_sets, listed_classes
from fiber.evaluation.odinw import evaluate_odinw
from fiber.inference.heads import MissingHeadError, choose_ranking
from fiber.inference.model import Model
from fiber.inference.results import Answer, Hit

__all__ = ["Answer", "Hit", "MissingHeadError", "Model", "evaluate", "load"]


def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Sequence[str] | str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    image_size: int | None = None,
    weights: Weights = "raw",
) -> Model:
    """Load a finished model.

    A published checkpoint tells by its names, its shapes and the config of its run, where it has
    one, which model it holds; what it holds beside that is left out for a reason or refused, and
    the one tensor that it may lack, the temperature of contrast (ITC), which nothing but training
    reads, is set to 0.07: `fiber convert` lists both. Every published coarse file has the
    projections of contrast, and so the model has that head, whether the file's task trained it or
    not. Nothing in a file is run.

    Args:
        path: folder of a run or of a saved model, or a published .ckpt, .pt, .pth or .safetensors
            file of either stage.
        tokenizer: instead of the folder's own: one, a tokenizer.json, or a folder that holds it or
            RoBERTa's vocab.json and merges.txt.
        answers: instead of the folder's own: the answers in the order of the VQA head's logits, or
            a JSON file with a list of them.
        device: default CUDA where there is one, else the CPU.
        dtype: of the arithmetic; default bfloat16 on CUDA, float32 on the CPU.
        image_size: side of the pictures in pixels that a coarse model looks at, if not its own; its
            tables of position biases are resized, as in the published training.
        weights: of a file that has both, the trained ones ("raw", as the published tools load) or
            their moving average ("ema").

    Raises:
        FileNotFoundError: if there is no model, with what is missing.
        ValueError: if a file cannot be read, or parts do not fit one another: every tensor that is
            missing, unexpected or of another shape is named.
    """
    where = _device(device)
    stored = load_stored_model(
        path, tokenizer, answers, where, image_size=image_size, weights=weights
    )
    if dtype is None:
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    return Model(
        stored.model,
        stored.tokenizer,
        stored.answers,
        classes=stored.classes,
        dtype=dtype,
        trained_on=stored.trained_on,
    )


def evaluate(
    model: Model | str | os.PathLike[str],
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
) -> dict[str, float]:
    """Measure a model on a task.

    Warnings tell how many texts have no words or are longer than the model reads, how many
    questions have no answer among the model's, which count 0, that records without answers give
    predictions and no metrics, and whether a run is measured on the
    folder or file, and the split, that it was trained on.

    Args:
        model: a model, or what `load` takes.
        task: "retrieval", "matching", "masked_words", "caption", "vqa", "nlvr2", "winoground",
            "refcoco", "flickr", "coco", "lvis" or "odinw".
        data: a data folder, an annotation file that `fiber.data.open_source` reads (such as
            a .jsonl of your own), or records of your own.
        split: of the folder or file; "+" joins several.
        output: where to write the predictions, in the task's official format where it has one.
        permute_images: give every record another record's picture: what the texts alone reach.
        fusion: False switches the cross-attentions off.
        rerank: of "retrieval", as in `Model.search`: whether the best candidates of each query by
            the two towers alone (ITC) are ordered again by matching picture and text together
            (ITM); default: if the model can. A model with one of the two heads ranks by that one,
            every pair where it is ITM; a warning says so, but where ITC alone ranks and nothing
            asked for more.
        candidates: of "retrieval": how many of each query are ordered again, 1 or more, 32 by
            default; as many as there are, or more, match every pair.
        classes_per_prompt: of tasks that detect classes: how many a text asks for at most; 0: as
            many as fit; default: 40 for "lvis", as published, else as many as fit.
        classes: of the same tasks: what a text says for each class, by their ids: a list as
            `Model.detect` takes it, or a file of `--classes-file`; for "odinw" such lists by the
            names of the sets, or a folder with a file NAME.json for each.
        batch_size: records that the model looks at together; fewer need less memory.
        threads: that decode pictures; 0 uses every core.

    Returns:
        Metrics by name, fractions in [0, 1] but for `cider_d`, which goes up to 10; those of a
        group of records as "group/metric", those after re-ranking as "reranked/metric".

    Raises:
        MissingHeadError: if the model has no head for the task.
        TypeError: if `rerank` is neither bool nor None.
        ValueError: for an unknown task, records without what it needs, or a batch of none.
        OSError: if `output` is the name of something else than a regular file.
    """
    if output is not None and task != "odinw":
        # Before the measuring, which may take hours.
        check_target(Path(output))
    if not isinstance(model, Model):
        model = load(model)
    # ODinW is COCO's task on several sets.
    asked = "coco" if task == "odinw" else task
    model.need_head(measuring.needed_head(asked, model.heads), f"task {task!r}")
    chosen = 0
    if task == "retrieval":
        ranking = choose_ranking(model.config, rerank, candidates, f"task {task!r}")
        chosen = sys.maxsize if ranking.heads == ("itm",) else ranking.candidates
    stored = StoredModel(
        model=model.network,
        tokenizer=model.tokenizer,
        answers=model.answers,
        trained_on=model.trained_on,
    )
    run: Callable[..., dict[str, float]]
    if task == "odinw":
        run = partial(evaluate_odinw, classes=classes_of_sets(classes))
    else:
        run = partial(measuring.evaluate, task=task, classes=listed_classes(classes))
    with model.arithmetic():
        return run(
            stored,
            data=data,
            split=split,
            output=output,
            permute_images=permute_images,
            fusion=fusion,
            candidates=chosen,
            classes_per_prompt=classes_per_prompt,
            batch_size=batch_size,
            threads=threads,
        )


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: expected cpu, cuda or cuda:N") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device {device!r}: torch sees {count} CUDA devices here")
    return where
