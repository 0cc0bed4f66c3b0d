"""`fiber.load`: load a trained model for inference."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from fiber.checkpoints.load import load_stored
from fiber.checkpoints.torch_file import Weights
from fiber.data import Tokenizer
from fiber.inference.model import Model


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
    """Load a trained model.

    The architecture of a published checkpoint is inferred from its tensor names and shapes and, if
    the file has one, the config of its run. Every other tensor is ignored for a listed reason or
    refused. The ITC temperature, which only training reads, may be missing and is then set to 0.07;
    `fiber convert` lists ignored and missing tensors. All published coarse files have the ITC
    projections, so the model has that head even if the file's task did not train it. No code in a
    file is run.

    Args:
        path: directory of a run or a saved model, or a published .ckpt, .pt, .pth or .safetensors
            file of either stage.
        tokenizer: a tokenizer, a tokenizer.json, or a directory with it or with RoBERTa's
            vocab.json and merges.txt; default: the directory's own.
        answers: answers in the order of the VQA head's logits, or a JSON file with a list of them;
            default: the directory's own.
        device: default CUDA if available, else the CPU.
        dtype: compute dtype; default bfloat16 on CUDA, float32 on the CPU.
        image_size: height and width of a coarse model's input images in pixels, if not its own; its
            position bias tables are resized, as in the published training.
        weights: trained weights ("raw", as the published tools load) or their moving average
            ("ema"), if the file has both.

    Raises:
        FileNotFoundError: if there is no model, with what is missing.
        ValueError: if a file cannot be read, or its parts do not match, with the name of every
            tensor that is missing, unexpected or of another shape.
    """
    stored = load_stored(
        path, tokenizer, answers, device, dtype, image_size=image_size, weights=weights
    )
    return Model(
        stored.network,
        stored.tokenizer,
        stored.answers,
        classes=stored.classes,
        dtype=stored.dtype,
        trained_on=stored.trained_on,
    )
