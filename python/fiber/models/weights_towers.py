"""Maps of names: how they are applied, and the map of the two towers, alike in both stages.

A map goes from each of our names to the published names whose tensors, stacked along the first
dimension, are ours: queries, keys and values that the published code keeps apart are one tensor
here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fiber.config import FiberConfig

#: Our name -> the published names that it is stacked from.
KeyMap = dict[str, tuple[str, ...]]


def load_mapped(
    model: nn.Module, state: Mapping[str, Tensor], keys: KeyMap, unknown: list[str]
) -> None:
    """Copy published tensors into a model by its key map.

    Args:
        model: receives the tensors.
        state: tensors by published name.
        keys: our names -> published names.
        unknown: published names that no rule covers.

    Raises:
        ValueError: naming missing keys, `unknown` keys and tensors of another shape.
    """
    own = model.state_dict()
    missing = [name for names in keys.values() for name in names if name not in state]
    problems = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in unknown]
    values = {}
    for ours, theirs in keys.items():
        if any(name not in state for name in theirs):
            continue
        pieces = [state[name] for name in theirs]
        value = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if value.shape != own[ours].shape:
            shapes = " + ".join(str(tuple(piece.shape)) for piece in pieces)
            problems.append(
                f"{', '.join(theirs)} has shape {shapes}, expected {tuple(own[ours].shape)}"
            )
        values[ours] = value
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(f"{len(problems)} tensors do not fit the model:\n  {shown}{more}")
    with torch.no_grad():
        for ours, value in values.items():
            own[ours].copy_(value)


def unstack(state: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Split our tensors into the published ones; parts are equally large."""
    published = {}
    for ours, theirs in keys.items():
        # A number has no dimension to split along.
        pieces = state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],)
        published |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return published


def tower_keys(config: FiberConfig, *, image_prefix: str, text_prefix: str) -> KeyMap:
    """Map the backbone, which both published stages name alike below a prefix.

    Args:
        config: which blocks and layers there are, and whether queries are normalised.
        image_prefix: what the published image tower's names start with, up to its dot.
        text_prefix: what the published text tower's names start with, up to its dot.

    Returns:
        Names of a `FiberBackbone` -> published names.
    """
    keys: KeyMap = {}
    keys |= weight_and_bias("image.patch_embedding.projection", f"{image_prefix}patch_embed.proj")
    keys |= weight_and_bias("image.patch_embedding.norm", f"{image_prefix}patch_embed.norm")
    first_fused = sum(config.swin.depths) - config.fusion.num_fused_layers
    number = 0
    for stage, depth in enumerate(config.swin.depths):
        for block in range(depth):
            ours = f"image.stages.{stage}.blocks.{block}"
            theirs = f"{image_prefix}layers.{stage}.blocks.{block}"
            keys |= _swin_block_keys(ours, theirs)
            if number >= first_fused:
                pair = f"fusion.{number - first_fused}.image_to_text"
                keys |= _image_to_text_keys(pair, f"{theirs}.attn", config)
            number += 1
        if stage < len(config.swin.depths) - 1:
            ours, theirs = (
                f"image.stages.{stage}.merging",
                f"{image_prefix}layers.{stage}.downsample",
            )
            keys |= weight_and_bias(f"{ours}.norm", f"{theirs}.norm")
            keys[f"{ours}.reduction.weight"] = (f"{theirs}.reduction.weight",)
    for name in ("word", "position", "token_type"):
        theirs = f"{text_prefix}embeddings.{name}_embeddings.weight"
        keys[f"text.embeddings.{name}.weight"] = (theirs,)
    keys |= weight_and_bias("text.embeddings.norm", f"{text_prefix}embeddings.LayerNorm")
    for layer in range(config.roberta.num_layers):
        theirs = f"{text_prefix}encoder.layer.{layer}"
        keys |= _text_layer_keys(f"text.layers.{layer}", theirs)
        pair = layer - config.roberta.num_layers + config.fusion.num_fused_layers
        if pair >= 0:
            keys |= _text_to_image_keys(f"fusion.{pair}.text_to_image", theirs)
    return keys


def _swin_block_keys(ours: str, theirs: str) -> KeyMap:
    return {
        f"{ours}.attention.bias_table": (f"{theirs}.attn.relative_position_bias_table",),
        **weight_and_bias(f"{ours}.attention_norm", f"{theirs}.norm1"),
        **weight_and_bias(f"{ours}.attention.qkv", f"{theirs}.attn.qkv"),
        **weight_and_bias(f"{ours}.attention.output", f"{theirs}.attn.proj"),
        **weight_and_bias(f"{ours}.mlp_norm", f"{theirs}.norm2"),
        **weight_and_bias(f"{ours}.mlp.0", f"{theirs}.mlp.fc1"),
        **weight_and_bias(f"{ours}.mlp.2", f"{theirs}.mlp.fc2"),
    }


def _text_layer_keys(ours: str, theirs: str) -> KeyMap:
    attention = tuple(f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
    return {
        **weight_and_bias(f"{ours}.attention.qkv", *attention),
        **weight_and_bias(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **weight_and_bias(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        **weight_and_bias(f"{ours}.mlp.0", f"{theirs}.intermediate.dense"),
        **weight_and_bias(f"{ours}.mlp.2", f"{theirs}.output.dense"),
        **weight_and_bias(f"{ours}.output_norm", f"{theirs}.output.LayerNorm"),
    }


def _image_to_text_keys(ours: str, theirs: str, config: FiberConfig) -> KeyMap:
    norm = weight_and_bias(f"{ours}.norm", f"{theirs}.norm_i2t_i")
    return {
        f"{ours}.gate": (f"{theirs}.alpha_i2t",),
        **(norm if config.fusion.normalize_query else {}),
        **weight_and_bias(f"{ours}.query", f"{theirs}.qkv_i2t"),
        **weight_and_bias(f"{ours}.key_value", f"{theirs}.qkv_text_i2t"),
        **weight_and_bias(f"{ours}.output", f"{theirs}.proj_i2t"),
    }


def _text_to_image_keys(ours: str, theirs: str) -> KeyMap:
    attention = f"{theirs}.crossattention_t2i"
    return {
        f"{ours}.gate": (f"{theirs}.alpha_t2i",),
        **weight_and_bias(f"{ours}.query", f"{attention}.self.query"),
        **weight_and_bias(f"{ours}.key_value", f"{attention}.self.key", f"{attention}.self.value"),
        **weight_and_bias(f"{ours}.output", f"{attention}.output.dense"),
    }


def weight_and_bias(ours: str, *theirs: str) -> KeyMap:
    """Map the two tensors of a linear layer or a norm, stacked from one or more published ones."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")
    }
