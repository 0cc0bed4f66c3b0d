"""Infer the configs of published FIBER checkpoints from their tensors and stored configs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fiber.config import (
    DetectorConfig,
    FiberConfig,
    FusionConfig,
    ImageTextConfig,
)
from fiber.config_io import to_dict
from fiber.models.fiber.keys import COARSE_IMAGE, COARSE_TEXT, FINE_IMAGE, FINE_TEXT, MASKS
from fiber.models.infer import (
    OWN,
    check_fields,
    check_stored,
    count_numbers,
    infer_swin,
    infer_text,
    own_config,
    shape_of,
    stored_integer,
)

#: Key patterns that indicate a head of a coarse-stage checkpoint, in the order of
#: `IMAGE_TEXT_HEADS`. One match is enough; keys missing from a head are then reported on load.
#: Published files always have the ITC projections, even if the last fine-tuning did not train them.
_HEAD_PATTERNS = {
    "itc": r"cross_modal_(image|text)_(transform|pooler)_itc\.",
    "itm": r"itm_score\.",
    "mlm": r"mlm_score\.",
    "vqa": r"vqa_classifier\.",
    "nlvr2": r"nlvr2_classifier\.",
    "caption": r"cross_modal_att_layers\.",
}

#: Maximum number of text tokens in coarse pre-training, coarse fine-tuning and the fine stage.
_PRETRAINING_TOKENS, _FINETUNING_TOKENS, _FINE_TOKENS = 40, 50, 256

#: Fields of both stages that are determined by tensors and the published code.
_DETERMINED = (
    *("stage", "channel_order", "fusion.num_fused_layers", "fusion.normalize_query"),
    *("fusion.normalize_last_text", "swin.patch_size", "swin.embed_dim", "swin.depths"),
    *("swin.num_heads", "swin.window_size", "roberta.vocab_size", "roberta.width"),
    *("roberta.num_layers", "roberta.ffn_width", "roberta.max_positions", "roberta.layer_norm_eps"),
)


def coarse_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published coarse-stage checkpoint.

    Values that shapes do not determine are read from the config stored in the file, under published
    field names and `OWN`. Missing values get the published defaults: text head dim 64, and at most
    40 text tokens for pre-training checkpoints (MLM head, no caption head) or 50 for others.

    Raises:
        ValueError: if a size cannot be inferred, or the stored config contradicts the tensors or
            itself.
    """
    own = own_config(stored, FiberConfig)
    heads = tuple(
        head
        for head, pattern in _HEAD_PATTERNS.items()
        if any(re.match(pattern, name) for name in state)
    )
    swin = infer_swin(state, COARSE_IMAGE)
    num_heads = own.roberta.num_heads if own else stored_integer(stored, "num_heads")
    roberta = infer_text(state, COARSE_TEXT, num_heads)
    answers = (
        {"num_answers": shape_of(state, "vqa_classifier.3.weight", 2)[0]} if "vqa" in heads else {}
    )
    if "text_input_queue" in state:
        max_tokens = state["text_input_queue"].shape[1]
    else:
        pretraining = "mlm" in heads and "caption" not in heads
        published = _PRETRAINING_TOKENS if pretraining else _FINETUNING_TOKENS
        max_tokens = stored_integer(stored, "max_text_len") or published
    config = FiberConfig(
        # Published window sizes are image_size / 32: one window in the last stage. If a stored
        # image_size differs, the tables were resized after that run, and the published code can
        # evaluate the file only at the image size that fits the tables.
        image_size=swin.window_size * swin.patch_size * 8,
        max_tokens=min(max_tokens, roberta.max_tokens),
        swin=swin,
        roberta=roberta,
        fusion=FusionConfig(num_fused_layers=_count_fused(state)),
        image_text=ImageTextConfig(heads=heads, **answers),
    )
    if own is None:
        if not config.fusion.num_fused_layers:
            raise ValueError(
                "the tensors of the fusion are missing: expected *.attn.alpha_i2t in the blocks of"
                " vit_model (FIBER) or cross_modal_image_layers.* and cross_modal_text_layers.*"
                " (METER)"
            )
        names = {name: value for name, value in stored.items() if name != "image_size"}
        check_stored(names, _published_names(config), "the tensors have")
        return config
    fields = [*_DETERMINED, "fusion.shift_small_maps"]
    # A caption model also has the tensors of the MLM head.
    implied = {"mlm"} if "caption" in own.heads else set()
    if {*own.heads} | implied != {*heads}:
        fields.append("image_text.heads")
    elif "vqa" in heads:
        fields.append("image_text.num_answers")
    check_fields(own, config, fields)
    check_stored(stored, _published_names(own), f"{OWN} has")
    return own


