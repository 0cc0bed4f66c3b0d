"""Published keys of X-Decoder: key mapping, ignored keys, and buffers that files have.

Each published tensor is mapped, ignored for a reason listed here, or causes an error on load.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor

from fiber.models.encoders.focalnet_config import NUM_STAGES, FocalNetConfig
from fiber.models.encoders.keys import (
    EncoderFormat,
    EncoderLayout,
    IgnoredKeys,
    KeyMap,
    weight_and_bias,
)
from fiber.models.xdecoder.config import XDecoderConfig

#: Prefixes of the parts.
IMAGE, PIXEL = "backbone.", "sem_seg_head.pixel_decoder."
DECODER = "sem_seg_head.predictor."
LANGUAGE = f"{DECODER}lang_encoder."
TEXT = f"{LANGUAGE}lang_encoder."

#: Table of the queries, by which the family is recognized.
QUERIES = f"{DECODER}query_feat.weight"
#: Buffers that follow from the config.
SELF_MASK, CLASS_WEIGHTS = f"{DECODER}self_attn_mask", "criterion.empty_weight"
#: Weight of the background in the class loss.
BACKGROUND_WEIGHT = 0.1

#: Weight whose input channels are in RGB order.
FIRST_CONVOLUTION = "backbone.image.patch_embedding.projection.weight"

_IGNORED: IgnoredKeys = (
    (re.escape(SELF_MASK), "buffer derived from the number of queries"),
    (re.escape(CLASS_WEIGHTS), "class weights of the loss, derived from the number of classes"),
)

#: Parameters of an attention that are not those of a linear layer: ours and published ones.
_ATTENTION = {"in_weight": "in_proj_weight", "in_bias": "in_proj_bias"}


def is_xdecoder(names: Collection[str]) -> bool:
    """Return whether published keys are those of an X-Decoder model, even if parts are missing."""
    return not is_unicl(names) and any(name.startswith(DECODER) for name in names)


def is_unicl(names: Collection[str]) -> bool:
    """Return whether published keys are those of the two encoders alone."""
    heads = [name for name in names if name.startswith("sem_seg_head.")]
    return (
        f"{IMAGE}patch_embed.proj.weight" in names
        and bool(heads)
        and all(name.startswith(LANGUAGE) for name in heads)
    )


def xdecoder_keys(config: XDecoderConfig) -> KeyMap:
    """Return a mapping from `XDecoder` keys to published keys."""
    keys: KeyMap = {
        **focalnet_keys(config.focalnet, "backbone.image", IMAGE),
        **_text_keys(config),
        **_pixel_keys(config),
        **_decoder_keys(config),
        "text_projection": (f"{LANGUAGE}lang_proj",),
        "logit_scale": (f"{LANGUAGE}logit_scale",),
    }
    if "retrieval" in config.heads:
        keys["image_projection"] = ("backbone_proj",)
    return keys


def _unicl_keys(config: XDecoderConfig, layout: EncoderLayout) -> KeyMap:
    return {**focalnet_keys(config.focalnet, "backbone.image", IMAGE), **_text_keys(config)}


#: Both encoders in one file, from which published models were trained. It has the names of the
#: whole model, and half precision.
UNICL = EncoderFormat(
    name="unicl",
    title="UniCL",
    side="image",
    layout=lambda names: EncoderLayout() if is_unicl(names) else None,
    keys=_unicl_keys,
    ignored=lambda config: (),
    optional=lambda config: {
        ours: theirs
        for ours, theirs in xdecoder_keys(config).items()
        if ours in ("text_projection", "logit_scale", "image_projection")
    },
)


def focalnet_keys(config: FocalNetConfig, ours: str, theirs: str) -> KeyMap:
    """Map keys of `FocalNetEncoder` to published keys of FocalNet."""
    keys = {
        **weight_and_bias(f"{ours}.patch_embedding.projection", f"{theirs}patch_embed.proj"),
        **weight_and_bias(f"{ours}.patch_embedding.norm", f"{theirs}patch_embed.norm"),
    }
    for stage, depth in enumerate(config.depths):
        keys |= weight_and_bias(f"{ours}.stages.{stage}.norm", f"{theirs}norm{stage}")
        for number in range(depth):
            block = f"{ours}.stages.{stage}.blocks.{number}"
            keys |= _focal_block_keys(config, block, f"{theirs}layers.{stage}.blocks.{number}")
        if stage < NUM_STAGES - 1:
            down, published = f"{ours}.stages.{stage}.downsample", f"{theirs}layers.{stage}"
            keys |= weight_and_bias(f"{down}.projection", f"{published}.downsample.proj")
            keys |= weight_and_bias(f"{down}.norm", f"{published}.downsample.norm")
    return keys


def _focal_block_keys(config: FocalNetConfig, ours: str, theirs: str) -> KeyMap:
    modulation, published = f"{ours}.modulation", f"{theirs}.modulation"
    keys = {
        f"{ours}.modulation_scale": (f"{theirs}.gamma_1",),
        f"{ours}.mlp_scale": (f"{theirs}.gamma_2",),
        **weight_and_bias(f"{modulation}.projection", f"{published}.f"),
        **weight_and_bias(f"{modulation}.modulator", f"{published}.h"),
        **weight_and_bias(f"{modulation}.output", f"{published}.proj"),
        **weight_and_bias(f"{ours}.modulation_norm", f"{theirs}.norm1"),
        **weight_and_bias(f"{ours}.mlp.0", f"{theirs}.mlp.fc1"),
        **weight_and_bias(f"{ours}.mlp.2", f"{theirs}.mlp.fc2"),
        **weight_and_bias(f"{ours}.mlp_norm", f"{theirs}.norm2"),
    }
    for level in range(config.focal_levels):
        name = f"{published}.focal_layers.{level}.0.weight"
        keys[f"{modulation}.contexts.{level}.weight"] = (name,)
    if config.block == "norm_after":
        keys |= weight_and_bias(f"{ours}.modulation_conv", f"{theirs}.dw1")
        keys |= weight_and_bias(f"{ours}.mlp_conv", f"{theirs}.dw2")
    return keys


def _text_keys(config: XDecoderConfig) -> KeyMap:
    ours = "backbone.text"
    keys: KeyMap = {
        f"{ours}.word_embedding.weight": (f"{TEXT}token_embedding.weight",),
        f"{ours}.position_embedding": (f"{TEXT}positional_embedding",),
        **weight_and_bias(f"{ours}.last_norm", f"{TEXT}ln_final"),
    }
    for number in range(config.clip_text.num_blocks):
        block, published = f"{ours}.blocks.{number}", f"{TEXT}resblocks.{number}"
        keys |= {
            f"{block}.qkv.weight": (f"{published}.attn.in_proj_weight",),
            f"{block}.qkv.bias": (f"{published}.attn.in_proj_bias",),
            **weight_and_bias(f"{block}.output", f"{published}.attn.out_proj"),
            **weight_and_bias(f"{block}.attention_norm", f"{published}.ln_1"),
            **weight_and_bias(f"{block}.mlp_norm", f"{published}.ln_2"),
            **weight_and_bias(f"{block}.mlp.0", f"{published}.mlp.c_fc"),
            **weight_and_bias(f"{block}.mlp.2", f"{published}.mlp.c_proj"),
        }
    return keys


def _pixel_keys(config: XDecoderConfig) -> KeyMap:
    ours = "pixel_decoder"
    keys = {
        **weight_and_bias(f"{ours}.input_projection", f"{PIXEL}input_proj"),
        **weight_and_bias(f"{ours}.mask_features", f"{PIXEL}mask_features"),
    }
    for number in range(config.pixel_decoder.num_layers):
        layer, published = f"{ours}.layers.{number}", f"{PIXEL}transformer.encoder.layers.{number}"
        keys |= {
            **_attention_keys(f"{layer}.attention", f"{published}.self_attn"),
            **weight_and_bias(f"{layer}.attention_norm", f"{published}.norm1"),
            **weight_and_bias(f"{layer}.mlp.0", f"{published}.linear1"),
            **weight_and_bias(f"{layer}.mlp.2", f"{published}.linear2"),
            **weight_and_bias(f"{layer}.mlp_norm", f"{published}.norm2"),
        }
    # Published numbers count stages from stride 4; ours start at stride 32.
    for number in range(NUM_STAGES):
        keys |= _conv_norm_keys(f"{ours}.outputs.{number}", f"{PIXEL}layer_{NUM_STAGES - number}")
    for number in range(NUM_STAGES - 1):
        published = f"{PIXEL}adapter_{NUM_STAGES - 1 - number}"
        keys |= _conv_norm_keys(f"{ours}.laterals.{number}", published)
    return keys


def _conv_norm_keys(ours: str, theirs: str) -> KeyMap:
    return {
        f"{ours}.convolution.weight": (f"{theirs}.weight",),
        **weight_and_bias(f"{ours}.norm", f"{theirs}.norm"),
    }


def _decoder_keys(config: XDecoderConfig) -> KeyMap:
    ours = "decoder"
    keys: KeyMap = {
        f"{ours}.queries.weight": (QUERIES,),
        f"{ours}.query_positions.weight": (f"{DECODER}query_embed.weight",),
        f"{ours}.level_embedding.weight": (f"{DECODER}level_embed.weight",),
        f"{ours}.class_projection": (f"{DECODER}class_embed",),
        **weight_and_bias(f"{ours}.norm", f"{DECODER}decoder_norm"),
    }
    for number in range(3):
        published = f"{DECODER}mask_embed.layers.{number}"
        keys |= weight_and_bias(f"{ours}.mask_mlp.{2 * number}", published)
    if "caption" in config.heads:
        keys[f"{ours}.caption_positions.weight"] = (f"{DECODER}pos_embed_caping.weight",)
        keys[f"{ours}.caption_projection"] = (f"{DECODER}caping_embed",)
    for number in range(config.decoder.num_layers):
        layer = f"{ours}.layers.{number}"
        cross, own, mlp = (
            f"{DECODER}transformer_{kind}_layers.{number}"
            for kind in ("cross_attention", "self_attention", "ffn")
        )
        keys |= {
            **_attention_keys(f"{layer}.cross_attention", f"{cross}.multihead_attn"),
            **weight_and_bias(f"{layer}.cross_norm", f"{cross}.norm"),
            **_attention_keys(f"{layer}.self_attention", f"{own}.self_attn"),
            **weight_and_bias(f"{layer}.self_norm", f"{own}.norm"),
            **weight_and_bias(f"{layer}.mlp.0", f"{mlp}.linear1"),
            **weight_and_bias(f"{layer}.mlp.2", f"{mlp}.linear2"),
            **weight_and_bias(f"{layer}.mlp_norm", f"{mlp}.norm"),
        }
    return keys


def _attention_keys(ours: str, theirs: str) -> KeyMap:
    keys: KeyMap = {f"{ours}.{own}": (f"{theirs}.{name}",) for own, name in _ATTENTION.items()}
    return keys | weight_and_bias(f"{ours}.output", f"{theirs}.out_proj")


def ignored_xdecoder_key(name: str, config: XDecoderConfig) -> str | None:
    """Return why a published key outside `xdecoder_keys` is ignored, or None if it is unknown."""
    return next((why for pattern, why in _IGNORED if re.fullmatch(pattern, name)), None)


def with_buffers(state: dict[str, Tensor], config: XDecoderConfig) -> dict[str, Tensor]:
    """Add the buffers that published files have: the self-attention mask and class weights."""
    queries, length = config.decoder.num_queries, config.max_tokens
    rows = queries + length
    hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    is_class = torch.arange(queries) == queries - 1
    hidden[:queries, :queries] = is_class[:, None] != is_class
    weights = torch.ones(config.num_classes + 1)
    weights[-1] = BACKGROUND_WEIGHT
    return state | {SELF_MASK: hidden[None], CLASS_WEIGHTS: weights}
