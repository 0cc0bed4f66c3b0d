"""Towers of others: Swin as Microsoft and timm name it, RoBERTa as transformers does; both ways.

A model starts from them, and gives its own towers back. As everywhere nothing is skipped quietly:
a tensor that a tower has no use for is left out for a reason listed here, or it raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from fiber.checkpoints.key_map import load_mapped, resize_bias_tables, sort_unmapped, unstack
from fiber.config import FiberConfig
from fiber.models.encoders.keys import (
    KeyMap,
    TowerLayout,
    roberta_keys,
    swin_keys,
    tower_layout,
    weight_and_bias,
)

#: Names of an image tower that hold nothing a model takes: pattern, and why it is left out.
_IGNORED_SWIN: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.attn_mask", "buffer that follows from the map size"),
    (r"head\.(fc\.)?(weight|bias)", "classifier of ImageNet"),
    (r"norm\.(weight|bias)", "last norm, which the contrastive head alone reads; there is none"),
)
#: The same of a text tower.
_IGNORED_ROBERTA: tuple[tuple[str, str], ...] = (
    (r"(roberta\.)?embeddings\.(position_ids|token_type_ids)", "buffer that counts positions"),
    (r"(roberta\.)?pooler\.dense\.(weight|bias)", "pooler, never used"),
    (r"lm_head\..*", "RoBERTa's language head; the model draws its own, as published"),
)

#: Our first convolution, whose inputs are the colours.
FIRST_CONVOLUTION = "backbone.image.patch_embedding.projection.weight"

#: How an exported image tower may be named.
SwinLayout = Literal["microsoft", "timm"]


def layout_keys(layout: TowerLayout, config: FiberConfig) -> KeyMap:
    """Map a tower: names of a model of ours -> names of the layout."""
    if layout.tower == "roberta":
        keys = roberta_keys(config.roberta, layout.prefix)
    else:
        keys = swin_keys(
            config.swin, layout.prefix, merging_in_next_stage=layout.merging_in_next_stage
        )
    named = {f"backbone.{ours}": theirs for ours, theirs in keys.items()}
    if layout.tower == "swin" and "itc" in config.heads:
        named |= weight_and_bias("itc_image_norm", f"{layout.prefix}norm")
    return named


def load_tower(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[KeyMap, dict[str, str]]:
    """Start one tower of a model from somebody else's.

    Tables of position biases are resized where the model has other windows; a model that expects
    the colours blue first gets its first convolution turned round.

    Args:
        model: a `FiberImageText` or a `FiberDetector`.
        state: an image or a text tower in one of the layouts.

    Returns:
        What was taken, our names -> theirs, and the names that were left out, with the reason.

    Raises:
        ValueError: if it is no tower; naming missing and unknown keys and tensors of another shape.
    """
    layout = tower_layout(state)
    if layout is None:
        raise ValueError(
            "neither an image tower (patch_embed.proj.weight) nor a text tower"
            f" (embeddings.word_embeddings.weight); its first names are"
            f" {', '.join(sorted(state)[:4])}"
        )
    config: FiberConfig = model.config  # type: ignore[assignment]
    keys = layout_keys(layout, config)
    patterns = _IGNORED_SWIN if layout.tower == "swin" else _IGNORED_ROBERTA
    ignored, unknown = sort_unmapped(
        state,
        keys,
        lambda name: next((why for pattern, why in patterns if re.fullmatch(pattern, name)), None),
    )
    if layout.tower == "swin":
        state = resize_bias_tables(state, config.swin.window_size)
        if config.channel_order == "bgr":
            first = keys[FIRST_CONVOLUTION][0]
            state = {**state, first: state[first].flip(1)}
    load_mapped(model, state, keys, unknown)
    return keys, ignored


def tower_states(
    model: nn.Module, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Give the towers of a model the names of others; the inverse of loading.

    The image tower expects red first, whatever the model does. Its last norm is there if the model
    has the contrastive head, the one part that reads it.

    Args:
        model: a `FiberImageText` or a `FiberDetector`.
        layout: of the image tower.

    Returns:
        "swin" and "roberta", each with its tensors by name.
    """
    config: FiberConfig = model.config  # type: ignore[assignment]
    own = model.state_dict()
    if config.channel_order == "bgr":
        own[FIRST_CONVOLUTION] = own[FIRST_CONVOLUTION].flip(1)
    layouts = {
        "swin": TowerLayout(tower="swin", merging_in_next_stage=layout == "timm"),
        "roberta": TowerLayout(tower="roberta"),
    }
    return {tower: unstack(own, layout_keys(each, config)) for tower, each in layouts.items()}
