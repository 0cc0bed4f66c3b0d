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
from fiber.models.weights_stated import check_names, check_settled, own_config, stated_number
from fiber.models.weights_towers import tower_layout

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
