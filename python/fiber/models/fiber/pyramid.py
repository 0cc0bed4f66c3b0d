"""Feature pyramid: five levels with the same number of channels, from stride 8 to stride 128."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.ops.dropout import is_by_row, keeps

#: DropBlock probability per location and size of the dropped squares, as in the published code.
DROP_PROBABILITY = 0.3
DROP_BLOCK_SIZE = 3

#: Factors of `FeaturePyramid.init_identity` for coarser maps and for random output weights.
COARSER_SHARE, NOISE_SHARE = 0.2, 0.1


def drop_block(features: Tensor) -> Tensor:
    """Zero random squares, the same in all channels, and divide by the fraction kept.

    The fraction is that of the whole batch; within `dropout.by_row`, that of each image.

    Source: DropBlock (Ghiasi et al. 2018), with the constants of the published model.
    """
    batch, _, height, width = features.shape
    rate = DROP_PROBABILITY / DROP_BLOCK_SIZE**2
    seeds = (~keeps((batch, 1, height, width), rate, features.device)).float()
    kept = 1 - F.max_pool2d(seeds, DROP_BLOCK_SIZE, stride=1, padding=DROP_BLOCK_SIZE // 2)
    # A small map may be dropped completely, so avoid division by 0.
    if is_by_row():
        share = kept.mean((1, 2, 3), keepdim=True).clamp(min=1.0 / (height * width))
    else:
        share = kept.mean().clamp(min=1.0 / kept.numel())
    return features * (kept / share).to(features.dtype)


class FeaturePyramid(nn.Module):
    """Merge three feature maps from coarse to fine, and add two coarser levels.

    In training, DropBlock is applied to the two finest merged maps, as in the published code.

    Source: Feature Pyramid Networks (Lin et al. 2017), with P6 and P7 computed from P5 as in
    RetinaNet.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, drop_block: bool) -> None:
        super().__init__()
        self.drop_block = drop_block
        self.laterals = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.outputs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def init_identity(self) -> None:
        """Initialize the levels P3 to P5 close to the projected maps of their own stage.

        With the published initialization, a level starts as a random mixture of its map with the
        upsampled coarser ones, in which a narrow model loses what the map says.
        """
        if self.p6.weight.is_meta:
            return  # See `fiber.models.init.WithoutInit`.
        with torch.no_grad():
            for lateral in list(self.laterals)[1:]:
                cast(nn.Conv2d, lateral).weight.mul_(COARSER_SHARE)
            for output in self.outputs:
                weight = cast(nn.Conv2d, output).weight
                noise = NOISE_SHARE * weight
                nn.init.dirac_(weight)
                weight.add_(noise)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Build P3 to P7 from three (B, C_s, H_s, W_s) maps, finest first.

        Each map or level is half the size of the previous one; P6 and P7 are rounded up.
        """
        merged = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)]
        for level in (1, 0):
            merged[level] = merged[level] + F.interpolate(
                merged[level + 1], size=merged[level].shape[-2:], mode="nearest"
            )
        if self.drop_block and self.training:
            merged[:2] = [drop_block(features) for features in merged[:2]]
        levels = [output(features) for output, features in zip(self.outputs, merged, strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return levels
