"""Dynamic head: attention over levels, locations and channels.

Source: Dynamic Head (Dai et al. 2021), as implemented in the published model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.ops.deform import TAPS, modulated_deform_conv


def hard_sigmoid(logits: Tensor) -> Tensor:
    """Compute relu6(x + 3) / 6, in [0, 1]."""
    return F.relu6(logits + 3) / 6


class ModulatedConv(nn.Module):
    """3 x 3 modulated deformable convolution (v2) in at least float32, followed by GroupNorm."""

    def __init__(self, channels: int, norm_groups: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(norm_groups, channels)
        bound = (channels * TAPS) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        """Apply the layer: (B, C, H, W) -> (B, C, h, w). See `modulated_deform_conv`."""
        # Cast to at least float32; keep float64.
        exact = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            out = modulated_deform_conv(
                features.to(exact),
                offsets.to(exact),
                modulation.to(exact),
                self.weight.to(exact),
                self.bias.to(exact),
                stride=self.stride,
            )
        return self.norm(out.to(self.norm.weight.dtype))


class DynamicRelu(nn.Module):
    """Maximum of two linear functions with image-dependent slopes and offsets (DyReLU-B).

    Source: Dynamic ReLU (Chen et al. 2020).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 4)
        self.expand = nn.Linear(channels // 4, 4 * channels)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the activation: (B, C, H, W) -> (B, C, H, W)."""
        pooled = features.mean(dim=(2, 3))
        theta = hard_sigmoid(self.expand(F.relu(self.reduce(pooled)))) - 0.5
        # (B, 4 C) -> four (B, C, 1, 1) tensors in [-0.5, 0.5]
        slope, offset, other_slope, other_offset = theta[:, :, None, None].chunk(4, dim=1)
        return torch.maximum(
            features * (2 * slope + 1) + offset, features * (2 * other_slope) + other_offset
        )


class DynamicBlock(nn.Module):
    """Dynamic head block. All levels share its weights."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.same = ModulatedConv(channels, norm_groups)
        self.finer = ModulatedConv(channels, norm_groups, stride=2)
        self.coarser = ModulatedConv(channels, norm_groups)
        self.scale_attention = nn.Conv2d(channels, 1, 1)
        self.activation = DynamicRelu(channels)
        nn.init.normal_(self.scale_attention.weight, std=0.01)
        if self.scale_attention.bias is not None:
            nn.init.zeros_(self.scale_attention.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Mix each level with its neighbors.

        Levels are (B, C, H_l, W_l), finest first, each half the size of the previous one.
        """
        return [self.activation(self._mix(levels, level)) for level in range(len(levels))]

    def _mix(self, levels: Sequence[Tensor], level: int) -> Tensor:
        features = levels[level]
        raw = self.offsets(features)
        offsets, modulation = raw[:, : 2 * TAPS], raw[:, 2 * TAPS :].sigmoid()
        branches = [self.same(features, offsets, modulation)]
        if level > 0:
            branches.append(self.finer(levels[level - 1], offsets, modulation))
        if level + 1 < len(levels):
            coarse = levels[level + 1]
            mixed = self.coarser(
                coarse,
                reread(offsets, coarse.shape[-2:]),
                reread(modulation, coarse.shape[-2:]),
            )
            branches.append(
                F.interpolate(mixed, size=features.shape[-2:], mode="bilinear", align_corners=True)
            )
        mixed = branches[0] * self._scale(branches[0])
        for branch in branches[1:]:
            mixed = torch.addcmul(mixed, branch, self._scale(branch))
        return mixed / len(branches)

    def _scale(self, branch: Tensor) -> Tensor:
        """Compute the (B, 1, 1, 1) weight of a branch, in [0.5, 1]."""
        pooled = branch.mean(dim=(2, 3), keepdim=True)
        return hard_sigmoid(F.relu(self.scale_attention(pooled)))


def reread(values: Tensor, map_size: Sequence[int]) -> Tensor:
    """Reinterpret the first K * h * w values of each sample: (B, K, H, W) -> (B, K, h, w).

    The published model passes the offsets of the finer level to the convolution of the coarser
    level. The CUDA kernel of that convolution reads the offset buffer as if it had the smaller
    shape, and the published weights were trained this way.
    """
    batch, kinds = values.shape[:2]
    height, width = map_size
    flat = values.flatten(1)[:, : kinds * height * width]
    return flat.reshape(batch, kinds, height, width)


class DynamicHead(nn.Module):
    """Sequence of dynamic blocks."""

    def __init__(self, channels: int, num_blocks: int, norm_groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DynamicBlock(channels, norm_groups) for _ in range(num_blocks))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Run all blocks on (B, C, H_l, W_l) levels; shapes do not change."""
        mixed = list(levels)
        for block in self.blocks:
            mixed = block(mixed)
        return mixed
