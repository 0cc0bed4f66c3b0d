"""Infer the config of published FIBER checkpoints from tensors and stored configs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fiber.config import (
    IMAGE_TEXT_HEADS,
    DetectorConfig,
    FiberConfig,
    FusionConfig,
    ImageTextConfig,
    RobertaConfig,
    SwinConfig,
)
from fiber.config_io import from_dict, to_dict

_FINE_IMAGE = "fusion_backbone.backbone.body."
_FINE_TEXT = "fusion_backbone.language_backbone.body.model."

#: Width of an attention head in published RoBERTa models; not inferable from shapes.
_TEXT_HEAD_WIDTH = 64

#: Key prefixes that indicate a head of a coarse checkpoint. One match is enough, so that other
#: missing keys are reported by name on load. Published files always have the ITC projections, even
#: if the last fine-tuning did not train them.
_HEAD_NAMES: dict[str, tuple[str, ...]] = {
    "itc": tuple(
        f"cross_modal_{side}_{part}_itc."
        for side in ("image", "text")
        for part in ("transform", "pooler")
    ),
    "itm": ("itm_score.",),
    "mlm": ("mlm_score.",),
    "vqa": ("vqa_classifier.",),
    "nlvr2": ("nlvr2_classifier.",),
    "caption": ("cross_modal_att_layers.",),
}

#: Maximum text tokens of coarse pre-training, coarse fine-tuning and the fine stage.
_PRETRAINING_TOKENS, _FINETUNING_TOKENS, _FINE_TOKENS = 40, 50, 256


def coarse_config(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published coarse checkpoint.

    Values that shapes do not determine are read from the stored config. Defaults are the published
    ones: text attention heads of width 64, and at most 40 text tokens with an MLM head but no
    caption head (pre-training), else 50.

    Args:
        state: tensors by published key.
        stated: stored config, by the names of the published code and `OWN`.

    Raises:
        ValueError: if a size cannot be inferred, or the stored config contradicts the tensors or
            itself.
    """
    own = own_config(stated)
    heads = tuple(
        head
        for head in IMAGE_TEXT_HEADS
        if any(name.startswith(_HEAD_NAMES[head]) for name in state)
    )
    swin = _swin(state, "vit_model.")
    num_heads = own.roberta.num_heads if own else stated_number(stated, "num_heads")
    roberta = _roberta(state, "text_transformer.", num_heads)
    answers = {"num_answers": _shape(state, "vqa_classifier.3.weight")[0]} if "vqa" in heads else {}
    config = FiberConfig(
        # Published windows have image_size / 32 tokens, one window in the last stage. If a stored
        # image_size differs, the tables were resized after that run, and the published code can
        # test the file only at the size of the tables.
        image_size=swin.window_size * swin.patch_size * 8,
        max_tokens=min(_coarse_max_tokens(state, stated, heads), roberta.max_tokens),
        swin=swin,
        roberta=roberta,
        fusion=FusionConfig(num_fused_layers=_count_fused(state)),
        image_text=ImageTextConfig(heads=heads, **answers),
    )
    if own is None:
        names = {name: value for name, value in stated.items() if name != "image_size"}
        check_names(names, config, "its tensors say")
        return config
    fields = [*_SETTLED, "fusion.shift_small_maps"]
    check_settled(own, config, fields, _differing_heads(own, config))
    check_names(stated, own, "its own config of the model")
    return own


def _coarse_max_tokens(
    state: Mapping[str, Tensor], stated: Mapping[str, Any], heads: tuple[str, ...]
) -> int:
    """Infer the maximum text length from the text queue, the stored config or the heads."""
    if "text_input_queue" in state:
        return state["text_input_queue"].shape[1]
    said = stated_number(stated, "max_text_len")
    if said is not None:
        return said
    pretraining = "mlm" in heads and "caption" not in heads
    return _PRETRAINING_TOKENS if pretraining else _FINETUNING_TOKENS


