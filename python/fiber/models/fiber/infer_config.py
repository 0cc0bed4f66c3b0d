"""What model a published checkpoint holds: stage, version, sizes and heads, by names and shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
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
from fiber.models.encoders.keys import tower_layout

_FINE = "fusion_backbone."
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

#: Longest texts in tokens: of the coarse pre-training, of its fine-tunings and of the fine stage.
_MAX_TOKENS = {"pretraining": 40, "finetuning": 50, "fine": 256}


def published_config(
    state: Mapping[str, Tensor], stated: Mapping[str, Any] | None = None
) -> FiberConfig:
    """Find out which model's tensors these are.

    What shapes cannot tell is taken from the file's own config, and what that does not say from
    the published code: 64 channels a text head, stochastic depth, and the longest text, which is
    40 tokens where there is a head for masked words and none for captions (pre-training), 50
    otherwise and 256 in the fine stage.

    Args:
        state: tensors by published name.
        stated: the config that the file holds beside them, by the names of the published code and
            `weights_stated.OWN`.

    Raises:
        ValueError: if they are neither a coarse nor a fine model's, or a size cannot be read off,
            or the file's config contradicts its tensors or itself, with both values.
    """
    stated = stated or {}
    own = own_config(stated)
    if any(name.startswith("vit_model.") for name in state):
        inferred = _coarse_config(state, stated, own)
    elif any(name.startswith(_FINE) for name in state):
        inferred = _fine_config(state, own)
    else:
        raise ValueError(_something_else(state))
    if own is None:
        return inferred
    check_settled(own, inferred)
    check_names(stated, own, "its own config of the model")
    return own


def _coarse_config(
    state: Mapping[str, Tensor], stated: Mapping[str, Any], own: FiberConfig | None
) -> FiberConfig:
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
    return _MAX_TOKENS["pretraining" if pretraining else "finetuning"]


def _fine_config(state: Mapping[str, Tensor], own: FiberConfig | None) -> FiberConfig:
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
    return config.fine(version=version, max_tokens=min(_MAX_TOKENS["fine"], roberta.max_tokens))


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


def _something_else(state: Mapping[str, Tensor]) -> str:
    """Say what else than a published model of ours a state dict holds."""
    tower = tower_layout(state)
    if tower is not None:
        return (
            f"it holds a {tower.title} tower alone, which answers nothing; start the training of a"
            " model from it (fiber train --init, init=...)"
        )
    if any(name.startswith("backbone.image.") for name in state):
        return (
            "it holds the weights of a model of ours without its config.json; name the folder that"
            " has both"
        )
    first = ", ".join(sorted(state)[:4])
    return (
        "it holds neither the coarse model (names with vit_model.) nor the fine one (names with"
        f" {_FINE}); the first of its {len(state)} names are {first}"
    )


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


#: Those of one stage. Whether a fine model shifts windows on small maps is not among them: our
#: small presets do not, against the published code.
_SETTLED_OF_STAGE = {
    "coarse": ("fusion.shift_small_maps",),
    "fine": ("detector.channels", "detector.num_blocks", "detector.num_unused_classes"),
}


def stated_config(config: FiberConfig) -> dict[str, Any]:
    """Give what a file in the published form shall say of a model: plain values for JSON."""
    return published_names(config) | {OWN: to_dict(config)}


def published_names(config: FiberConfig) -> dict[str, int]:
    """Give the settings of the published coarse code that a model of ours has; none if fine."""
    if config.stage == "fine":
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


def check_settled(own: FiberConfig, inferred: FiberConfig) -> None:
    """Check a config of ours against what tensors and the published code settle.

    Raises:
        ValueError: listing every field that differs, with both values.
    """
    fields = [*_SETTLED, *_SETTLED_OF_STAGE[inferred.stage]]
    differing = [
        (name, _field(own, name), _field(inferred, name))
        for name in fields
        if _field(own, name) != _field(inferred, name)
    ]
    if inferred.stage == "coarse":
        differing += _differing_heads(own, inferred)
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
