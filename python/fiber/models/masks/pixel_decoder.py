"""Pixel decoder: a Transformer on the last map, and a feature pyramid down to stride 4.

Shapes: maps are (B, C_s, H_s, W_s), from stride 4 to stride 32; D is the width. Any encoder with
four such maps fits.

Source: Mask2Former (Cheng et al. 2022), without deformable attention, as in Zou et al. (CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.masks.attention import PackedAttention, feed_forward
from fiber.models.masks.pixel_decoder_config import NORM_GROUPS, PixelDecoderConfig

#: Pixels of an image for each row and column of mask features.
MASK_STRIDE = 4
#: Longest wavelength of the position code, and what keeps its divisions finite.
_TEMPERATURE = 10000.0
_EPS = 1e-6


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder."""

    #: (B, D, H_s, W_s) at strides 32, 16 and 8, in this order.
    maps: tuple[Tensor, ...]
    #: (B, M, H / 4, W / 4); the product with a mask embedding gives mask logits.
    mask_features: Tensor


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Compute the sine position code of a map: (D, H, W) of the type and device of `like`.

    The first half of the channels is the code of the row, the second that of the column. Positions
    count from 1 and are divided by the size of the map, so padding moves them.
    """
    half = channels // 2
    index = torch.arange(half, device=like.device, dtype=torch.float32)
    wavelengths = _TEMPERATURE ** (2 * (index // 2) / half)

    def code(size: int) -> Tensor:
        places = torch.arange(1, size + 1, device=like.device, dtype=torch.float32)
        angles = (places / (size + _EPS) * (2 * math.pi))[:, None] / wavelengths
        # sin and cos alternate
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), 2).flatten(1)

    rows = code(height).T[:, :, None].expand(-1, -1, width)
    columns = code(width).T[:, None].expand(-1, height, -1)
    return torch.cat((rows, columns)).to(like.dtype)


class EncoderLayer(nn.Module):
    """Post-norm layer of self-attention and feed-forward layer."""

    def __init__(self, width: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.attention = PackedAttention(width, config.num_heads)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, config.ffn_width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Run the layer: (B, N, D), (N, D) -> (B, N, D)."""
        placed = tokens + positions
        tokens = self.attention_norm(tokens + self.attention(placed, placed, tokens))
        return self.mlp_norm(tokens + self.mlp(tokens))


class ConvNorm(nn.Module):
    """Convolution without bias, and GroupNorm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, norm_groups: int = NORM_GROUPS
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(norm_groups, outputs)
        nn.init.kaiming_uniform_(self.convolution.weight, a=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Run the layer: (B, C, H, W) -> (B, C', H, W)."""
        return self.norm(self.convolution(maps))


class PixelDecoder(nn.Module):
    """Pixel decoder for maps with the given channels, from stride 4 to stride 32."""

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        mask_width: int,
        config: PixelDecoderConfig,
        norm_groups: int = NORM_GROUPS,
    ) -> None:
        super().__init__()
        self.width = width
        *lower, last = channels
        self.input_projection = nn.Conv2d(last, width, 1)
        self.layers = nn.ModuleList(EncoderLayer(width, config) for _ in range(config.num_layers))
        #: One more than laterals: the first is on the output of the Transformer.
        self.outputs = nn.ModuleList(ConvNorm(width, width, 3, norm_groups) for _ in channels)
        self.laterals = nn.ModuleList(
            ConvNorm(each, width, 1, norm_groups) for each in reversed(lower)
        )
        self.mask_features = nn.Conv2d(width, mask_width, 3, padding=1)
        for convolution in (self.input_projection, self.mask_features):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(cast(Tensor, convolution.bias))

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """Compute multi-scale maps and mask features."""
        *lower, last = maps
        top = self.input_projection(last)
        height, width = top.shape[-2:]
        positions = sine_positions(height, width, self.width, top).flatten(1).T
        tokens = top.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, positions)
        current = tokens.transpose(1, 2).unflatten(2, (height, width))
        current = F.relu(self.outputs[0](current))
        found = [current]
        for lateral, output, stage in zip(
            self.laterals, self.outputs[1:], reversed(lower), strict=True
        ):
            upsampled = F.interpolate(current, size=stage.shape[-2:], mode="nearest")
            current = F.relu(output(lateral(stage) + upsampled))
            found.append(current)
        # The map at stride 4 is only for mask features.
        return PixelFeatures(tuple(found[:-1]), self.mask_features(found[-1]))