def fine_config(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published fine checkpoint; arguments and errors as `coarse_config`.

    Values that shapes do not determine are the published ones: text attention heads of width 64,
    stochastic depth 0.4 and at most 256 text tokens.
    """
    own = own_config(stated)
    swin = dataclasses.replace(_swin(state, _FINE_IMAGE), drop_path=0.4)
    roberta = _roberta(state, _FINE_TEXT, own.roberta.num_heads if own else None)
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
    # Not `shift_small_maps`: our small presets set it to False, unlike the published code.
    fields = ("detector.channels", "detector.num_blocks", "detector.num_unused_classes")
    check_settled(own, config, [*_SETTLED, *fields])
    check_names(stated, own, "its own config of the model")
    return own


def _swin(state: Mapping[str, Tensor], prefix: str) -> SwinConfig:
    """Infer the sizes of the image tower with a key prefix."""
    embed_dim, _, patch_size, _ = _shape(state, f"{prefix}patch_embed.proj.weight")
    stages = [f"{prefix}layers.{stage}.blocks." for stage in range(4)]
    tables = [_shape(state, f"{stage}0.attn.relative_position_bias_table") for stage in stages]
    hidden = _shape(state, f"{stages[0]}0.mlp.fc1.weight")[0]
    return SwinConfig(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=tuple(_count(state, re.escape(stage) + r"(\d+)\.") for stage in stages),
        num_heads=tuple(heads for _, heads in tables),
        # (2 w - 1) ** 2 rows.
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=hidden / embed_dim,
    )


def _roberta(state: Mapping[str, Tensor], prefix: str, num_heads: int | None) -> RobertaConfig:
    """Infer the sizes of the text tower with a key prefix; `num_heads` None: heads of width 64."""
    vocab_size, width = _shape(state, f"{prefix}embeddings.word_embeddings.weight")
    if num_heads is None and width % _TEXT_HEAD_WIDTH:
        raise ValueError(
            f"the text tower is {width} channels wide; expected a multiple of {_TEXT_HEAD_WIDTH},"
            " the width of RoBERTa's attention heads, whose number the file does not tell"
        )
    if num_heads is not None and width % num_heads:
        raise ValueError(
            f"the file's config says num_heads {num_heads}, but its text tower is {width} channels"
            " wide, which is no multiple of it"
        )
    layers = f"{prefix}encoder.layer."
    return RobertaConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=_count(state, re.escape(layers) + r"(\d+)\."),
        num_heads=num_heads or width // _TEXT_HEAD_WIDTH,
        ffn_width=_shape(state, f"{layers}0.intermediate.dense.weight")[0],
        max_positions=_shape(state, f"{prefix}embeddings.position_embeddings.weight")[0],
    )


def _count_fused(state: Mapping[str, Tensor]) -> int:
    """Count fused pairs: image blocks with a gate."""
    return sum(name.endswith(".attn.alpha_i2t") for name in state)


def _anchor_scale(state: Mapping[str, Tensor], strides: tuple[int, ...]) -> float:
    """Infer the anchor side as a multiple of the stride; published corners are inclusive."""
    name = "rpn.anchor_generator.cell_anchors.0"
    if name not in state:
        return DetectorConfig().anchor_scale
    x0, y0, x1, y1 = state[name][0].tolist()
    if x1 - x0 != y1 - y0 or x1 <= x0:
        raise ValueError(f"{name} is {[x0, y0, x1, y1]}; expected one square (x0, y0, x1, y1)")
    return (x1 - x0 + 1) / strides[0]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number matched by group 1 in the keys."""
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"missing {name}, which tells sizes of the model")
    return tuple(state[name].shape)


#: Field of the stored config with the complete `FiberConfig`, in files that we wrote. Published
#: names do not cover most of it, such as a window other than image_size / 32.
OWN = "fiber_model"


#: Fields of both stages that are determined by tensors and the published code.
_SETTLED = (
    *("stage", "channel_order", "fusion.num_fused_layers", "fusion.normalize_query"),
    *("fusion.normalize_last_text", "swin.patch_size", "swin.embed_dim", "swin.depths"),
    *("swin.num_heads", "swin.window_size", "roberta.vocab_size", "roberta.width"),
    *("roberta.num_layers", "roberta.ffn_width", "roberta.max_positions", "roberta.layer_norm_eps"),
)


