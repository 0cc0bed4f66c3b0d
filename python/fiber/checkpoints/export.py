"""Export models to published checkpoints and encoder files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiber.atomic_io import made_folder, whole_or_none, write_file
from fiber.checkpoints.encoders import SwinLayout, encoder_states
from fiber.checkpoints.model_dir import write_tensors
from fiber.checkpoints.published import published_state
from fiber.checkpoints.torch_file import SETTINGS, SUFFIXES, settings_tensor
from fiber.messages import shown
from fiber.models.registry import Architecture, Network, architecture_of


def write_published(model: Network, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint for the published code, including the config.

    The suffix selects safetensors or torch.save. The config is stored under Lightning's key, with
    both published and our own field names. A family whose files hold nothing but tensors has it as
    a tensor of bytes, and only if the others do not determine it. Loading the file restores the
    same model, but with the published order of input channels.

    Returns:
        The written tensors, by published key.

    Raises:
        ValueError: if the suffix is unknown, or the published code does not support the model.
        OSError: if the file cannot be written; no partial file remains.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: expected one of the suffixes {', '.join(SUFFIXES)}; got {shown(path.suffix)}"
        )
    config, architecture = model.config, architecture_of(model.config)
    state, order = published_state(model), architecture.published_channel_order
    if config.channel_order != order:
        (first,) = architecture.keys(config)[architecture.first_convolution]
        state[first] = state[first].flip(1)
        config = replace(config, channel_order=order)
    stored = architecture.stored_config(config)
    try:
        architecture.infer_config(state, stored)
    except ValueError as error:
        raise ValueError(
            f"{path}: the published format does not support this model: {error}"
        ) from error
    settings = {"config": stored}
    _check_folder(path.parent)
    with made_folder(path.parent):
        if path.suffix == ".safetensors":
            metadata = {SETTINGS: json.dumps(settings)}
            write_file(path, lambda part: write_tensors(state, part, metadata))
        else:
            content = _torch_content(architecture, state, config, settings)
            write_file(path, lambda part: _save(content, part))
    return state


def _torch_content(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    config: Any,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    if architecture.published_key is not None:
        return {architecture.published_key: state, SETTINGS: settings}
    try:
        is_determined = architecture.infer_config(state, {}) == config
    except ValueError:
        is_determined = False
    # The published code takes every value for a tensor.
    return {**state} if is_determined else {**state, SETTINGS: settings_tensor(settings)}


def write_encoders(
    model: Network, folder: Path, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Write one safetensors file per encoder, with the keys used by other libraries.

    Returns:
        The state dict written to each file, by file stem.

    Raises:
        FileExistsError: if one of the files already exists.
        OSError: if a file cannot be written; none of them remains.
    """
    states = encoder_states(model, layout)
    _check_folder(folder)
    files = {name: folder / f"{name}.safetensors" for name in states}
    for path in files.values():
        if path.exists():
            raise FileExistsError(f"{folder} already contains {path.name}")
    with made_folder(folder), whole_or_none(files.values()):
        for name, state in states.items():
            write_file(files[name], lambda part, state=state: write_tensors(state, part))
    return states


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write to")


def _save(content: Mapping[str, Any], path: Path) -> None:
    # torch.save hides errors of the system if it opens the file.
    with path.open("wb") as file:
        torch.save(content, file)
