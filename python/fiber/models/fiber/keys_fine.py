"""Key map of the published fine checkpoints.

Every published tensor is mapped, is a buffer listed in `IGNORED_FINE_KEYS`, or raises.
"""

from __future__ import annotations

import re

from fiber.config import FiberConfig
from fiber.models.encoders.keys import KeyMap, weight_and_bias
from fiber.models.fiber.keys import tower_keys

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


def _ignored(name: str) -> str | None:
    """Say why a published key outside `fine_keys` may be left out; None: it may not."""
    return next(
        (reason for pattern, reason in IGNORED_FINE_KEYS if re.fullmatch(pattern, name)), None
    )
