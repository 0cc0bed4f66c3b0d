"""Load and write state dicts of the published FIBER checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fiber.checkpoints.key_map import load_mapped, sort_unmapped, unstack
from fiber.config import FiberConfig
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.keys_coarse import coarse_keys, filled_in, ignored_coarse_key
from fiber.models.fiber.keys_fine import _CONVOLUTIONS, _HEAD, _IMAGE, _TEXT, _ignored, fine_keys
from fiber.ops.anchors import level_anchors
from fiber.ops.boxes import to_inclusive


def load_published_coarse(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Load a published coarse state dict into a `FiberImageText`.

    Args:
        model: its config determines the required keys; those of `filled_in` are optional.
        state: tensors by published name.

    Returns:
        Dropped published keys with the reason.

    Raises:
        ValueError: with missing keys, unknown keys and tensors of another shape.
    """
    config: FiberConfig = model.config  # type: ignore[assignment]
    keys = coarse_keys(config)
    ignored, unknown = sort_unmapped(state, keys, lambda name: ignored_coarse_key(name, config))
    filled = filled_in(config, state)
    load_mapped(model, state, {ours: keys[ours] for ours in keys if ours not in filled}, unknown)
    own = model.state_dict()
    for ours, value in filled.items():
        nn.init.constant_(own[ours], value)
    return ignored


def published_coarse_state(model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a `FiberImageText` to their published names; the inverse of loading."""
    return unstack(model.state_dict(), coarse_keys(model.config))  # type: ignore[arg-type]


def load_published_fine(model: FiberDetector, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Load a published fine state dict into a detector.

    Args:
        model: its config determines the required keys.
        state: tensors by published name; a leading `module.` is dropped.

    Returns:
        Dropped published keys with the reason.

    Raises:
        ValueError: with missing keys, unknown keys and tensors of another shape.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    keys = fine_keys(model.config)
    ignored, unknown = sort_unmapped(state, keys, _ignored)
    for theirs in _CONVOLUTIONS.values():
        name = f"{_HEAD}{theirs}.weight"
        if name in state:
            # (C_out, C, 1, 1) -> (C_out, C)
            state[name] = state[name].flatten(1)
    load_mapped(model, state, keys, unknown)
    return ignored


def published_fine_state(model: FiberDetector) -> dict[str, Tensor]:
    """Rename the tensors of a detector to their published names, and add the published buffers.

    The inverse of `load_published_fine`; the published loader also reads the result.
    """
    config = model.config
    state = unstack(model.state_dict(), fine_keys(config))
    for theirs in _CONVOLUTIONS.values():
        name = f"{_HEAD}{theirs}.weight"
        state[name] = state[name][:, :, None, None]
    index = _relative_position_index(config.swin.window_size)
    for stage, depth in enumerate(config.swin.depths):
        for block in range(depth):
            name = f"{_IMAGE}layers.{stage}.blocks.{block}.attn.relative_position_index"
            state[name] = index.clone()
    positions = torch.arange(config.roberta.max_positions).unsqueeze(0)
    state[f"{_TEXT}embeddings.position_ids"] = positions
    for level, stride in enumerate(config.detector.strides):
        anchor = to_inclusive(level_anchors((1, 1), stride, config.detector.anchor_scale))
        state[f"rpn.anchor_generator.cell_anchors.{level}"] = anchor
    return state


def _relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, (N, N) int64."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    place = place.flatten(1)
    distance = place[:, :, None] - place[:, None, :] + window - 1
    return distance[0] * (2 * window - 1) + distance[1]
