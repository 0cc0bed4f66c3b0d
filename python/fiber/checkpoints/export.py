"""Export models to published checkpoints and encoder files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fiber.atomic_io import write_file
from fiber.checkpoints.encoders import SwinLayout, encoder_states
from fiber.checkpoints.published import published_state
from fiber.checkpoints.torch_file import SETTINGS, SUFFIXES
from fiber.messages import shown
from fiber.models.registry import Network, architecture_of


def write_published(model: Network, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint for the published code, including the config.

    The suffix selects safetensors or torch.save. The config is stored under Lightning's key, with
    both published and our own field names. Loading the file restores the same model, but with the
    published order of input channels.

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
    _make_folder(path.parent)
    if path.suffix == ".safetensors":
        _write_safetensors(path, state, {SETTINGS: json.dumps(settings)})
    else:
        content = {architecture.published_key: state, SETTINGS: settings}
        write_file(path, lambda part: torch.save(content, part))
    return state


def write_encoders(
    model: Network, folder: Path, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Write one safetensors file per encoder, with the keys used by other libraries.

    Returns:
        The state dict written to each file, by file stem.

    Raises:
        FileExistsError: if one of the files already exists.
        OSError: if a file cannot be written.
    """
    states = encoder_states(model, layout)
    _make_folder(folder)
    for name in states:
        if (folder / f"{name}.safetensors").exists():
            raise FileExistsError(f"{folder} already contains {name}.safetensors")
    for name, state in states.items():
        _write_safetensors(folder / f"{name}.safetensors", state)
    return states


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write to")
    folder.mkdir(parents=True, exist_ok=True)


def _write_safetensors(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", **(metadata or {})}
    write_file(path, lambda part: safetensors.torch.save_file(tensors, part, metadata))
