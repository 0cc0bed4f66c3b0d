"""Infer the config of published FIBER checkpoints from tensor names, shapes and stated configs."""

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

#: Width of an attention head in every published RoBERTa; no shape tells it, a config may.
_TEXT_HEAD_WIDTH = 64

#: What tells that a coarse checkpoint has a head; one name of it is enough, so that the rest is
#: missed by name when the weights are loaded. Published files hold the projections of contrast
#: whether it was trained last or not: what they give after another fine-tuning is left over.
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

#: Longest texts in tokens of coarse pre-training, coarse fine-tuning and the fine stage.
_PRETRAINING_TOKENS, _FINETUNING_TOKENS, _FINE_TOKENS = 40, 50, 256


def coarse_config(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published coarse checkpoint.

    What shapes cannot tell is read from the file's own config, else it is as in the published code:
    64 channels of a text attention head, and 40 tokens of the longest text with an MLM head and no
    caption head (pre-training), 50 otherwise.

    Args:
        state: tensors by published name.
        stated: config in the file, by the names of the published code and `OWN`.

    Raises:
        ValueError: if a size cannot be inferred, or the file's config contradicts its tensors or
            itself, with both values.
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
        # The published windows have image_size / 32 tokens, which is one window in the last stage.
        # A file whose config has another image_size had its tables resized after that run; the
        # published code, which resizes nothing to test, takes it at the size of the tables alone.
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
    """Longest text of the run: the queue of its texts tells, or its config, or its task."""
    if "text_input_queue" in state:
        return state["text_input_queue"].shape[1]
    said = stated_number(stated, "max_text_len")
    if said is not None:
        return said
    pretraining = "mlm" in heads and "caption" not in heads
    return _PRETRAINING_TOKENS if pretraining else _FINETUNING_TOKENS


def fine_config(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> FiberConfig:
    """Infer the config of a published fine checkpoint.

    What shapes cannot tell is as in the published code: 64 channels of a text attention head,
    stochastic depth, and 256 tokens of the longest text.

    Args, Raises: as `coarse_config`.
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
    # `shift_small_maps` may differ: our small presets set it to False, unlike the published code.
    fields = ("detector.channels", "detector.num_blocks", "detector.num_unused_classes")
    check_settled(own, config, [*_SETTLED, *fields])
    check_names(stated, own, "its own config of the model")
    return own


def _swin(state: Mapping[str, Tensor], prefix: str) -> SwinConfig:
    """Sizes of the image tower, whose names start with a prefix."""
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
    """Sizes of the text tower, whose names start with a prefix; None: the file names no heads."""
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
    """Pairs that read one another: blocks of the image tower with a gate."""
    return sum(name.endswith(".attn.alpha_i2t") for name in state)


def _anchor_scale(state: Mapping[str, Tensor], strides: tuple[int, ...]) -> float:
    """Side of the square anchors as a multiple of the stride; the published corners include."""
    name = "rpn.anchor_generator.cell_anchors.0"
    if name not in state:
        return DetectorConfig().anchor_scale
    x0, y0, x1, y1 = state[name][0].tolist()
    if x1 - x0 != y1 - y0 or x1 <= x0:
        raise ValueError(f"{name} is {[x0, y0, x1, y1]}; expected one square (x0, y0, x1, y1)")
    return (x1 - x0 + 1) / strides[0]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that stands at a place in the names."""
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"missing {name}, which tells sizes of the model")
    return tuple(state[name].shape)


#: Our own name in that config: the whole `FiberConfig` of a file that we wrote. The published
#: names have no place for most of it, such as a window other than image_size / 32.
OWN = "fiber_model"


#: Fields of both stages that tensors and the published code settle.
_SETTLED = (
    *("stage", "channel_order", "fusion.num_fused_layers", "fusion.normalize_query"),
    *("fusion.normalize_last_text", "swin.patch_size", "swin.embed_dim", "swin.depths"),
    *("swin.num_heads", "swin.window_size", "roberta.vocab_size", "roberta.width"),
    *("roberta.num_layers", "roberta.ffn_width", "roberta.max_positions", "roberta.layer_norm_eps"),
)


def stated_config(config: FiberConfig) -> dict[str, Any]:
    """Give what a file in the published form shall say of a model: plain values for JSON."""
    return published_names(config) | {OWN: to_dict(config)}


def published_names(config: FiberConfig) -> dict[str, int]:
    """Give the settings of the published coarse code that a model of ours has; none if fine."""
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
    """Look a whole number up in a file's config; None if the config does not say it.

    Raises:
        ValueError: if it is none above 0 (num_fuse_block: or 0).
    """
    value = stated.get(name)
    least = 0 if name == "num_fuse_block" else 1
    if value is not None and (type(value) is not int or value < least):
        raise ValueError(
            f"the file's config says {name} {value!r}; expected a whole number, {least} or more"
        )
    return value


def own_config(stated: Mapping[str, Any]) -> FiberConfig | None:
    """Read the config of a model of ours; None if the file does not hold one.

    Raises:
        ValueError: if it is no config, with the field.
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
    """Check that the published names in a file's config say what is known of its model.

    Args:
        stated: the file's config.
        config: what is known.
        source: of that knowledge, for the message.

    Raises:
        ValueError: listing every name that says something else, with both values.
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
    """Check a config of ours against what the tensors and the published code determine.

    Raises:
        ValueError: listing every field that differs, with both values.
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
    # A captioner has the tensors of the head for masked words.
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
