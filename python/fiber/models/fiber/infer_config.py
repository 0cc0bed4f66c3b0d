"""Infer the configs of published FIBER checkpoints from their tensors and stored configs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor

from fiber.config import (
    DetectorConfig,
    FiberConfig,
    FusionConfig,
    ImageTextConfig,
    RobertaConfig,
    SwinConfig,
)
from fiber.config_io import from_dict, to_dict
from fiber.models.fiber.keys import COARSE_IMAGE, COARSE_TEXT, FINE_IMAGE, FINE_TEXT

#: Field of the stored config that holds the complete `FiberConfig`, in files written by this
#: package. Published fields cannot express, for example, a window size other than image_size / 32.
OWN = "fiber_model"

#: Head dim of published RoBERTa models, which cannot be inferred from shapes.
_TEXT_HEAD_DIM = 64

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
    own = _own_config(stored)
    heads = tuple(
        head
        for head, pattern in _HEAD_PATTERNS.items()
        if any(re.match(pattern, name) for name in state)
    )
    swin = _swin(state, COARSE_IMAGE)
    num_heads = own.roberta.num_heads if own else _stored_integer(stored, "num_heads")
    roberta = _roberta(state, COARSE_TEXT, num_heads)
    answers = {"num_answers": _shape(state, "vqa_classifier.3.weight")[0]} if "vqa" in heads else {}
    if "text_input_queue" in state:
        max_tokens = state["text_input_queue"].shape[1]
    else:
        pretraining = "mlm" in heads and "caption" not in heads
        published = _PRETRAINING_TOKENS if pretraining else _FINETUNING_TOKENS
        max_tokens = _stored_integer(stored, "max_text_len") or published
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
        names = {name: value for name, value in stored.items() if name != "image_size"}
        _check_names(names, config, "the tensors have")
        return config
    fields = [*_DETERMINED, "fusion.shift_small_maps"]
    # A caption model also has the tensors of the MLM head.
    implied = {"mlm"} if "caption" in own.heads else set()
    if {*own.heads} | implied != {*heads}:
        fields.append("image_text.heads")
    elif "vqa" in heads:
        fields.append("image_text.num_answers")
    _check_fields(own, config, fields)
    _check_names(stored, own, f"{OWN} has")
    return own


def fine_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published fine-stage checkpoint, like `coarse_config`.

    Values that shapes do not determine are the published ones: text head dim 64, stochastic depth
    0.4 and at most 256 text tokens.
    """
    own = _own_config(stored)
    swin = dataclasses.replace(_swin(state, FINE_IMAGE), drop_path=0.4)
    roberta = _roberta(state, FINE_TEXT, own.roberta.num_heads if own else None)
    strides = tuple(swin.patch_size * 2 ** (level + 1) for level in range(5))
    unused, channels = _shape(state, "rpn.head.cls_logits.weight")[:2]
    config = FiberConfig(
        channel_order="bgr",
        swin=swin,
        roberta=roberta,
        fusion=FusionConfig(num_fused_layers=_count_fused(state)),
        detector=DetectorConfig(
            channels=channels,
            num_blocks=_count(state, r"rpn\.head\.dyhead_tower\.(\d+)\."),
            anchor_scale=_anchor_scale(state, strides),
            strides=strides,
            num_unused_classes=unused,
        ),
    )
    version = "v3" if any(".norm_i2t_i." in name for name in state) else "v2"
    config = config.fine(version=version, max_tokens=min(_FINE_TOKENS, roberta.max_tokens))
    if own is None:
        return config
    # Except `shift_small_maps`: our small presets set it to False, unlike the published code.
    fields = ("detector.channels", "detector.num_blocks", "detector.num_unused_classes")
    _check_fields(own, config, (*_DETERMINED, *fields))
    _check_names(stored, own, f"{OWN} has")
    return own