def stated_config(config: FiberConfig) -> dict[str, Any]:
    """Return the config to store in a published file, as plain JSON values."""
    return published_names(config) | {OWN: to_dict(config)}


def published_names(config: FiberConfig) -> dict[str, int]:
    """Convert a config to settings of the published coarse code; empty for a fine config."""
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


def stated_number(stated: Mapping[str, Any], name: str) -> int | None:
    """Look up an integer in a stored config; None if missing.

    Raises:
        ValueError: if it is not an integer >= 1 (num_fuse_block: >= 0).
    """
    value = stated.get(name)
    least = 0 if name == "num_fuse_block" else 1
    if value is not None and (type(value) is not int or value < least):
        raise ValueError(
            f"the file's config says {name} {value!r}; expected a whole number, {least} or more"
        )
    return value


def own_config(stated: Mapping[str, Any]) -> FiberConfig | None:
    """Read the `OWN` field of a stored config; None if missing.

    Raises:
        ValueError: naming an invalid field.
    """
    if OWN not in stated:
        return None
    values = stated[OWN]
    if not isinstance(values, dict):
        raise ValueError(f"the file's {OWN} is a {type(values).__name__}, not fields by name")
    try:
        return from_dict(FiberConfig, values)
    except ValueError as error:
        raise ValueError(f"the file's {OWN}: {error}") from error


def check_names(stated: Mapping[str, Any], config: FiberConfig, source: str) -> None:
    """Check the published names of a stored config against the model's config.

    Args:
        stated: stored config.
        config: config of the model.
        source: origin of `config`, for the message.

    Raises:
        ValueError: listing all names that differ, with both values.
    """
    wrong = [
        f"{name} {said}, but {source} {value}"
        for name, value in published_names(config).items()
        if (said := stated_number(stated, name)) not in (None, value)
    ]
    if wrong:
        raise ValueError(f"the file's config says {'; '.join(wrong)}")


def check_settled(
    own: FiberConfig,
    inferred: FiberConfig,
    fields: Sequence[str],
    differing_heads: Sequence[tuple[str, Any, Any]] = (),
) -> None:
    """Check our stored config against the inferred one.

    Raises:
        ValueError: listing all fields that differ, with both values.
    """
    differing = [
        (name, _field(own, name), _field(inferred, name))
        for name in fields
        if _field(own, name) != _field(inferred, name)
    ]
    differing += differing_heads
    if differing:
        raise ValueError(
            "the model's own config does not agree with its tensors and the published code: "
            + "; ".join(f"{name} is {ours}, there {theirs}" for name, ours, theirs in differing)
        )


def _differing_heads(own: FiberConfig, inferred: FiberConfig) -> list[tuple[str, Any, Any]]:
    heads, found = set(own.image_text.heads), inferred.image_text.heads
    # A caption model has the tensors of the MLM head.
    if "caption" in heads:
        heads.add("mlm")
    if heads != set(found):
        return [("image_text.heads", own.image_text.heads, found)]
    answers = own.image_text.num_answers, inferred.image_text.num_answers
    if "vqa" in heads and answers[0] != answers[1]:
        return [("image_text.num_answers", *answers)]
    return []


def _field(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def describe_coarse(config: FiberConfig) -> str:
    """Describe a coarse model in one line."""
    return (
        f"coarse model with {', '.join(config.heads)};"
        f" {_describe_encoders(config, f', pictures of {config.image_size} pixels')}"
    )


def describe_fine(config: FiberConfig) -> str:
    """Describe a fine model in one line."""
    version = "v3" if config.fusion.normalize_query else "v2"
    return f"fine model {version} with {', '.join(config.heads)}; {_describe_encoders(config, '')}"


def _describe_encoders(config: FiberConfig, image_size: str) -> str:
    swin, roberta = config.swin, config.roberta
    return (
        f"Swin of {'-'.join(map(str, swin.depths))} blocks and {swin.embed_dim} channels, windows"
        f" of {swin.window_size}{image_size}; RoBERTa of {roberta.num_layers} layers and"
        f" {roberta.width} channels, {roberta.vocab_size} tokens;"
        f" {config.fusion.num_fused_layers} fused pairs"
    )
