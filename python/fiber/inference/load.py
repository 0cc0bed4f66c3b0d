"""`fiber.load`: load a trained model for inference; `fiber.merge`: interpolate between two."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fiber.checkpoints.kept import read_kept
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.merge import merge_stored
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.stages import (
    PACKAGED,
    PackagedModelWarning,
    model_path,
    packaged_name,
    stage_folders,
)
from fiber.checkpoints.torch_file import Weights
from fiber.data import Tokenizer
from fiber.data.image_file import MAX_PIXELS
from fiber.data.loader_config import check_arguments
from fiber.inference.model import Model, Origin
from fiber.inference.stages import StagedModel
from fiber.inference.suggestions import suggest_keywords
from fiber.messages import caller_level, shown, shown_names

#: Names that may be given as the second argument, the tokenizer.
_DEVICES = ("cpu", "gpu", "mps", "cuda", "cuda:0")
#: Models in the package whose limits this process has printed or warned of.
KNOWN_LIMITS: set[str] = set()


@suggest_keywords
def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Sequence[str] | str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    image_size: int | None = None,
    weights: Weights = "raw",
    base: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    max_decode_bytes: int | None = None,
) -> Model:
    """Load a trained model.

    The architecture of a published checkpoint is inferred from its tensor names and shapes and from
    its training config, if the file contains one. A tensor that the model does not use is ignored
    if it is known to be safe to skip, and raises an error otherwise. If the ITC temperature (used
    only in training) is missing, it is set to 0.07. `fiber convert` lists ignored and missing
    tensors. All published coarse-stage files contain the ITC projections, so these models have the
    ITC head even if their task did not train it. Loading never executes code from a file.

    Args:
        path: folder of a run or a saved model, a folder with one model per stage (such as that of
            `fiber demo`), a LoRA adapter (needs the extra "lora"; it is merged into its base), or a
            published .ckpt, .pt, .pth or .safetensors file of either stage.
            "scenes" is the small model in the package, which knows only drawings of colored
            shapes; a warning says so once per process. "hf://user/name", with "@revision" if it
            shall not be the newest, is a model on the Hugging Face Hub (extra `hub`). So is
            "user/name", unless a folder `user` is here or `user` resembles the name of one or of
            `runs`.
        tokenizer: a tokenizer, a tokenizer.json file, or a folder that contains tokenizer.json,
            RoBERTa's vocab.json and merges.txt, or BERT's vocab.txt. Default: the tokenizer in the
            model folder.
        answers: answers in the order of the VQA head's logits, or a JSON file that lists them.
            Default: the answers in the model folder.
        device: device to run on. Default: CUDA if available, else the CPU.
        dtype: compute dtype. Default: bfloat16 on CUDA, float32 on the CPU.
        image_size: input height and width in pixels, except for detectors. Default: the model's
            own size. Position bias tables are resized as in the published training code.
        weights: trained weights ("raw", which the published tools load) or their exponential moving
            average ("ema"), if the file contains both.
        base: base of an adapter. Default: the one that the adapter names. Adapters that `fiber
            train --lora` wrote have a fingerprint, with which the base is compared.
        max_pixels: maximum number of pixels of an image file that the model is given.
        max_decode_bytes: maximum memory in bytes for decoding one image; None means no limit. See
            `fiber.data.load_image`.

    Raises:
        FileNotFoundError: if no model is found. The message states what is missing.
        OSError: if a download from the Hub fails.
        TypeError: if `path` is no path, `dtype` no dtype, or `image_size` no integer.
        ValueError: if `path` is a URL or empty, a file is invalid, or the tensors, tokenizer or
            answers do not fit the model. The message counts the tensors that are missing,
            unexpected, or have the wrong shape, and names the first ones.
    """
    _check_types(path, tokenizer, dtype, image_size)
    check_arguments(max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
    limits = {"max_pixels": max_pixels, "max_decode_bytes": max_decode_bytes}
    found = model_path(path)
    name = packaged_name(found)
    if name is not None and name not in KNOWN_LIMITS:
        _warn_packaged(name)
    stages = stage_folders(found)
    if not stages:
        options = {"image_size": image_size, "weights": weights, "base": base}
        return _model(load_stored(found, tokenizer, answers, device, dtype, **options), limits)
    _check_not_given(found, weights, base)
    # Of the coarse stage alone.
    coarse = {"answers": answers, "image_size": image_size}
    loaded = {}
    for name, folder in stages.items():
        options = coarse if name == "coarse" else {}
        loaded[name] = _model(
            load_stored(folder, tokenizer, device=device, dtype=dtype, **options), limits
        )
    return StagedModel(loaded, read_kept(found))


@suggest_keywords
def merge(
    base: Model | str | os.PathLike[str],
    tuned: Model | str | os.PathLike[str],
    weight: float = 0.5,
) -> Model:
    """Interpolate between the weights of a model and of one that was trained from it.

    This is WiSE-FT (Wortsman et al. 2022): on the line between both sets of weights there are
    models that keep most of what the first knew and most of what the second learned.

    Weights are `(1 - weight) * base + weight * tuned` in float32. Those that are equal stay as they
    are. With weight 0 and 1 they are those of `base` and `tuned` to the bit.

    The result has the classes of both, those of `tuned` first; with weight 0 and 1, those of one.
    `Model.save` writes a card that names both models and the weight, and `merged` in the training
    config has their names and fingerprints. Numbers that were measured on either are not kept.

    Args:
        base: a model, or anything that `fiber.load` accepts: what training started from.
        tuned: the trained model, with the same tensors.
        weight: share of `tuned`, from 0 to 1.

    Raises:
        FileNotFoundError: if a model is missing.
        TypeError: if a model is neither a path nor a `Model`, or `weight` is no number.
        ValueError: if `weight` is out of range, or the models differ in family, stage, shapes or
            names of tensors, config, tokenizer or answers; the message names what differs.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight: expected a number from 0 to 1, got {shown(weight)}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number from 0 to 1, got {shown(weight)}")
    first, second = _to_merge("base", base), _to_merge("tuned", tuned)
    return _model(merge_stored(first, second, weight), {})