def _swin(state: Mapping[str, Tensor], prefix: str) -> SwinConfig:
    embed_dim, _, patch_size, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    stages = [f"{prefix}layers.{stage}.blocks." for stage in range(4)]
    tables = [_shape(state, f"{stage}0.attn.relative_position_bias_table") for stage in stages]
    return SwinConfig(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=tuple(_count(state, re.escape(stage) + r"(\d+)\.") for stage in stages),
        num_heads=tuple(heads for _, heads in tables),
        # (2 w - 1) ** 2 rows.
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=_shape(state, f"{stages[0]}0.mlp.fc1.weight")[0] / embed_dim,
    )


def _roberta(state: Mapping[str, Tensor], prefix: str, num_heads: int | None) -> RobertaConfig:
    """Infer the config of the text encoder. If `num_heads` is None, assume head dim 64."""
    vocab_size, width = _shape(state, f"{prefix}embeddings.word_embeddings.weight")
    if num_heads is None and width % _TEXT_HEAD_DIM:
        raise ValueError(
            f"cannot infer num_heads: expected text encoder channels divisible by {_TEXT_HEAD_DIM}"
            f" (RoBERTa's head dim), got {width}"
        )
    if num_heads is not None and width % num_heads:
        raise ValueError(
            f"the stored config has num_heads {num_heads}, which does not divide the {width}"
            " channels of the text encoder"
        )
    layers = f"{prefix}encoder.layer."
    return RobertaConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=_count(state, re.escape(layers) + r"(\d+)\."),
        num_heads=num_heads or width // _TEXT_HEAD_DIM,
        ffn_width=_shape(state, f"{layers}0.intermediate.dense.weight")[0],
        max_positions=_shape(state, f"{prefix}embeddings.position_embeddings.weight")[0],
    )


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


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number that group 1 of `pattern` matches in the keys."""
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"missing {name}, which is needed to determine the model size")
    return tuple(state[name].shape)


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


def _stored_integer(stored: Mapping[str, Any], name: str) -> int | None:
    """Return an integer field of a stored config, or None if it is missing.

    Raises:
        ValueError: if the value is not an integer >= 1 (>= 0 for num_fuse_block).
    """
    value = stored.get(name)
    least = 0 if name == "num_fuse_block" else 1
    if value is not None and (type(value) is not int or value < least):
        raise ValueError(f"stored config: {name} must be an integer >= {least}, got {value!r}")
    return value


def _own_config(stored: Mapping[str, Any]) -> FiberConfig | None:
    """Read the `OWN` field of a stored config, or return None if it is missing."""
    if OWN not in stored:
        return None
    values = stored[OWN]
    if not isinstance(values, dict):
        raise ValueError(f"stored {OWN}: expected a JSON object, got {type(values).__name__}")
    try:
        return from_dict(FiberConfig, values)
    except ValueError as error:
        raise ValueError(f"stored {OWN}: {error}") from error


def _check_names(stored: Mapping[str, Any], config: FiberConfig, source: str) -> None:
    """Check that a stored config matches the published fields of `config`.

    `source` precedes the values of `config` in errors, e.g. "the tensors have".
    """
    wrong = [
        f"{name} {found}, but {source} {value}"
        for name, value in _published_names(config).items()
        if (found := _stored_integer(stored, name)) not in (None, value)
    ]
    if wrong:
        raise ValueError(f"the stored config has {'; '.join(wrong)}")


def _check_fields(own: FiberConfig, inferred: FiberConfig, fields: Iterable[str]) -> None:
    """Check that the given fields of the stored config match the inferred config."""
    pairs = {name: (attrgetter(name)(own), attrgetter(name)(inferred)) for name in fields}
    differing = [
        f"{name} is {stored}, expected {found}"
        for name, (stored, found) in pairs.items()
        if stored != found
    ]
    if differing:
        raise ValueError(
            f"the stored {OWN} contradicts the tensors or the published code: "
            + "; ".join(differing)
        )


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
