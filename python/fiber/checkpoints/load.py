"""Load a model from a path: a model folder, adapter, published checkpoint, or encoder files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fiber.atomic_io import read_json
from fiber.checkpoints.adapters.files import is_adapter
from fiber.checkpoints.adapters.load import load_adapter
from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.model_dir import StoredModel, is_run_checkpoint, load_model
from fiber.checkpoints.published import check_names, load_published
from fiber.checkpoints.stages import (
    check_not_transformers,
    describe_missing,
    model_path,
    stage_with,
)
from fiber.checkpoints.torch_file import SUFFIXES, Checkpoint, Weights, read_checkpoint
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES
from fiber.checkpoints.vocabulary.sources import Answers, open_answers, open_tokenizer
from fiber.checkpoints.weights import copy_weights
from fiber.data import Tokenizer
from fiber.messages import shown
from fiber.models.heads import need_head
from fiber.models.registry import build_empty, encoder_format, recognize


def read_model(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    image_size: int | None = None,
    weights: Weights = "raw",
    base: str | os.PathLike[str] | None = None,
) -> StoredModel:
    """Load a model folder, a finished run, an adapter or a published checkpoint in evaluation mode.

    `image_size` sets a new input size in pixels. `weights="ema"` reads the moving average of the
    weights from a published checkpoint. `base` is the base of an adapter, by default the one that
    it names.

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        ValueError: if the file is not a checkpoint, or tensors do not fit the model. The message
            lists these tensors.
    """
    path = Path(path)
    if path.is_dir():
        if weights != "raw":
            raise ValueError(
                f"weights={shown(weights)} requires a checkpoint file; expected 'raw' for the"
                " folder"
                f" {path}"
            )
        if is_adapter(path):
            stored = load_adapter(path, read_model, base=base, image_size=image_size)
            stored.network.to(device)
            return stored
    if base is not None:
        raise ValueError(f"base={shown(os.fspath(base))} is for an adapter; {path} is a model")
    if path.is_dir():
        return load_model(path, device, image_size=image_size)
    return _published_model(path, read_checkpoint(path, weights), device, image_size)


def read_init(path: str | os.PathLike[str]) -> StoredModel | EncoderStates:
    """Load initial weights from a model, a standalone encoder, or a folder of encoder files.

    Of a folder with model.safetensors and pytorch_model.bin of the same encoder, such as a snapshot
    of the Hugging Face Hub, the first is used, as in transformers.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a file is invalid, or its tensors do not fit the model.
    """
    path = model_path(path)
    if not path.exists():
        raise FileNotFoundError(describe_missing(path))
    if path.is_dir():
        if is_adapter(path):
            return load_adapter(path, read_model)
        files = [] if _is_ours(path) else sorted(f for f in path.iterdir() if f.suffix in SUFFIXES)
        if not files:
            return load_model(path)
        states = {file: read_checkpoint(file).state for file in files}
        preferred, copy = path / "model.safetensors", path / "pytorch_model.bin"
        if {preferred, copy} <= set(states):
            kind, copied = (encoder_format(states[each]) for each in (preferred, copy))
            if copied == kind:
                del states[copy]
        return EncoderStates(path=path, states=states, settings=_read_settings(path))
    checkpoint = read_checkpoint(path)
    if encoder_format(checkpoint.state) is not None:
        states = {path: checkpoint.state}
        return EncoderStates(path=path, states=states, settings=_read_settings(path.parent))
    return _published_model(path, checkpoint, "cpu", None)


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder; return {} if there is none."""
    path = folder / "config.json"
    values = read_json(path, MAX_JSON_BYTES) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _published_model(
    path: Path, checkpoint: Checkpoint, device: torch.device | str, image_size: int | None
) -> StoredModel:
    state, prefix = checkpoint.state, ""
    try:
        architecture = recognize(state)
        prefix = f"{architecture.title} checkpoint: "
        config = architecture.infer_config(state, checkpoint.config)
        if image_size is not None:
            config = config.with_image_size(image_size)
            state = architecture.resize(state, config)
        check_names(config, state)
        model = build_empty(config)
        copy = partial(copy_weights, path=path, release=checkpoint.release)
        ignored = load_published(model, state, device, copy)
        filled = architecture.default_values(config, state)
    except ValueError as error:
        raise ValueError(f"{path}: {prefix}{error}") from error
    return StoredModel(network=model.eval(), path=path, ignored=ignored, filled=filled)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder contains a fiber model or run, or is a checkpoint of a run.

    A config.json is not sufficient, since transformers models have one as well.
    """
    if not (folder / "config.json").is_file():
        return is_run_checkpoint(folder) or (folder / "checkpoints").is_dir()
    values = read_json(folder / "config.json", MAX_JSON_BYTES)
    return isinstance(values, dict) and "model" in values


def load_stored(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    answers: Answers | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    image_size: int | None = None,
    weights: Weights = "raw",
    base: str | os.PathLike[str] | None = None,
    heads: Collection[str] = (),
) -> StoredModel:
    """Load a model. `tokenizer` and `answers` replace the stored ones. See `fiber.load`.

    In a folder with one model per stage, this is the first with one of `heads`.

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        ValueError: if the tokenizer or answers do not match the model.
    """
    path = stage_with(model_path(path), heads)
    if not path.exists():
        raise FileNotFoundError(describe_missing(path))
    check_not_transformers(path)
    target = choose_device(device)
    stored = read_model(path, target, image_size=image_size, weights=weights, base=base)
    if dtype is None:
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    return dataclasses.replace(with_vocabulary(stored, tokenizer, answers), dtype=dtype)


def with_vocabulary(
    stored: StoredModel,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    answers: Answers | None,
) -> StoredModel:
    """Replace the tokenizer and answers of a model by those that are given, and check them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the tokenizer or answers do not match the model.
    """
    config = stored.config
    own = stored.tokenizer if tokenizer is None else open_tokenizer(tokenizer, config)
    vqa_answers = stored.answers if answers is None else open_answers(answers)
    # Of a list that was passed, the caller knows where it is from.
    where = f"{stored.path}: " if stored.path is not None and answers is None else ""
    if own is not None and own.vocab_size != config.vocab_size:
        file = "" if stored.path is None else f"{stored.path / 'tokenizer.json'}: "
        raise ValueError(
            f"{file if tokenizer is None else ''}the tokenizer has {own.vocab_size} tokens,"
            f" expected {config.vocab_size}; use the"
            " tokenizer that the model was trained with"
        )
    if answers is not None:
        need_head(config, "vqa", "a list of answers")
    if vqa_answers and "vqa" in config.heads and len(vqa_answers) != config.num_answers:
        raise ValueError(
            f"{where}got {len(vqa_answers)} answers, expected {config.num_answers} (the number of"
            " outputs of the VQA head)"
        )
    return dataclasses.replace(stored, tokenizer=own, answers=vqa_answers)


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return a device, by default CUDA if it is available, else the CPU.

    Raises:
        ValueError: if the device is invalid or not found.
    """
    target = parse_device(device)
    count = torch.cuda.device_count()
    if target.type == "cuda" and (target.index or 0) >= count:
        raise ValueError(
            f"device {shown(str(device))} not found: the number of CUDA devices is {count}; pass"
            " 'cpu', or see what `fiber doctor` reports"
        )
    return target


def parse_device(device: torch.device | str | None) -> torch.device:
    """Return a device, by default CUDA if it is available, else the CPU.

    Raises:
        ValueError: if it is neither a CPU nor a CUDA device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, torch.dtype):
        raise ValueError(
            f"device: got the dtype {device}; expected 'cpu', 'cuda' or 'cuda:N'. The compute"
            f" dtype is chosen by fiber.load(path, dtype={device})"
        )
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"invalid device {shown(device)}; expected 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device {shown(str(device))} is not supported; expected 'cpu', 'cuda' or 'cuda:N'"
        )
    return target
