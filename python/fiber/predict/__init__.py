"""Load a finished model, ask it about pictures, measure it: the face of `fiber` for a user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from fiber.data import Tokenizer
from fiber.files import check_target, read_json
from fiber.predict.model import Answer, Hit, MissingHeadError, Model
from fiber.training import evaluate as measuring
from fiber.training.checkpoint import StoredModel, load_model
from fiber.training.streams import Data

__all__ = ["Answer", "Hit", "MissingHeadError", "Model", "evaluate", "load"]


def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Sequence[str] | str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a finished model.

    Args:
        path: folder of a run or of a saved model.
        tokenizer: instead of the folder's own: one, a tokenizer.json, or a folder that holds it or
            RoBERTa's vocab.json and merges.txt.
        answers: instead of the folder's own: the answers in the order of the VQA head's logits, or
            a JSON file with a list of them.
        device: default CUDA where there is one, else the CPU.
        dtype: of the arithmetic; default bfloat16 on CUDA, float32 on the CPU.

    Raises:
        FileNotFoundError: if there is no model, with what is missing.
        ValueError: if parts do not fit one another.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(
            f"model {folder} does not exist; `fiber demo` or `fiber train` makes one"
        )
    if not folder.is_dir():
        raise ValueError(
            f"model {folder} is a file; this version reads the folder of a run or of a saved model"
            " (config.json, model.safetensors), not published checkpoints"
        )
    where = _device(device)
    stored = load_model(folder, where)
    own = stored.tokenizer if tokenizer is None else _tokenizer(tokenizer)
    words = stored.answers if answers is None else _answers(answers)
    config = stored.config
    if own is not None and own.vocab_size != config.roberta.vocab_size:
        raise ValueError(
            f"the tokenizer has {own.vocab_size} tokens, the model {config.roberta.vocab_size};"
            " a model works with the tokenizer that it was trained with only"
        )
    if words and "vqa" in config.heads and len(words) != config.image_text.num_answers:
        raise ValueError(
            f"{len(words)} answers, but the VQA head has {config.image_text.num_answers}"
        )
    if dtype is None:
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    return Model(stored.model, own, words, dtype=dtype)


def evaluate(
    model: Model | str | os.PathLike[str],
    task: str,
    data: Data,
    split: str = "val",
    *,
    output: str | os.PathLike[str] | None = None,
    permute_images: bool = False,
    fusion: bool = True,
) -> dict[str, float]:
    """Measure a model on a task.

    Args:
        model: a model, or what `load` takes.
        task: "retrieval", "matching", "masked_words", "vqa", "nlvr2", "winoground", "refcoco",
            "flickr" or "coco".
        data: a data folder, or records of your own.
        split: of the folder.
        output: where to write the predictions, in the task's official format where it has one.
        permute_images: give every record another record's picture: what the texts alone reach.
        fusion: False switches the cross-attentions off.

    Returns:
        Metrics by name, fractions in [0, 1]; those of a group of records as "group/metric".

    Raises:
        MissingHeadError: if the model has no head for the task.
        ValueError: for an unknown task, or records without what it needs.
        OSError: if `output` is the name of something else than a regular file.
    """
    if output is not None:
        # Before the measuring, which may take hours.
        check_target(Path(output))
    if not isinstance(model, Model):
        model = load(model)
    head, *_ = measuring.find_task(task)
    model.need_head(head, f"task {task!r}")
    stored = StoredModel(model=model.network, tokenizer=model.tokenizer, answers=model.answers)
    with model.arithmetic():
        return measuring.evaluate(
            stored,
            task,
            data=data,
            split=split,
            output=output,
            permute_images=permute_images,
            fusion=fusion,
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


def _tokenizer(tokenizer: Tokenizer | str | os.PathLike[str]) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    path = Path(tokenizer)
    if path.is_dir():
        two = path / "vocab.json", path / "merges.txt"
        if not (path / "tokenizer.json").exists() and all(file.exists() for file in two):
            return Tokenizer.from_vocabulary(*two)
        path = path / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer {path} does not exist")
    return Tokenizer.from_file(path)


def _answers(answers: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    words = read_json(Path(answers)) if isinstance(answers, (str, os.PathLike)) else list(answers)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"answers: expected a list of texts, got {str(words)[:60]}")
    return tuple(words)
