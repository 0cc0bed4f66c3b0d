"""Published fine checkpoints and ours: an explicit map of names, both ways.

As in `fiber.models.weights`, nothing is skipped quietly: the buffers of the published model follow
from its sizes and are listed in the answer; any other tensor that the map does not name raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fiber.config import FiberConfig
from fiber.models.detector import FiberDetector
from fiber.models.weights_towers import (
    KeyMap,
    load_mapped,
    sort_unmapped,
    tower_keys,
    unstack,
    weight_and_bias,
)
from fiber.ops.anchors import level_anchors
from fiber.ops.boxes import to_inclusive

_IMAGE = "fusion_backbone.backbone.body."
_PYRAMID = "fusion_backbone.backbone.fpn."
_TEXT = "fusion_backbone.language_backbone.body.model."
_HEAD = "rpn.head."

#: Published buffers, which follow from the model's sizes: pattern, and what it holds.
IGNORED_FINE_KEYS: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.embeddings\.position_ids", "buffer that counts positions"),
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "buffer that follows from the anchor sizes"),
)

#: Our layers that the published model writes as 1 x 1 convolutions, with (C_out, C, 1, 1) weights.
_CONVOLUTIONS = {
    "box_deltas": "bbox_pred",
    "centerness": "centerness",
    "unused_classes": "cls_logits",
}


def fine_keys(config: FiberConfig) -> KeyMap:
    """Map every tensor of the detector: names of a `FiberDetector` -> published names."""
    towers = tower_keys(config, image_prefix=_IMAGE, text_prefix=_TEXT)
    keys: KeyMap = {f"backbone.{ours}": theirs for ours, theirs in towers.items()}
    for number in range(3):
        keys |= weight_and_bias(f"stage_norms.{number}", f"{_IMAGE}norm{number + 1}")
        keys |= weight_and_bias(f"pyramid.laterals.{number}", f"{_PYRAMID}fpn_inner{number + 2}")
        keys |= weight_and_bias(f"pyramid.outputs.{number}", f"{_PYRAMID}fpn_layer{number + 2}")
    for level in ("p6", "p7"):
        keys |= weight_and_bias(f"pyramid.{level}", f"{_PYRAMID}top_blocks.{level}")
    for block in range(config.detector.num_blocks):
        keys |= block_keys(f"tower.blocks.{block}", f"{_HEAD}dyhead_tower.{block}")
    for ours, theirs in _CONVOLUTIONS.items():
        keys |= weight_and_bias(f"head.{ours}", f"{_HEAD}{theirs}")
    keys |= weight_and_bias("head.text_projection", f"{_HEAD}dot_product_projection_text")
    keys["head.text_bias"] = (f"{_HEAD}bias_lang",)
    keys["head.bias"] = (f"{_HEAD}bias0",)
    keys["head.log_temperature"] = (f"{_HEAD}log_scale",)
    for level in range(len(config.detector.strides)):
        keys[f"head.level_scales.{level}"] = (f"{_HEAD}scales.{level}.scale",)
    return keys


def block_keys(ours: str, theirs: str) -> KeyMap:
    """Map every tensor of a `DynamicBlock`, given its own and its published prefix."""
    keys = {
        **weight_and_bias(f"{ours}.offsets", f"{theirs}.offset"),
        **weight_and_bias(f"{ours}.scale_attention", f"{theirs}.AttnConv.1"),
        **weight_and_bias(f"{ours}.activation.reduce", f"{theirs}.relu.fc.0"),
        **weight_and_bias(f"{ours}.activation.expand", f"{theirs}.relu.fc.2"),
    }
    for number, branch in enumerate(("coarser", "same", "finer")):
        keys |= weight_and_bias(f"{ours}.{branch}", f"{theirs}.DyConv.{number}.conv")
        keys |= weight_and_bias(f"{ours}.{branch}.norm", f"{theirs}.DyConv.{number}.bn")
    return keys


def load_published_fine(model: FiberDetector, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Load a published fine state dict into a detector.

    Args:
        model: its config says which keys are needed.
        state: tensors by published name; a leading `module.` is dropped.

    Returns:
        Published keys that were left out, each with the reason.

    Raises:
        ValueError: naming missing keys, unknown keys and tensors of another shape.
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
    """Give a detector's tensors their published names, and add the published buffers.

    The published loader and ours both read the result; the inverse of `load_published_fine`.
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


def _ignored(name: str) -> str | None:
    """Say why a published key outside `fine_keys` may be left out; None: it may not."""
    return next(
        (reason for pattern, reason in IGNORED_FINE_KEYS if re.fullmatch(pattern, name)), None
    )


def _relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, (N, N) int64."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    place = place.flatten(1)
    distance = place[:, :, None] - place[:, None, :] + window - 1
    return distance[0] * (2 * window - 1) + distance[1]