def fine_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published fine-stage checkpoint, like `coarse_config`.

    Values that shapes do not determine are the published ones: text head dim 64, stochastic depth
    0.4 and at most 256 text tokens.
    """
    own = own_config(stored, FiberConfig)
    swin = dataclasses.replace(infer_swin(state, FINE_IMAGE), drop_path=0.4)
    roberta = infer_text(state, FINE_TEXT, own.roberta.num_heads if own else None)
    strides = tuple(swin.patch_size * 2 ** (level + 1) for level in range(5))
    unused, channels = shape_of(state, "rpn.head.cls_logits.weight", 4)[:2]
    config = FiberConfig(
        channel_order="bgr",
        swin=swin,
        roberta=roberta,
        fusion=FusionConfig(num_fused_layers=_count_fused(state)),
        detector=DetectorConfig(
            channels=channels,
            num_blocks=count_numbers(state, r"rpn\.head\.dyhead_tower\.(\d+)\."),
            # Shapes do not show it; with a stored config, that of the config is returned.
            norm_groups=DetectorConfig.norm_groups if own is None else 1,
            anchor_scale=_anchor_scale(state, strides),
            strides=strides,
            num_unused_classes=unused,
            mask_width=_mask_width(state),
        ),
    )
    version = "v3" if any(".norm_i2t_i." in name for name in state) else "v2"
    config = config.fine(version=version, max_tokens=min(_FINE_TOKENS, roberta.max_tokens))
    if own is None:
        return config
    # Except `shift_small_maps`: our small presets set it to False, unlike the published code.
    fields = ("channels", "num_blocks", "num_unused_classes", "mask_width")
    check_fields(own, config, (*_DETERMINED, *(f"detector.{name}" for name in fields)))
    check_stored(stored, _published_names(own), f"{OWN} has")
    return own


def _mask_width(state: Mapping[str, Tensor]) -> int:
    """Return the channels of mask features, or 0 if there are none."""
    name = f"{MASKS}pixel_decoder.mask_features.weight"
    return shape_of(state, name, 4)[0] if any(each.startswith(MASKS) for each in state) else 0


def _count_fused(state: Mapping[str, Tensor]) -> int:
    """Count the fused pairs; each has one image block with a gate."""
    return sum(name.endswith(".attn.alpha_i2t") for name in state)


def _anchor_scale(state: Mapping[str, Tensor], strides: tuple[int, ...]) -> float:
    """Infer the anchor size, as a multiple of the stride, from published inclusive corners."""
    name = "rpn.anchor_generator.cell_anchors.0"
    if name not in state:
        return DetectorConfig().anchor_scale
    x0, y0, x1, y1 = state[name][0].tolist()
    if x1 - x0 != y1 - y0 or x1 <= x0:
        raise ValueError(f"{name}: expected a square (x0, y0, x1, y1), got {[x0, y0, x1, y1]}")
    return (x1 - x0 + 1) / strides[0]


def stored_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the config fields that shapes of our tensors determine, by dotted name.

    Fields whose tensors are missing are left out.
    """
    sizes: dict[str, Any] = {}

    def add(field: str, name: str, dim: int) -> None:
        if len(shapes.get(name, ())) > dim:
            sizes[field] = shapes[name][dim]

    def count(pattern: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(pattern, name))})

    image, text, head = "backbone.image", "backbone.text", "pyramid.outputs.0.weight"
    add("swin.patch_size", f"{image}.patch_embedding.projection.weight", 2)
    add("swin.embed_dim", f"{image}.patch_embedding.projection.weight", 0)
    sizes["swin.depths"] = tuple(
        count(rf"backbone\.image\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)
    )
    tables = [f"{image}.stages.{stage}.blocks.0.attention.bias_table" for stage in range(4)]
    if all(len(shapes.get(table, ())) == 2 for table in tables):
        sizes["swin.num_heads"] = tuple(shapes[table][1] for table in tables)
        # (2 w - 1) ** 2 rows.
        sizes["swin.window_size"] = (math.isqrt(shapes[tables[0]][0]) + 1) // 2
    add("roberta.vocab_size", f"{text}.embeddings.word.weight", 0)
    add("roberta.width", f"{text}.embeddings.word.weight", 1)
    add("roberta.max_positions", f"{text}.embeddings.position.weight", 0)
    add("roberta.ffn_width", f"{text}.layers.0.mlp.0.weight", 0)
    sizes["roberta.num_layers"] = count(r"backbone\.text\.layers\.(\d+)\.")
    sizes["fusion.num_fused_layers"] = count(r"backbone\.fusion\.(\d+)\.")
    add("image_text.num_answers", "vqa_head.output.weight", 0)
    if head in shapes:
        add("detector.channels", head, 0)
        add("detector.num_unused_classes", "head.unused_classes.weight", 0)
        sizes["detector.num_blocks"] = count(r"tower\.blocks\.(\d+)\.")
        add("detector.mask_width", "mask_head.pixel_decoder.mask_features.weight", 0)
    return sizes


def stored_config(config: FiberConfig) -> dict[str, Any]:
    """Return the config to store in a published file, as a JSON-serializable dict."""
    return _published_names(config) | {OWN: to_dict(config)}


def _published_names(config: FiberConfig) -> dict[str, int]:
    """Return the published fields of a coarse-stage config; empty for a fine-stage config."""
    if "grounding" in config.heads:
        return {}
    answers = {"vqav2_label_size": config.image_text.num_answers} if "vqa" in config.heads else {}
    return {
        "image_size": config.image_size,
        "max_text_len": config.max_tokens,
        "vocab_size": config.roberta.vocab_size,
        "hidden_size": config.roberta.width,
        "num_heads": config.roberta.num_heads,
        "num_fuse_block": config.fusion.num_fused_layers,
        **answers,
    }


def main_sizes(config: FiberConfig) -> dict[str, Any]:
    """Return the hyperparameters that determine most tensor shapes, keyed by display name."""
    return {
        "text width": config.roberta.width,
        "text layers": config.roberta.num_layers,
        "image channels": config.swin.embed_dim,
        "image depths": config.swin.depths,
        "fused layers": config.fusion.num_fused_layers,
    }


def describe(config: FiberConfig) -> str:
    """Describe a model in one line."""
    swin, roberta, stage, images = config.swin, config.roberta, "coarse-stage model", ""
    if "grounding" in config.heads:
        stage = "fine-stage model " + ("v3" if config.fusion.normalize_query else "v2")
    else:
        images = f", image size {config.image_size}"
    return (
        f"{stage} with {', '.join(config.heads)}; Swin with {'-'.join(map(str, swin.depths))}"
        f" blocks, {swin.embed_dim} channels, window size {swin.window_size}{images}; RoBERTa with"
        f" {roberta.num_layers} layers, {roberta.width} channels, {roberta.vocab_size} tokens;"
        f" {config.fusion.num_fused_layers} fused pairs"
    )
