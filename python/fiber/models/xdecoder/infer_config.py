"""Infer the configs of published X-Decoder checkpoints from their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fiber.config_io import to_dict
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import NUM_STAGES, FocalNetConfig
from fiber.models.infer import (
    OWN,
    check_fields,
    count_numbers,
    own_config,
    shape_of,
)
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.xdecoder.config import XDECODER_PRESETS, DecoderConfig, XDecoderConfig
from fiber.models.xdecoder.keys import (
    CLASS_WEIGHTS,
    DECODER,
    FIRST_CONVOLUTION,
    IMAGE,
    PIXEL,
    QUERIES,
    SELF_MASK,
    TEXT,
)
from fiber.models.xdecoder.released import check_released

#: Attention heads of every part of the published models, which cannot be inferred from shapes.
_NUM_HEADS = 8

#: Fields that tensors determine.
_DETERMINED = (
    *("family", "num_classes"),
    *(f"focalnet.{name}" for name in ("block", "embed_dim", "depths", "focal_levels")),
    *("focalnet.focal_window", "focalnet.mlp_ratio"),
    *(f"clip_text.{name}" for name in ("vocab_size", "width", "num_blocks", "mlp_ratio")),
    *("clip_text.max_positions", "pixel_decoder.num_layers"),
    *(f"decoder.{name}" for name in ("num_queries", "num_layers", "ffn_width", "mask_width")),
)


def xdecoder_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> XDecoderConfig:
    """Infer the config of a published X-Decoder checkpoint.

    Released files have no stored config: heads have the published number, and all heads of the
    model must be there. The form of FocalNet's blocks is told by the depthwise convolutions that
    one of them lacks.

    Raises:
        ValueError: if the file is another model's, a size cannot be inferred, a released model
            lacks layers, or the config that this package stored contradicts the tensors.
    """
    check_released(state)
    own = own_config(stored, XDecoderConfig)
    first = f"{IMAGE}layers.0.blocks.0."
    shape_of(state, f"{first}modulation.f.weight", 2)
    config = XDecoderConfig(
        focalnet=_focalnet(state, first),
        clip_text=_text(state, own.clip_text.num_heads if own else _NUM_HEADS),
        pixel_decoder=_pixel_decoder(state, own.pixel_decoder.num_heads if own else _NUM_HEADS),
        decoder=_decoder(state, own.decoder.num_heads if own else _NUM_HEADS),
        num_classes=_num_classes(state, own),
    )
    _check_mask(state, config)
    if "caption" in (own or config).heads:
        _check_queries(config)
    if own is None:
        _check_released_sizes(config)
        return config
    check_fields(own, config, _DETERMINED)
    return own


def _focalnet(state: Mapping[str, Tensor], first: str) -> FocalNetConfig:
    rows, channels = shape_of(state, f"{first}modulation.f.weight", 2)
    levels = rows - 2 * channels - 1
    if levels < 1:
        raise ValueError(
            f"{first}modulation.f.weight has {rows} rows, expected more than twice its {channels}"
            " channels: queries, context and gates"
        )
    window = shape_of(state, f"{first}modulation.focal_layers.0.0.weight", 4)[-1]
    stages = [f"{IMAGE}layers.{stage}.blocks." for stage in range(NUM_STAGES)]
    has_convolutions = any(".dw1." in name or ".dw2." in name for name in state)
    return FocalNetConfig(
        block="norm_after" if has_convolutions else "norm_inside",
        embed_dim=shape_of(state, f"{IMAGE}patch_embed.proj.weight", 4)[0],
        depths=tuple(count_numbers(state, re.escape(stage) + r"(\d+)\.") for stage in stages),
        focal_levels=levels,
        focal_window=window,
        mlp_ratio=shape_of(state, f"{first}mlp.fc1.weight", 2)[0] / channels,
    )


def _text(state: Mapping[str, Tensor], num_heads: int) -> ClipTextConfig:
    vocab_size, width = shape_of(state, f"{TEXT}token_embedding.weight", 2)
    blocks = f"{TEXT}resblocks."
    return ClipTextConfig(
        vocab_size=vocab_size,
        width=width,
        num_blocks=count_numbers(state, re.escape(blocks) + r"(\d+)\."),
        num_heads=num_heads,
        mlp_ratio=shape_of(state, f"{blocks}0.mlp.c_fc.weight", 2)[0] / width,
        max_positions=shape_of(state, f"{TEXT}positional_embedding", 2)[0],
    )


def _pixel_decoder(state: Mapping[str, Tensor], num_heads: int) -> PixelDecoderConfig:
    layers = f"{PIXEL}transformer.encoder.layers."
    num_layers = count_numbers(state, re.escape(layers) + r"(\d+)\.")
    config = PixelDecoderConfig(num_layers=num_layers, num_heads=num_heads)
    if not num_layers:
        return config
    return replace(config, ffn_width=shape_of(state, f"{layers}0.linear1.weight", 2)[0])


def _decoder(state: Mapping[str, Tensor], num_heads: int) -> DecoderConfig:
    layers = f"{DECODER}transformer_ffn_layers."
    return DecoderConfig(
        num_queries=shape_of(state, QUERIES, 2)[0],
        num_layers=count_numbers(state, re.escape(layers) + r"(\d+)\."),
        num_heads=num_heads,
        ffn_width=shape_of(state, f"{layers}0.linear1.weight", 2)[0],
        mask_width=shape_of(state, f"{DECODER}mask_embed.layers.2.weight", 2)[0],
    )


def _num_classes(state: Mapping[str, Tensor], own: XDecoderConfig | None) -> int:
    """Count the classes by the class weights of the loss, which also has the background."""
    if CLASS_WEIGHTS not in state:
        return (own or XDecoderConfig()).num_classes
    count = shape_of(state, CLASS_WEIGHTS, 1)[0] - 1
    if count < 1:
        raise ValueError(f"{CLASS_WEIGHTS} has shape (1,), expected a class and the background")
    return count


def _check_mask(state: Mapping[str, Tensor], config: XDecoderConfig) -> None:
    """Check the shape of the self-attention mask, which is not loaded."""
    rows = config.decoder.num_queries + config.max_tokens
    if SELF_MASK in state and tuple(state[SELF_MASK].shape) != (1, rows, rows):
        raise ValueError(
            f"{SELF_MASK} has shape {tuple(state[SELF_MASK].shape)}, expected"
            f" {(1, rows, rows)}: {config.decoder.num_queries} queries and {config.max_tokens}"
            " tokens of a caption"
        )


def _check_released_sizes(config: XDecoderConfig) -> None:
    """Check that a model of a released width has all layers of the released model.

    Layers that are missing as a whole would otherwise make a smaller model.
    """
    for name, preset in XDECODER_PRESETS.items():
        released = replace(
            preset,
            decoder=replace(preset.decoder, num_queries=config.decoder.num_queries),
            num_classes=config.num_classes,
        )
        is_same_width = (config.focalnet.embed_dim, config.width) == (
            released.focalnet.embed_dim,
            released.width,
        )
        if is_same_width and config != released:
            theirs, ours = main_sizes(released), main_sizes(config)
            differing = [
                f"{field} {ours[field]}, expected {theirs[field]}"
                for field in theirs
                if ours[field] != theirs[field]
            ]
            raise ValueError(
                f"the tensors have the channels of the published model {name!r}, but"
                f" {'; '.join(differing) or 'other sizes'}"
            )


def _check_queries(config: XDecoderConfig) -> None:
    """Check that the published code can run a model: it slices a mask of captions from queries."""
    queries = config.decoder.num_queries
    if queries < config.max_tokens:
        raise ValueError(
            f"{QUERIES} has {queries} rows, expected at least {config.max_tokens}, the tokens of a"
            " caption: the published code cannot run such a model with its caption head"
        )


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

    add("focalnet.embed_dim", FIRST_CONVOLUTION, 0)
    sizes["focalnet.depths"] = tuple(
        count(rf"backbone\.image\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(NUM_STAGES)
    )
    add("clip_text.vocab_size", "backbone.text.word_embedding.weight", 0)
    add("clip_text.width", "backbone.text.word_embedding.weight", 1)
    add("clip_text.max_positions", "backbone.text.position_embedding", 0)
    sizes["clip_text.num_blocks"] = count(r"backbone\.text\.blocks\.(\d+)\.")
    sizes["pixel_decoder.num_layers"] = count(r"pixel_decoder\.layers\.(\d+)\.")
    add("pixel_decoder.ffn_width", "pixel_decoder.layers.0.mlp.0.weight", 0)
    add("decoder.num_queries", "decoder.queries.weight", 0)
    add("decoder.ffn_width", "decoder.layers.0.mlp.0.weight", 0)
    add("decoder.mask_width", "decoder.mask_mlp.4.weight", 0)
    sizes["decoder.num_layers"] = count(r"decoder\.layers\.(\d+)\.")
    return sizes


def stored_config(config: XDecoderConfig) -> dict[str, Any]:
    """Return the config to store in a published file, as a JSON-serializable dict."""
    return {OWN: to_dict(config)}


def main_sizes(config: XDecoderConfig) -> dict[str, Any]:
    """Return the hyperparameters that determine most tensor shapes, keyed by display name."""
    return {
        "image blocks": config.focalnet.block,
        "image channels": config.focalnet.embed_dim,
        "image depths": config.focalnet.depths,
        "focal levels": config.focalnet.focal_levels,
        "width": config.width,
        "text blocks": config.clip_text.num_blocks,
        "pixel decoder layers": config.pixel_decoder.num_layers,
        "decoder layers": config.decoder.num_layers,
        "queries": config.decoder.num_queries,
    }


def describe(config: XDecoderConfig) -> str:
    """Describe a model in one line."""
    focal, text, decoder = config.focalnet, config.clip_text, config.decoder
    depths = "-".join(map(str, focal.depths))
    order = "norms after sums" if focal.block == "norm_after" else "norms inside branches"
    return (
        f"X-Decoder with {', '.join(config.heads)}; FocalNet with {depths} blocks,"
        f" {focal.embed_dim} channels, {order}; text encoder of CLIP with {text.num_blocks}"
        f" blocks, {text.width} channels, {text.vocab_size} tokens; {decoder.num_queries} queries,"
        f" {decoder.num_layers} decoder layers"
    )
