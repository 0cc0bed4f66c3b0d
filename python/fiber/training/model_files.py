"""Models from and to files of others: published checkpoints of both stages, and single towers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fiber.atomic_io import read_json, write_file
from fiber.models.detector import FiberDetector
from fiber.models.image_text import FiberImageText
from fiber.models.weights import (
    coarse_keys,
    filled_in,
    load_published_coarse,
    published_coarse_state,
)
from fiber.models.weights_config import published_config
from fiber.models.weights_file import (
    SETTINGS,
    SUFFIXES,
    Checkpoint,
    Weights,
    read_checkpoint,
    read_state,
)
from fiber.models.weights_fine import fine_keys, load_published_fine, published_fine_state
from fiber.models.weights_layouts import FIRST_CONVOLUTION, SwinLayout, tower_states
from fiber.models.weights_stated import stated_config
from fiber.models.weights_towers import resize_bias_tables, tower_layout
from fiber.training.checkpoint import StoredModel, build_model, load_model

#: Order of the colours that the first convolution of each published stage expects.
_PUBLISHED_ORDER = {"coarse": "rgb", "fine": "bgr"}


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Image and text towers of others that a training starts from."""

    #: The folder or file that they were read from.
    path: Path
    #: Tensors by name, of each file.
    states: Mapping[Path, Mapping[str, Tensor]]


def read_model(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    image_size: int | None = None,
    weights: Weights = "raw",
) -> StoredModel:
    """Read a model of ours or a published checkpoint, in evaluation mode.

    Args:
        path: folder of a run or of a saved model, or a published file of either stage.
        device: where to.
        image_size: side of the pictures in pixels that a coarse model is for from now on, if not
            its own; its tables of position biases are resized.
        weights: of a file that has both, the trained ones ("raw") or their moving average ("ema").

    Raises:
        FileNotFoundError: if there is no model, with what is missing.
        ValueError: if the file is none, or its tensors do not fit the model that they describe,
            with every name that does not.
    """
    path = Path(path)
    if path.is_dir():
        if weights != "raw":
            raise ValueError(f"weights {weights!r}: {path} is a folder, which holds one set only")
        return load_model(path, device, image_size=image_size)
    return _published_model(path, read_checkpoint(path, weights), device, image_size)


def read_start(path: str | os.PathLike[str]) -> StoredModel | Towers:
    """Read what a training starts from.

    Args:
        path: what `read_model` takes; a file with a Swin or a RoBERTa; a folder with such files.

    Raises:
        FileNotFoundError: if there is nothing of the kind.
        ValueError: if a file cannot be read or does not fit.
    """
    path = Path(path)
    if path.is_dir():
        files = [] if _is_ours(path) else sorted(f for f in path.iterdir() if f.suffix in SUFFIXES)
        if not files:
            return load_model(path)
        return Towers(path=path, states={file: read_state(file) for file in files})
    checkpoint = read_checkpoint(path)
    if tower_layout(checkpoint.state) is not None:
        return Towers(path=path, states={path: checkpoint.state})
    return _published_model(path, checkpoint, "cpu", None)


def write_published(model: FiberImageText | FiberDetector, path: Path) -> dict[str, Tensor]:
    """Write a checkpoint that the published code reads, with the model's configuration.

    The configuration is where Lightning writes it, by its published names and as ours, so that
    reading the file gives a model equal to this one in everything but the order of colours.

    Args:
        model: of either stage. A fine one gets the published order of colours, blue first.
        path: a .safetensors file, or one of torch.save with the tensors under "state_dict" (coarse)
            or "model" (fine).

    Returns:
        What was written, by published name.

    Raises:
        ValueError: if the file's name ends otherwise, or the published form cannot hold the model,
            with the fields that differ.
        OSError: if it cannot be written; nothing of it is left then.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    config = model.config
    if isinstance(model, FiberDetector):
        place, state, keys = "model", published_fine_state(model), fine_keys(config)
    else:
        place, state, keys = "state_dict", published_coarse_state(model), coarse_keys(config)
    order = _PUBLISHED_ORDER[config.stage]
    if config.channel_order != order:
        (first,) = keys[FIRST_CONVOLUTION]
        state[first] = state[first].flip(1)
    stated = stated_config(replace(config, channel_order=order))
    try:
        published_config(state, stated)
    except ValueError as error:
        raise ValueError(f"{path}: the published form cannot hold this model: {error}") from error
    settings = {"config": stated}
    _make_folder(path.parent)
    if path.suffix == ".safetensors":
        write_file(path, _tensor_writer(state, {SETTINGS: json.dumps(settings)}))
    else:
        write_file(path, lambda part: torch.save({place: state, SETTINGS: settings}, part))
    return state


def write_towers(
    model: FiberImageText | FiberDetector, folder: Path, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Write swin.safetensors and roberta.safetensors, as other codes name the two towers.

    Args:
        model: of either stage; what joins the towers and the heads are left out.
        folder: made if absent.
        layout: of the image tower.

    Returns:
        What was written, by the file's stem and by name.

    Raises:
        FileExistsError: if the folder holds one of the files.
        OSError: if they cannot be written.
    """
    states = tower_states(model, layout)
    _make_folder(folder)
    for tower in states:
        if (folder / f"{tower}.safetensors").exists():
            raise FileExistsError(f"{folder} holds {tower}.safetensors already; name a new folder")
    for tower, state in states.items():
        write_file(folder / f"{tower}.safetensors", _tensor_writer(state))
    return states


def _published_model(
    path: Path, checkpoint: Checkpoint, device: torch.device | str, image_size: int | None
) -> StoredModel:
    state = checkpoint.state
    try:
        config = published_config(state, checkpoint.config)
        if image_size is not None:
            config = config.with_image_size(image_size)
            state = resize_bias_tables(state, config.swin.window_size)
        with torch.device("meta"):
            model = build_model(config)
        model.to_empty(device=device)
        if isinstance(model, FiberDetector):
            ignored, filled = load_published_fine(model, state), {}
        else:
            ignored, filled = load_published_coarse(model, state), filled_in(config, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return StoredModel(model=model.eval(), path=path, ignored=ignored, filled=filled)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a model or a run of ours; transformers has a config.json as well."""
    config = folder / "config.json"
    if not config.is_file():
        return (folder / "checkpoints").is_dir()
    values = read_json(config)
    return isinstance(values, dict) and "model" in values


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
