"""FocalNet image encoder: focal modulation in place of self-attention.

Feature maps are (B, H, W, C). Every output depends on the whole map, padding included, since the
last context of the modulation is a mean over it.

Source: FocalNet (Yang et al. 2022), in the two forms of Zou et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.ops.drop_path import drop_path
from fiber.ops.dropout import checkpointed

#: Epsilon of all LayerNorms.
LAYER_NORM_EPS = 1e-5
#: Initial value of layer scales.
LAYER_SCALE = 1e-4
#: Padding of the stem in pixels.
_STEM_PADDING = {"norm_after": 3, "norm_inside": 2}


class ConvEmbedding(nn.Module):
    """Strided convolution and LayerNorm over channels: the stem, and between stages."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, padding: int):
        super().__init__()
        self.stride = stride
        self.projection = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Embed: (B, C, H, W) -> (B, ceil(H / s), ceil(W / s), C').

        Sides are zero-padded to multiples of s at the bottom and right first.
        """
        height, width = images.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


class FocalModulation(nn.Module):
    """Modulate each location by gated contexts of growing size.

    The last context is the mean over the map. As published, the sum of the contexts is divided by
    their number.
    """

    def __init__(self, channels: int, levels: int, window: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        #: Queries, first context and gates.
        self.projection = nn.Linear(channels, 2 * channels + levels + 1)
        kernels = [window + 2 * level for level in range(levels)]
        self.contexts = nn.ModuleList(
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
            for size in kernels
        )
        self.modulator = nn.Conv2d(channels, channels, 1)
        self.output = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Modulate: (B, H, W, C) -> (B, H, W, C)."""
        sizes = (self.channels, self.channels, self.levels + 1)
        query, context, gates = self.projection(tokens).permute(0, 3, 1, 2).split(sizes, 1)
        total = torch.zeros_like(context)
        for level, convolution in enumerate(self.contexts):
            context = F.gelu(convolution(context))
            total = total + context * gates[:, level : level + 1]
        mean = F.gelu(context.mean((2, 3), keepdim=True))
        total = (total + mean * gates[:, self.levels :]) / (self.levels + 1)
        return self.output((query * self.modulator(total)).permute(0, 2, 3, 1))


class FocalBlock(nn.Module):
    """Block of focal modulation and MLP with layer scales, in one of the two published orders."""

    def __init__(self, channels: int, config: FocalNetConfig, drop_path: float) -> None:
        super().__init__()
        self.norm_after = config.block == "norm_after"
        self.drop_path = drop_path
        hidden = int(channels * config.mlp_ratio)
        self.modulation = FocalModulation(channels, config.focal_levels, config.focal_window)
        self.modulation_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.modulation_scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp_scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        if self.norm_after:
            self.modulation_conv, self.mlp_conv = (
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(2)
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block: (B, H, W, C) -> (B, H, W, C)."""
        if self.norm_after:
            tokens = _convolved(tokens, self.modulation_conv)
            update = self._drop(self.modulation_scale * self.modulation(tokens))
            tokens = _convolved(self.modulation_norm(tokens + update), self.mlp_conv)
            return self.mlp_norm(tokens + self._drop(self.mlp_scale * self.mlp(tokens)))
        update = self.modulation_norm(self.modulation(tokens))
        tokens = tokens + self._drop(self.modulation_scale * update)
        return tokens + self._drop(self.mlp_scale * self.mlp_norm(self.mlp(tokens)))

    def _drop(self, update: Tensor) -> Tensor:
        return drop_path(update, self.drop_path, training=self.training)


def _convolved(tokens: Tensor, convolution: nn.Module) -> Tensor:
    """Add a depthwise convolution of a (B, H, W, C) map to it."""
    return tokens + convolution(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FocalStage(nn.Module):
    """Blocks at one resolution, the norm of their output, and the embedding of the next stage."""

    def __init__(self, blocks: list[FocalBlock], channels: int, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.downsample = (
            None
            if is_last
            else ConvEmbedding(channels, 2 * channels, kernel=3, stride=2, padding=1)
        )


class FocalNetEncoder(nn.Module):
    """FocalNet with four stages.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.patch_embedding = ConvEmbedding(
            3, config.embed_dim, kernel=7, stride=4, padding=_STEM_PADDING[config.block]
        )
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        stages = []
        for stage, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            blocks = [FocalBlock(channels, config, rates.pop(0)) for _ in range(depth)]
            stages.append(FocalStage(blocks, channels, is_last=stage == len(config.depths) - 1))
        self.stages = nn.ModuleList(stages)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images of any size: (B, 3, H, W) -> four (B, H_s, W_s, C_s) normalized maps.

        Strides are 4, 8, 16 and 32. A stage reads the output of the stage before it without norm.
        """
        tokens = self._run(self.patch_embedding, images)
        maps = []
        for stage in cast("list[FocalStage]", list(self.stages)):
            for block in stage.blocks:
                tokens = self._run(block, tokens)
            maps.append(stage.norm(tokens))
            if stage.downsample is not None:
                tokens = self._run(stage.downsample, tokens.permute(0, 3, 1, 2))
        return tuple(maps)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, with gradient checkpointing if enabled."""
        if self.gradient_checkpointing and self.training:
            return checkpointed(function, *arguments)
        return function(*arguments)
