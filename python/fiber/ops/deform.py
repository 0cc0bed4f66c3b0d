"""Modulated deformable convolution, using torchvision on GPUs and `embedding_bag` on CPUs.

torchvision's CPU backward pass loops over taps and channels one at a time. On CPUs, whole rows of a
channels-last table are therefore summed with `embedding_bag`.

Shapes: B images, C channels, (H, W) input map, (h, w) output map, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.ops.tracing import is_exporting

#: Number of taps of a 3 x 3 kernel. Each tap has a (y, x) offset and a modulation factor.
TAPS = 9
#: Size in bytes of tap chunks that fit in the CPU cache; used without gradients.
PIECE_BYTES = 8_000_000


def modulated_deform_conv(
    features: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
) -> Tensor:
    """Apply a modulated deformable 3 x 3 convolution with padding 1.

    Args:
        features: (B, C, H, W) float32 or float64; other tensors have the same dtype.
        offsets: (B, 18, h, w), a (y, x) offset in pixels of the map for each tap.
        modulation: (B, 9, h, w), a factor for each tap.
        weight: (C_out, C, 3, 3).
        bias: (C_out,).
        stride: stride of the convolution.

    Returns:
        (B, C_out, h, w). Taps are interpolated bilinearly, with zeros outside the map.

    Source: Deformable ConvNets v2 (Zhu et al. 2019).
    """
    if features.device.type != "cpu":
        # Takes as long to import as torch.
        from torchvision.ops import deform_conv2d

        return deform_conv2d(
            features,
            offsets,
            weight,
            bias,
            stride=(stride, stride),
            padding=(1, 1),
            mask=modulation,
        )
    if is_exporting():
        return _sampled_conv(features, offsets, modulation, weight, bias, stride)
    batch, channels, height, width = features.shape
    out_height, out_width = offsets.shape[-2:]
    rows, weights = _corners(offsets, modulation, height, width, stride)
    # (B, C, H, W) -> (B H W, C): one row per pixel.
    table = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    kernel = weight.permute(2, 3, 1, 0).reshape(TAPS * channels, -1)

    def convolve(rows: Tensor, weights: Tensor) -> Tensor:
        """Convolve n locations: (n K, 4) row indices and weights -> (n, C_out)."""
        # (n K, C): a tap is a weighted sum of four rows.
        taps = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
        return torch.addmm(bias, taps.view(-1, TAPS * channels), kernel)

    if torch.is_grad_enabled():
        out = convolve(rows, weights)
    else:
        # The taps take nine times the memory of the map; gather as many at a time as fit in the
        # cache.
        at_once = TAPS * max(1, PIECE_BYTES // (TAPS * channels * features.element_size()))
        pieces = zip(rows.split(at_once), weights.split(at_once), strict=True)
        out = torch.cat([convolve(*piece) for piece in pieces])
    # (B h w, C_out) -> (B, C_out, h, w), channels last in memory
    return out.view(batch, out_height, out_width, len(bias)).permute(0, 3, 1, 2)


def _sampled_conv(
    features: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """Apply `modulated_deform_conv` by `grid_sample`, which other formats have, too.

    Every size may be symbolic.
    """
    batch, channels, height, width = features.shape
    out_height, out_width = offsets.shape[-2:]
    # (B, 18, h, w) -> (B, K, 2, h, w)
    shifts = offsets.reshape(batch, TAPS, 2, out_height, out_width)
    kernel = torch.arange(3, dtype=offsets.dtype) - 1
    y = shifts[:, :, 0] + kernel.repeat_interleave(3)[:, None, None]
    y = y + (torch.arange(out_height) * stride).to(offsets.dtype)[:, None]
    x = shifts[:, :, 1] + kernel.repeat(3)[:, None, None]
    x = x + (torch.arange(out_width) * stride).to(offsets.dtype)
    # -1 and 1 are the outer edges of the first and the last pixel.
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    # (B, C, K h, w)
    taps = F.grid_sample(features, grid.flatten(1, 2), align_corners=False)
    taps = taps.reshape(batch, channels, TAPS, out_height * out_width)
    taps = taps * modulation.reshape(batch, 1, TAPS, out_height * out_width)
    taps = taps.reshape(batch, channels * TAPS, out_height * out_width)
    out = weight.flatten(1) @ taps + bias[:, None]
    return out.reshape(batch, weight.shape[0], out_height, out_width)


def _corners(
    offsets: Tensor, modulation: Tensor, height: int, width: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Find the four pixels around each tap and compute their modulated weights.

    Returns two (B h w K, 4) tensors: int64 row indices into the table of all pixels of the batch,
    and weights. The weight of a pixel outside the map is 0.
    """
    batch, _, out_height, out_width = offsets.shape
    # (B, 18, h, w) -> (B, h, w, K, 2)
    shifts = offsets.view(batch, TAPS, 2, out_height, out_width).permute(0, 3, 4, 1, 2)
    kernel = torch.arange(3, dtype=offsets.dtype) - 1
    y = shifts[..., 0] + kernel.repeat_interleave(3)
    y = y + torch.arange(out_height, dtype=offsets.dtype)[:, None, None] * stride
    x = shifts[..., 1] + kernel.repeat(3)
    x = x + torch.arange(out_width, dtype=offsets.dtype)[:, None] * stride
    factors = modulation.permute(0, 2, 3, 1)

    top, left = y.floor().detach(), x.floor().detach()
    down, right = y - top, x - left
    first_rows = torch.arange(batch)[:, None, None, None] * (height * width)
    rows, weights = [], []
    for row, row_weight in ((top, (1 - down) * factors), (top + 1, down * factors)):
        row_inside = (row >= 0) & (row < height)
        row_start = first_rows + row.long().clamp(0, height - 1) * width
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = row_inside & (column >= 0) & (column < width)
            rows.append(row_start + column.long().clamp(0, width - 1))
            weights.append(row_weight * column_weight * inside)
    return torch.stack(rows, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4)
