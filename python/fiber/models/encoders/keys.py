"""Key maps of the encoders: published keys of Swin and RoBERTa."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from fiber.config import RobertaConfig, SwinConfig

#: Our key -> published keys whose tensors are concatenated.
KeyMap = dict[str, tuple[str, ...]]


class EncoderLayout(NamedTuple):
    """Key layout of a published encoder."""

    tower: Literal["swin", "roberta"]
    #: Common prefix of all keys, including the dot.
    prefix: str = ""
    #: Patch merging is part of the stage after it, as in timm since 0.9. False: of the stage before
    #: it, as in Microsoft's Swin and FIBER.
    merging_in_next_stage: bool = False

    @property
    def title(self) -> str:
        """Name of the tower in messages."""
        return "Swin" if self.tower == "swin" else "RoBERTa"


def encoder_layout(names: Iterable[str]) -> EncoderLayout | None:
    """Detect the layout of a standalone encoder from its keys; None if it is not one."""
    names = set(names)
    if "patch_embed.proj.weight" in names and any(name.startswith("layers.0.") for name in names):
        numbers = {name.split(".")[1] for name in names if ".downsample." in name}
        return EncoderLayout(tower="swin", merging_in_next_stage="0" not in numbers)
    for prefix in ("", "roberta."):
        if f"{prefix}embeddings.word_embeddings.weight" in names:
            return EncoderLayout(tower="roberta", prefix=prefix)
    return None


def swin_keys(config: SwinConfig, prefix: str, *, merging_in_next_stage: bool = False) -> KeyMap:
    """Map the image tower.

    Args:
        config: sizes of the tower.
        prefix: prefix of the published keys, including the dot.
        merging_in_next_stage: as in `EncoderLayout`.

    Returns:
        Keys of a `FiberBackbone` -> published keys.
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
    """Map the text tower, with keys as in transformers' RobertaModel.

    Args:
        config: sizes of the tower.
        prefix: prefix of the published keys, including the dot.

    Returns:
        Keys of a `FiberBackbone` -> published keys.
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
    """Map weight and bias of a layer, concatenated from one or more published layers."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")
    }
