"""Maps of names: how they are applied, and the map of the two towers, alike in both stages.

A map goes from each of our names to the published names whose tensors, stacked along the first
dimension, are ours: queries, keys and values that the published code keeps apart are one tensor
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig, RobertaConfig, SwinConfig

#: Our name -> the published names that it is stacked from.
KeyMap = dict[str, tuple[str, ...]]


class TowerLayout(NamedTuple):
    """How somebody else names one of the towers."""

    tower: Literal["swin", "roberta"]
    #: What every name starts with, up to its dot.
    prefix: str = ""
    #: The merging between two stages bears the number of the second one, as in timm since 0.9, not
    #: of the first one, as at Microsoft and in FIBER.
    merging_in_next_stage: bool = False

    @property
    def title(self) -> str:
        """What people call the tower."""
        return "Swin" if self.tower == "swin" else "RoBERTa"


def tower_layout(names: Iterable[str]) -> TowerLayout | None:
    """Tell a tower that stands alone, and its layout, by the names; None if they are none's."""
    names = set(names)
    if "patch_embed.proj.weight" in names and any(name.startswith("layers.0.") for name in names):
        numbers = {name.split(".")[1] for name in names if ".downsample." in name}
        return TowerLayout(tower="swin", merging_in_next_stage="0" not in numbers)
    for prefix in ("", "roberta."):
        if f"{prefix}embeddings.word_embeddings.weight" in names:
            return TowerLayout(tower="roberta", prefix=prefix)
    return None


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


def sort_unmapped(
    names: Iterable[str], keys: KeyMap, reason_for: Callable[[str], str | None]
) -> tuple[dict[str, str], list[str]]:
    """Sort the names that a map does not take.

    Args:
        names: published names.
        keys: our names -> published names.
        reason_for: says why a name may be left out; None: it may not.

    Returns:
        Names that are left out, each with the reason, and names that no rule covers.
    """
    mapped = {name for theirs in keys.values() for name in theirs}
    ignored, unknown = {}, []
    for name in names:
        if name not in mapped:
            reason = reason_for(name)
            if reason is None:
                unknown.append(name)
            else:
                ignored[name] = reason
    return ignored, unknown


def resize_bias_tables(state: Mapping[str, Tensor], window_size: int) -> dict[str, Tensor]:
    """Make every table of relative position biases one for another window.

    Args:
        state: tensors by our names or by published ones.
        window_size: side of the new window in tokens.
    """
    rows = (2 * window_size - 1) ** 2
    return {
        name: resize_bias_table(tensor, rows) if name.endswith("bias_table") else tensor
        for name, tensor in state.items()
    }


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Make a table of relative position biases for another window.

    Args:
        table: ((2 w - 1) ** 2, h) of the old window.
        rows: (2 w' - 1) ** 2 of the new one.

    Returns:
        (rows, h), by bicubic interpolation as in the published code; the table itself if it fits.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    # (old ** 2, h) -> (1, h, old, old)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)


def tower_keys(config: FiberConfig, *, image_prefix: str, text_prefix: str) -> KeyMap:
    """Map the backbone, which both published stages name alike below a prefix.

    Args:
        config: which blocks and layers there are, and whether queries are normalised.
        image_prefix: what the published image tower's names start with, up to its dot.
        text_prefix: what the published text tower's names start with, up to its dot.

    Returns:
        Names of a `FiberBackbone` -> published names.
    """
    keys = swin_keys(config.swin, image_prefix) | roberta_keys(config.roberta, text_prefix)
    fused, layers = config.fusion.num_fused_layers, config.roberta.num_layers
    blocks = [
        f"{image_prefix}layers.{stage}.blocks.{block}"
        for stage, depth in enumerate(config.swin.depths)
        for block in range(depth)
    ]
    for pair in range(fused):
        block, layer = blocks[len(blocks) - fused + pair], layers - fused + pair
        keys |= _image_to_text_keys(f"fusion.{pair}.image_to_text", f"{block}.attn", config)
        keys |= _text_to_image_keys(
            f"fusion.{pair}.text_to_image", f"{text_prefix}encoder.layer.{layer}"
        )
    return keys


def swin_keys(config: SwinConfig, prefix: str, *, merging_in_next_stage: bool = False) -> KeyMap:
    """Map the image tower.

    Args:
        config: which blocks there are.
        prefix: what the published names start with, up to its dot.
        merging_in_next_stage: the merging between two stages bears the number of the second one,
            as in timm since 0.9, not of the first one, as at Microsoft and in FIBER.

    Returns:
        Names of a `FiberBackbone` -> published names.
    """
    keys: KeyMap = {}
    keys |= weight_and_bias("image.patch_embedding.projection", f"{prefix}patch_embed.proj")
    keys |= weight_and_bias("image.patch_embedding.norm", f"{prefix}patch_embed.norm")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            keys |= _swin_block_keys(
                f"image.stages.{stage}.blocks.{block}", f"{prefix}layers.{stage}.blocks.{block}"
            )
        if stage < len(config.depths) - 1:
            ours = f"image.stages.{stage}.merging"
            theirs = f"{prefix}layers.{stage + merging_in_next_stage}.downsample"
            keys |= weight_and_bias(f"{ours}.norm", f"{theirs}.norm")
            keys[f"{ours}.reduction.weight"] = (f"{theirs}.reduction.weight",)
    return keys


def roberta_keys(config: RobertaConfig, prefix: str) -> KeyMap:
    """Map the text tower, which every code names as transformers' RobertaModel does.

    Args:
        config: how many layers there are.
        prefix: what the published names start with, up to its dot.

    Returns:
        Names of a `FiberBackbone` -> published names.
    """
    keys: KeyMap = {}
    for name in ("word", "position", "token_type"):
        theirs = f"{prefix}embeddings.{name}_embeddings.weight"
        keys[f"text.embeddings.{name}.weight"] = (theirs,)
    keys |= weight_and_bias("text.embeddings.norm", f"{prefix}embeddings.LayerNorm")
    for layer in range(config.num_layers):
        keys |= _text_layer_keys(f"text.layers.{layer}", f"{prefix}encoder.layer.{layer}")
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
