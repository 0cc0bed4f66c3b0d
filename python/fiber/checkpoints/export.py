"""Write models as published checkpoints and as encoder files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fiber.atomic_io import write_file
from fiber.checkpoints.encoders import FIRST_CONVOLUTION, SwinLayout, tower_states
from fiber.checkpoints.published import published_state
from fiber.checkpoints.torch_file import (
    SETTINGS,
    SUFFIXES,
)
from fiber.models.fiber.infer_config import stated_config
from fiber.models.registry import Network, architecture_of


def write_published(model: Network, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint for the published code, including the config.

    The config is stored under Lightning's key, with published and our own field names. The file
    loads as an equal model up to the order of input channels.

    Args:
        model: coarse or fine. A fine model is written for BGR input, as published.
        path: .safetensors file, or torch.save file with the tensors under "state_dict" (coarse)
            or "model" (fine).

    Returns:
        Written tensors by published key.

    Raises:
        ValueError: for an unknown suffix, or if the published code lacks options of the model.
        OSError: if the file cannot be written; no partial file remains.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    config = model.config
    architecture = architecture_of(config)
    state, order = published_state(model), architecture.published_channel_order
    if config.channel_order != order:
        (first,) = architecture.keys(config)[FIRST_CONVOLUTION]
        state[first] = state[first].flip(1)
    stated = stated_config(replace(config, channel_order=order))
    try:
        architecture.infer_config(state, stated)
    except ValueError as error:
        raise ValueError(f"{path}: the published form cannot hold this model: {error}") from error
    settings = {"config": stated}
    _make_folder(path.parent)
    if path.suffix == ".safetensors":
        write_file(path, _tensor_writer(state, {SETTINGS: json.dumps(settings)}))
    else:
        write_file(
            path,
            lambda part: torch.save({architecture.published_key: state, SETTINGS: settings}, part),
        )
    return state


def write_towers(
    model: Network, folder: Path, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Write swin.safetensors and roberta.safetensors with the keys of other libraries.

    Args:
        model: coarse or fine; fusion and heads are not written.
        folder: created if missing.
        layout: key layout of the Swin file.

    Returns:
        Written state dict of each file, by stem.

    Raises:
        FileExistsError: if one of the files exists.
        OSError: if a file cannot be written.
    """
    states = tower_states(model, layout)
    _make_folder(folder)
    for tower in states:
        if (folder / f"{tower}.safetensors").exists():
            raise FileExistsError(f"{folder} holds {tower}.safetensors already; name a new folder")
    for tower, state in states.items():
        write_file(folder / f"{tower}.safetensors", _tensor_writer(state))
    return states


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write to")
    folder.mkdir(parents=True, exist_ok=True)


def _tensor_writer(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], Any]:
    metadata = {"format": "pt", **(metadata or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return lambda part: safetensors.torch.save_file(tensors, part, metadata)