def _to_merge(argument: str, model: Model | str | os.PathLike[str]) -> StoredModel:
    if not isinstance(model, (Model, str, os.PathLike)):
        raise TypeError(
            f"{argument}: expected a model or the path of one, got {type(model).__name__}"
            f" {shown(model)}"
        )
    found = model if isinstance(model, Model) else load(model)
    if isinstance(found, StagedModel):
        raise ValueError(
            f"{argument}: expected a model of one stage, got one of the stages"
            f" {shown_names(found.stages)}; pass one of its folders, such as scenes/fine, or"
            " model.stages[NAME]"
        )
    return StoredModel(
        network=found.network,
        path=found.origin.path,
        tokenizer=found.tokenizer,
        answers=found.answers,
        classes=found.classes,
        trained_on=found.trained_on,
        dtype=found.dtype,
        stored_dtype=found.origin.dtype,
        kept=found.origin.kept,
    )


def _check_types(path: object, tokenizer: object, dtype: object, image_size: object) -> None:
    hint = (
        "expected the path of a model, such as 'runs/demo', or 'scenes', the model in the package"
    )
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: {hint}, got {type(path).__name__} {shown(path)}")
    if not os.fspath(path):
        raise ValueError(f"path: {hint}, got {shown(path)}")
    if (
        isinstance(tokenizer, str)
        and tokenizer in _DEVICES
        and not pathlib.Path(tokenizer).exists()
    ):
        raise ValueError(f"tokenizer: {tokenizer!r} is a device; pass device={tokenizer!r}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"dtype: expected a torch dtype, such as torch.bfloat16, or None, got {shown(dtype)}"
        )
    if image_size is not None and not hasattr(image_size, "__index__"):
        raise TypeError(f"image_size: expected a number of pixels, got {shown(image_size)}")


def _check_not_given(
    folder: pathlib.Path, weights: str, base: str | os.PathLike[str] | None
) -> None:
    """Check that what a checkpoint file or an adapter needs is not given for a folder of stages."""
    if weights != "raw":
        raise ValueError(
            f"weights={shown(weights)} requires a checkpoint file; {folder} is a folder"
        )
    if base is not None:
        raise ValueError(f"base={shown(os.fspath(base))} is for an adapter; {folder} has models")


def _warn_packaged(name: str) -> None:
    KNOWN_LIMITS.add(name)
    warnings.warn(
        f"{name!r}, the model in the package, knows only {PACKAGED[name]}; for photographs its"
        " output is a guess, and docs/photographs.md says which model knows them",
        PackagedModelWarning,
        stacklevel=caller_level(),
    )


def _model(stored: StoredModel, limits: Mapping[str, Any]) -> Model:
    return Model(
        stored.network,
        stored.tokenizer,
        stored.answers,
        classes=stored.classes,
        dtype=stored.dtype,
        trained_on=stored.trained_on,
        origin=Origin(stored.path, stored.stored_dtype, stored.kept),
        **limits,
    )
