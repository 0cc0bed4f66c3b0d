"""Load and write encoders with the keys of other libraries: Swin (Microsoft, timm), RoBERTa.

A tensor without a counterpart is either dropped for a reason listed here, or raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from fiber.checkpoints.published import load_mapped, resize_bias_tables, sort_unmapped, unstack
from fiber.config import FiberConfig
from fiber.models.encoders.keys import (
    EncoderLayout,
    KeyMap,
    encoder_layout,
    roberta_keys,
    swin_keys,
    weight_and_bias,
)

#: Dropped keys of an image encoder: pattern and reason.
_IGNORED_SWIN: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.attn_mask", "buffer that follows from the map size"),
    (r"head\.(fc\.)?(weight|bias)", "classifier of ImageNet"),
    (r"norm\.(weight|bias)", "last norm, which the contrastive head alone reads; there is none"),
)
#: Dropped keys of a text encoder.
_IGNORED_ROBERTA: tuple[tuple[str, str], ...] = (
    (r"(roberta\.)?embeddings\.(position_ids|token_type_ids)", "buffer that counts positions"),
    (r"(roberta\.)?pooler\.dense\.(weight|bias)", "pooler, never used"),
    (r"lm_head\..*", "RoBERTa's language head; the model draws its own, as published"),
)

#: Weight with RGB or BGR input channels.
FIRST_CONVOLUTION = "backbone.image.patch_embedding.projection.weight"

#: Layouts of an exported image tower.
SwinLayout = Literal["microsoft", "timm"]


def layout_keys(layout: EncoderLayout, config: FiberConfig) -> KeyMap:
    """Return the key map of an encoder: our keys -> keys of the layout."""
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
    """Load an encoder into the image or text tower of a model.

    Resizes relative position bias tables to the model's window size. Flips the input channels of
    the first convolution for models with BGR input.

    Args:
        model: a `FiberImageText` or a `FiberDetector`.
        state: image or text encoder in one of the layouts.

    Returns:
        Loaded keys (ours -> theirs), and dropped keys with reasons.

    Raises:
        ValueError: naming missing keys, unknown keys and shape mismatches.
    """
    layout = encoder_layout(state)
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
    """Return the state dicts of both towers with the keys of other libraries.

    Inverse of `load_tower`. The image tower expects RGB input; its last norm is included only if
    the model has the ITC head.

    Returns:
        State dicts by tower, "swin" and "roberta".
    """
    config: FiberConfig = model.config  # type: ignore[assignment]
    own = model.state_dict()
    if config.channel_order == "bgr":
        own[FIRST_CONVOLUTION] = own[FIRST_CONVOLUTION].flip(1)
    layouts = {
        "swin": EncoderLayout(tower="swin", merging_in_next_stage=layout == "timm"),
        "roberta": EncoderLayout(tower="roberta"),
    }
    return {tower: unstack(own, layout_keys(each, config)) for tower, each in layouts.items()}
