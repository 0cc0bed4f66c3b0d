"""Key maps of the encoders: published names of Swin and RoBERTa tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from fiber.config import RobertaConfig, SwinConfig

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


def weight_and_bias(ours: str, *theirs: str) -> KeyMap:
    """Map the two tensors of a linear layer or a norm, stacked from one or more published ones."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")
    }
