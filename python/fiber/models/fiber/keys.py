"""Published keys of both FIBER stages: key maps, ignored keys, converted tensors.

A published tensor is mapped, ignored for a reason listed here, or raises on load.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from fiber.config import FiberConfig
from fiber.models.encoders.keys import KeyMap, roberta_keys, swin_keys, weight_and_bias
from fiber.ops.anchors import level_anchors
from fiber.ops.boxes import to_inclusive

#: Ignored published coarse keys: pattern and reason.
IGNORED_COARSE_KEYS: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.attn_mask", "buffer that follows from the map size"),
    (r"text_transformer\.embeddings\.position_ids", "buffer that counts positions"),
    (r"(image|text|image_input|text_input|text_input_mask)_queue", "queue of past batches"),
    (r"queue_(ptr|total)", "queue of past batches"),
    (r"rank_output\.(weight|bias)", "stale copy of row 1 of the matching head"),
    (r"logit_scale", "temperature of an implementation before the published one"),
    (r"token_type_embeddings\.weight", "modality vectors that no published code reads"),
    (r"copy_module\..*", "frozen copy that the captioner's off-policy training (GOLD) keeps"),
    (r"text_transformer\.pooler\.dense\.(weight|bias)", "RoBERTa's pooler, never used"),
    (r".*\.crossattention_t2i\.output\.LayerNorm\.(weight|bias)", "norm that is never applied"),
)

#: Heads, and published prefixes that only models with one of these heads have.
_HEAD_PREFIXES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("itc",),
        (
            "temp",
            "vit_model.norm.",
            "cross_modal_text_transform_itc.",
            "cross_modal_image_transform_itc.",
            "cross_modal_text_pooler_itc.",
            "cross_modal_image_pooler_itc.",
        ),
    ),
    (("itm", "mlm", "vqa", "nlvr2", "caption"), ("cross_modal_text_transform.",)),
    (
        ("itm", "vqa", "nlvr2"),
        (
            "cross_modal_image_transform.",
            "cross_modal_image_pooler.",
            "cross_modal_text_pooler.",
        ),
    ),
    (("mlm", "caption"), ("mlm_score.",)),
    (("itm",), ("itm_score.",)),
    (("vqa",), ("vqa_classifier.",)),
    (("nlvr2",), ("nlvr2_classifier.",)),
    (("caption",), ("cross_modal_att_layers.",)),
)

_IMAGE = "fusion_backbone.backbone.body."
_PYRAMID = "fusion_backbone.backbone.fpn."
_TEXT = "fusion_backbone.language_backbone.body.model."
_HEAD = "rpn.head."

#: Ignored published fine keys, all buffers: pattern and reason.
IGNORED_FINE_KEYS: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.embeddings\.position_ids", "buffer that counts positions"),
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "buffer that follows from the anchor sizes"),
)

#: Our linear layers that are 1 x 1 convolutions in the published model, (C_out, C, 1, 1) weights.
_CONVOLUTIONS = {
    "box_deltas": "bbox_pred",
    "centerness": "centerness",
    "unused_classes": "cls_logits",
}


def tower_keys(config: FiberConfig, *, image_prefix: str, text_prefix: str) -> KeyMap:
    """Map the backbone, whose published keys differ between the stages only in the prefix.

    Args:
        config: config of the model.
        image_prefix: prefix of the published image tower, including the dot.
        text_prefix: prefix of the published text tower, including the dot.

    Returns:
        Keys of a `FiberBackbone` -> published keys.
    """
    keys = swin_keys(config.swin, image_prefix) | roberta_keys(config.roberta, text_prefix)
    fused, layers = config.fusion.num_fused_layers, config.roberta.num_layers
    blocks = [
        f"{image_prefix}layers.{stage}.blocks.{block}"
        for stage, depth in enumerate(config.swin.depths)
        for block in range(depth)
    ]
    for pair in range(fused):
        block, layer = blocks[len(blocks) - fused + pair], layers - fused + pair
        keys |= _image_to_text_keys(f"fusion.{pair}.image_to_text", f"{block}.attn", config)
        keys |= _text_to_image_keys(
            f"fusion.{pair}.text_to_image", f"{text_prefix}encoder.layer.{layer}"
        )
    return keys


def _image_to_text_keys(ours: str, theirs: str, config: FiberConfig) -> KeyMap:
    norm = weight_and_bias(f"{ours}.norm", f"{theirs}.norm_i2t_i")
    return {
        f"{ours}.gate": (f"{theirs}.alpha_i2t",),
        **(norm if config.fusion.normalize_query else {}),
        **weight_and_bias(f"{ours}.query", f"{theirs}.qkv_i2t"),
        **weight_and_bias(f"{ours}.key_value", f"{theirs}.qkv_text_i2t"),
        **weight_and_bias(f"{ours}.output", f"{theirs}.proj_i2t"),
    }


def _text_to_image_keys(ours: str, theirs: str) -> KeyMap:
    attention = f"{theirs}.crossattention_t2i"
    return {
        f"{ours}.gate": (f"{theirs}.alpha_t2i",),
        **weight_and_bias(f"{ours}.query", f"{attention}.self.query"),
        **weight_and_bias(f"{ours}.key_value", f"{attention}.self.key", f"{attention}.self.value"),
        **weight_and_bias(f"{ours}.output", f"{attention}.output.dense"),
    }


def coarse_keys(config: FiberConfig) -> KeyMap:
    """Map the coarse model: keys of a `FiberImageText` -> published keys."""
    towers = tower_keys(config, image_prefix="vit_model.", text_prefix="text_transformer.")
    keys: KeyMap = {f"backbone.{ours}": theirs for ours, theirs in towers.items()}
    heads = set(config.image_text.heads)
    if "itc" in heads:
        keys["temperature"] = ("temp",)
        keys |= weight_and_bias("itc_image_norm", "vit_model.norm")
        for side in ("image", "text"):
            keys |= weight_and_bias(f"itc_{side}_transform", f"cross_modal_{side}_transform_itc")
            keys |= weight_and_bias(
                f"itc_{side}_pooler.linear", f"cross_modal_{side}_pooler_itc.dense"
            )
    if heads - {"itc"}:
        keys |= weight_and_bias("text_transform", "cross_modal_text_transform")
    if heads & {"itm", "vqa", "nlvr2"}:
        keys |= weight_and_bias("image_transform", "cross_modal_image_transform")
        for side in ("image", "text"):
            keys |= weight_and_bias(f"{side}_pooler.linear", f"cross_modal_{side}_pooler.dense")
    if heads & {"mlm", "caption"}:
        keys |= weight_and_bias("language_head.transform", "mlm_score.transform.dense")
        keys |= weight_and_bias("language_head.norm", "mlm_score.transform.LayerNorm")
        keys["language_head.decoder.weight"] = ("mlm_score.decoder.weight",)
        keys["language_head.decoder.bias"] = ("mlm_score.bias",)
    if "itm" in heads:
        keys |= weight_and_bias("itm_head", "itm_score.fc")
    for head in ("vqa", "nlvr2"):
        if head in heads:
            keys |= weight_and_bias(f"{head}_head.hidden", f"{head}_classifier.0")
            keys |= weight_and_bias(f"{head}_head.norm", f"{head}_classifier.1")
            keys |= weight_and_bias(f"{head}_head.output", f"{head}_classifier.3")
    if "caption" in heads:
        for number, layer in enumerate(_projected_text_layers(config)):
            keys |= weight_and_bias(
                f"caption_projections.{number}", f"cross_modal_att_layers.{layer}"
            )
    return keys


def ignored_coarse_key(name: str, config: FiberConfig) -> str | None:
    """Return the reason to ignore a published key outside `coarse_keys`; None if it is unknown."""
    for pattern, reason in IGNORED_COARSE_KEYS:
        if re.fullmatch(pattern, name):
            return reason
    layer = re.fullmatch(r"text_transformer\.encoder\.layer\.(\d+)\.alpha_t2i", name)
    fused_from = config.roberta.num_layers - config.fusion.num_fused_layers
    if layer and int(layer[1]) < fused_from:
        return "gate of a text layer that reads no picture"
    layer = re.fullmatch(r"cross_modal_att_layers\.(\d+)\.(weight|bias)", name)
    if layer and int(layer[1]) not in _projected_text_layers(config):
        return "projection for a text layer that needs none"
    for heads, prefixes in _HEAD_PREFIXES:
        if name.startswith(prefixes) and not set(heads) & set(config.image_text.heads):
            return f"the model was built without a head that needs it ({' or '.join(heads)})"
    return None


def _projected_text_layers(config: FiberConfig) -> range:
    """Return the text layers paired with stage 3, which have a caption projection."""
    fused = config.fusion.num_fused_layers
    first = config.roberta.num_layers - fused
    return range(first, first + max(fused - config.swin.depths[3], 0))


def filled_in(config: FiberConfig, names: Container[str]) -> dict[str, float]:
    """Return default values of tensors that a published coarse file may lack.

    `temp` is missing if ITC was not among the objectives of the run, and in the released files,
    which were written by an earlier implementation. The ITC projections are always present.

    Args:
        config: config of the model.
        names: published keys in the file.

    Returns:
        Our keys of missing tensors, with values.
    """
    if "itc" in config.image_text.heads and "temp" not in names:
        return {"temperature": config.image_text.temperature}
    return {}


def fine_keys(config: FiberConfig) -> KeyMap:
    """Map the detector: keys of a `FiberDetector` -> published keys."""
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
    """Map a `DynamicBlock`, given our prefix and the published one."""
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


def ignored_fine_key(name: str, config: FiberConfig) -> str | None:
    """Return the reason to ignore a published key outside `fine_keys`; None if it is unknown."""
    return next(
        (reason for pattern, reason in IGNORED_FINE_KEYS if re.fullmatch(pattern, name)), None
    )


def from_published_fine(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip a leading `module.` and convert 1 x 1 convolutions to linear layers."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for theirs in _CONVOLUTIONS.values():
        name = f"{_HEAD}{theirs}.weight"
        if name in state:
            # (C_out, C, 1, 1) -> (C_out, C)
            state[name] = state[name].flatten(1)
    return state


def to_published_fine(state: Mapping[str, Tensor], config: FiberConfig) -> dict[str, Tensor]:
    """Invert `from_published_fine` and add the published buffers."""
    state = dict(state)
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
    """Return the bias table row of each pair of tokens in a window, (N, N) int64."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    place = place.flatten(1)
    distance = place[:, :, None] - place[:, None, :] + window - 1
    return distance[0] * (2 * window - 1) + distance[1]
