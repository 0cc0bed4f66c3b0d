"""Published keys of both FIBER stages: key mappings, ignored keys and converted tensors.

Each published tensor is mapped, ignored for a reason listed here, or causes an error on load.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from fiber.config import FiberConfig
from fiber.models.encoders.keys import (
    EncoderLayout,
    IgnoredKeys,
    KeyMap,
    roberta_format,
    roberta_keys,
    swin_format,
    swin_keys,
    weight_and_bias,
)
from fiber.ops.anchors import level_anchors
from fiber.ops.boxes import to_inclusive

#: Prefixes of the published encoders.
COARSE_IMAGE, COARSE_TEXT = "vit_model.", "text_transformer."
FINE_IMAGE = "fusion_backbone.backbone.body."
FINE_TEXT = "fusion_backbone.language_backbone.body.model."
_PYRAMID = "fusion_backbone.backbone.fpn."
_HEAD = "rpn.head."
#: Prefix of the head of masks in files of the published form; the published code has no such head.
MASKS = "rpn.mask_head."
#: Transformer layers of the head of masks.
NUM_MASK_LAYERS = 3

#: Weight whose input channels are in RGB or BGR order.
FIRST_CONVOLUTION = "backbone.image.patch_embedding.projection.weight"

_IGNORED_COARSE: IgnoredKeys = (
    (r".*\.relative_position_index", "buffer derived from the window size"),
    (r".*\.attn_mask", "buffer derived from the map size"),
    (r"text_transformer\.embeddings\.position_ids", "position buffer"),
    (r"(image|text|image_input|text_input|text_input_mask)_queue", "queue of past batches"),
    (r"queue_(ptr|total)", "queue of past batches"),
    (r"rank_output\.(weight|bias)", "stale copy of row 1 of the ITM head"),
    (r"logit_scale", "temperature from an earlier implementation"),
    (r"token_type_embeddings\.weight", "modality embeddings that no published code uses"),
    (r"copy_module\..*", "frozen copy of the captioner for off-policy training (GOLD)"),
    (r"text_transformer\.pooler\.dense\.(weight|bias)", "unused RoBERTa pooler"),
    (r".*\.crossattention_t2i\.output\.LayerNorm\.(weight|bias)", "norm that is never applied"),
)
_IGNORED_FINE: IgnoredKeys = (
    (r".*\.relative_position_index", "buffer derived from the window size"),
    (r".*\.embeddings\.position_ids", "position buffer"),
    (r"rpn\.anchor_generator\.cell_anchors\.\d+", "buffer derived from the anchor sizes"),
)

#: Maps each group of heads that share layers to a mapping from our layers to published layers; a
#: tuple holds the key of a single tensor.
_HEAD_LAYERS: dict[tuple[str, ...], dict[str, str | tuple[str, ...]]] = {
    ("itc",): {
        "temperature": ("temp",),
        "itc_image_norm": "vit_model.norm",
        "itc_image_transform": "cross_modal_image_transform_itc",
        "itc_image_pooler.linear": "cross_modal_image_pooler_itc.dense",
        "itc_text_transform": "cross_modal_text_transform_itc",
        "itc_text_pooler.linear": "cross_modal_text_pooler_itc.dense",
    },
    ("itm", "mlm", "vqa", "nlvr2", "caption"): {"text_transform": "cross_modal_text_transform"},
    ("itm", "vqa", "nlvr2"): {
        "image_transform": "cross_modal_image_transform",
        "image_pooler.linear": "cross_modal_image_pooler.dense",
        "text_pooler.linear": "cross_modal_text_pooler.dense",
    },
    ("mlm", "caption"): {
        "language_head.transform": "mlm_score.transform.dense",
        "language_head.norm": "mlm_score.transform.LayerNorm",
        "language_head.decoder.weight": ("mlm_score.decoder.weight",),
        "language_head.decoder.bias": ("mlm_score.bias",),
    },
    ("itm",): {"itm_head": "itm_score.fc"},
    ("vqa",): {
        "vqa_head.hidden": "vqa_classifier.0",
        "vqa_head.norm": "vqa_classifier.1",
        "vqa_head.output": "vqa_classifier.3",
    },
    ("nlvr2",): {
        "nlvr2_head.hidden": "nlvr2_classifier.0",
        "nlvr2_head.norm": "nlvr2_classifier.1",
        "nlvr2_head.output": "nlvr2_classifier.3",
    },
}

#: Our linear layers that are 1 x 1 convolutions with (C_out, C, 1, 1) weights in published files.
_CONVOLUTIONS = {
    "box_deltas": "bbox_pred",
    "centerness": "centerness",
    "unused_classes": "cls_logits",
}


def _swin_file_keys(config: FiberConfig, layout: EncoderLayout) -> KeyMap:
    keys = swin_keys(config.swin, layout)
    if "itc" in config.heads:
        keys |= weight_and_bias("itc_image_norm", f"{layout.prefix}norm")
    return keys


#: Standalone encoders that FIBER models load and write.
ENCODERS = (
    swin_format(keys=_swin_file_keys),
    roberta_format(keys=lambda config, layout: roberta_keys(config.roberta, layout)),
)


def _backbone_keys(config: FiberConfig, image_prefix: str, text_prefix: str) -> KeyMap:
    """Return the key mapping of the backbone; only the published prefixes depend on the stage."""
    keys = swin_keys(config.swin, EncoderLayout(image_prefix))
    keys |= roberta_keys(config.roberta, EncoderLayout(text_prefix))
    fused = config.fusion.num_fused_layers
    blocks = [
        f"{image_prefix}layers.{stage}.blocks.{block}.attn"
        for stage, depth in enumerate(config.swin.depths)
        for block in range(depth)
    ]
    for pair in range(fused):
        ours, theirs = f"backbone.fusion.{pair}.image_to_text", blocks[len(blocks) - fused + pair]
        keys[f"{ours}.gate"] = (f"{theirs}.alpha_i2t",)
        if config.fusion.normalize_query:
            keys |= weight_and_bias(f"{ours}.norm", f"{theirs}.norm_i2t_i")
        keys |= weight_and_bias(f"{ours}.query", f"{theirs}.qkv_i2t")
        keys |= weight_and_bias(f"{ours}.key_value", f"{theirs}.qkv_text_i2t")
        keys |= weight_and_bias(f"{ours}.output", f"{theirs}.proj_i2t")
        ours = f"backbone.fusion.{pair}.text_to_image"
        layer = f"{text_prefix}encoder.layer.{config.roberta.num_layers - fused + pair}"
        theirs = f"{layer}.crossattention_t2i"
        keys[f"{ours}.gate"] = (f"{layer}.alpha_t2i",)
        keys |= weight_and_bias(f"{ours}.query", f"{theirs}.self.query")
        keys |= weight_and_bias(f"{ours}.key_value", f"{theirs}.self.key", f"{theirs}.self.value")
        keys |= weight_and_bias(f"{ours}.output", f"{theirs}.output.dense")
    return keys


def _head_keys(config: FiberConfig) -> dict[tuple[str, ...], KeyMap]:
    """Return the key mapping for each group of coarse-stage heads that share tensors."""
    caption = {
        f"caption_projections.{number}": f"cross_modal_att_layers.{layer}"
        for number, layer in enumerate(_projected_text_layers(config))
    }
    maps: dict[tuple[str, ...], KeyMap] = {}
    for heads, layers in (_HEAD_LAYERS | {("caption",): caption}).items():
        maps[heads] = {}
        for ours, theirs in layers.items():
            is_tensor = isinstance(theirs, tuple)
            maps[heads] |= {ours: theirs} if is_tensor else weight_and_bias(ours, theirs)
    return maps


def coarse_keys(config: FiberConfig) -> KeyMap:
    """Return a mapping from `FiberImageText` keys to published coarse-stage keys."""
    keys = _backbone_keys(config, COARSE_IMAGE, COARSE_TEXT)
    for heads, head_keys in _head_keys(config).items():
        if set(heads) & set(config.heads):
            keys |= head_keys
    return keys


def ignored_coarse_key(name: str, config: FiberConfig) -> str | None:
    """Return why a published key outside `coarse_keys` is ignored, or None if it is unknown."""
    for pattern, reason in _IGNORED_COARSE:
        if re.fullmatch(pattern, name):
            return reason
    layer = re.fullmatch(r"text_transformer\.encoder\.layer\.(\d+)\.alpha_t2i", name)
    fused_from = config.roberta.num_layers - config.fusion.num_fused_layers
    if layer and int(layer[1]) < fused_from:
        return "gate of a text layer without cross-attention"
    layer = re.fullmatch(r"cross_modal_att_layers\.(\d+)\.(weight|bias)", name)
    if layer and int(layer[1]) not in _projected_text_layers(config):
        return "projection for a text layer that needs none"
    for heads, head_keys in _head_keys(config).items():
        if (name,) in head_keys.values() and not set(heads) & set(config.heads):
            return f"the model was built without a head that needs it ({' or '.join(heads)})"
    return None


def _projected_text_layers(config: FiberConfig) -> range:
    """Return the indices of text layers paired with stage 3; these have a caption projection."""
    fused = config.fusion.num_fused_layers
    first = config.roberta.num_layers - fused
    return range(first, first + max(fused - config.swin.depths[3], 0))


def coarse_defaults(config: FiberConfig, names: Container[str]) -> dict[str, float]:
    """Return defaults for tensors that a published coarse-stage file may lack, keyed by our names.

    `temp` is missing from files of runs without ITC, and from the released files, which were
    written by an earlier implementation. The ITC projections are always present.
    """
    if "itc" in config.heads and "temp" not in names:
        return {"temperature": config.image_text.temperature}
    return {}


def fine_keys(config: FiberConfig) -> KeyMap:
    """Return a mapping from `FiberDetector` keys to published fine-stage keys."""
    keys = _backbone_keys(config, FINE_IMAGE, FINE_TEXT)
    for number in range(3):
        keys |= weight_and_bias(f"stage_norms.{number}", f"{FINE_IMAGE}norm{number + 1}")
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
    if config.detector.mask_width:
        keys |= _mask_keys(config)
    return keys


def _mask_keys(config: FiberConfig) -> KeyMap:
    """Return the key mapping of the head of masks, which no published file has."""
    decoder, stages = "pixel_decoder.", len(config.swin.depths)
    layers = ["embedding.0", "embedding.2", f"{decoder}input_projection", f"{decoder}mask_features"]
    layers += [f"stage_norms.{stage}" for stage in range(stages)]
    tensors = []
    for number in range(NUM_MASK_LAYERS):
        own = f"{decoder}layers.{number}."
        tensors += [f"{own}attention.in_weight", f"{own}attention.in_bias"]
        parts = ("attention.output", "attention_norm", "mlp.0", "mlp.2", "mlp_norm")
        layers += [own + part for part in parts]
    numbers = [("outputs", number) for number in range(stages)]
    numbers += [("laterals", number) for number in range(stages - 1)]
    for kind, number in numbers:
        tensors.append(f"{decoder}{kind}.{number}.convolution.weight")
        layers.append(f"{decoder}{kind}.{number}.norm")
    keys: KeyMap = {f"mask_head.{name}": (f"{MASKS}{name}",) for name in tensors}
    for name in layers:
        keys |= weight_and_bias(f"mask_head.{name}", f"{MASKS}{name}")
    return keys


def block_keys(ours: str, theirs: str) -> KeyMap:
    """Return the key mapping of a `DynamicBlock`, given our prefix and the published one."""
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
    """Return why a published key outside `fine_keys` is ignored, or None if it is unknown."""
    return next((why for pattern, why in _IGNORED_FINE if re.fullmatch(pattern, name)), None)


def from_published_fine(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the `module.` prefix and convert 1 x 1 convolution weights to linear weights."""
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
            name = f"{FINE_IMAGE}layers.{stage}.blocks.{block}.attn.relative_position_index"
            state[name] = index.clone()
    positions = torch.arange(config.roberta.max_positions).unsqueeze(0)
    state[f"{FINE_TEXT}embeddings.position_ids"] = positions
    for level, stride in enumerate(config.detector.strides):
        anchor = to_inclusive(level_anchors((1, 1), stride, config.detector.anchor_scale))
        state[f"rpn.anchor_generator.cell_anchors.{level}"] = anchor
    return state


def _relative_position_index(window: int) -> Tensor:
    """Return the (N, N) int64 bias table row of each pair of tokens in a window."""
    coordinates = torch.stack(
        torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    )
    coordinates = coordinates.flatten(1)
    distance = coordinates[:, :, None] - coordinates[:, None, :] + window - 1
    return distance[0] * (2 * window - 1) + distance[1]
