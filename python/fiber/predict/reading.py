"""A model of any kind on disk, with the words that belong to it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from fiber.data import Tokenizer
from fiber.models.weights_file import Weights
from fiber.training.checkpoint import StoredModel
from fiber.training.model_files import read_model
from fiber.training.words import Answers, open_answers, open_tokenizer


def read_with_words(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    answers: Answers | None,
    device: torch.device | str,
    *,
    image_size: int | None,
    weights: Weights,
) -> StoredModel:
    """Read a model, and put the tokenizer and the answers that are named in place of its own.

    Raises:
        FileNotFoundError: if there is no model, with what is missing.
        ValueError: if parts do not fit one another.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"model {os.fspath(path)} does not exist; `fiber demo` or `fiber train` makes one"
        )
    stored = read_model(path, device, image_size=image_size, weights=weights)
    own = stored.tokenizer if tokenizer is None else open_tokenizer(tokenizer)
    words = stored.answers if answers is None else open_answers(answers)
    config = stored.config
    if own is not None and own.vocab_size != config.roberta.vocab_size:
        raise ValueError(
            f"the tokenizer has {own.vocab_size} tokens, the model {config.roberta.vocab_size};"
            " a model works with the tokenizer that it was trained with only"
        )
    if answers is not None and "vqa" not in config.heads:
        raise ValueError(
            f"answers are for the head 'vqa'; this model has {', '.join(config.heads)}"
        )
    if words and "vqa" in config.heads and len(words) != config.image_text.num_answers:
        raise ValueError(
            f"{len(words)} answers, but the VQA head has {config.image_text.num_answers}"
        )
    return dataclasses.replace(stored, tokenizer=own, answers=words)
