"""Key map of the FIBER backbone, shared by both published stages."""

from __future__ import annotations

from fiber.config import FiberConfig
from fiber.models.encoders.keys import KeyMap, roberta_keys, swin_keys, weight_and_bias


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
