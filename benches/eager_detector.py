"""FIBER's fine model in plain eager PyTorch, with the published computation: a peer for benches.

Used by `bench_detector.py`. Parameters have the published names, so a published state dict loads
unchanged; `python -m tests.parity fine DIR --model eager` compares it with recorded tensors. As in
the published code, texts are padded to the maximum length and maps to whole windows, every window
of an image reads the text again, every level and branch of the head runs its own deformable
convolution, and the unused class convolution runs too. torchvision's deformable convolution and NMS
replace the published CUDA kernels.

Letters: B images, L tokens, D text width, C channels, N tokens of a window, A = H_l W_l anchors of
a level, K classes.

Source: FIBER (Dou et al. 2022), structure of its published code; Dai et al. 2021, "Dynamic Head".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from benches.eager_fiber import (
    SEPARATED,
    Mlp,
    PatchEmbed,
    Roberta,
    WindowAttention,
    padding_scores,
    to_windows,
)
from fiber.config import FiberConfig

#: Taps of a 3 x 3 kernel.
TAPS = 9
#: Published bound of a token logit.
MAX_TOKEN_LOGIT = 50000.0


class Block(nn.Module):
    """Window attention and MLP on a map of any size, which is padded to whole windows."""

    def __init__(
        self, channels: int, heads: int, window: int, *, shifted: bool, text_width: int | None
    ) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, text_width)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)

    def forward(
        self,
        x: Tensor,
        size: tuple[int, int],
        mask: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Run.

        Args:
            x: (B, H W, C).
            size: (H, W).
            mask: (nW, N, N) scores to add if this block shifts its windows.
            text: (B, L, D) to be read, or None.
            text_mask: (B, 1, 1, L) scores to add.

        Returns:
            (B, H W, C).
        """
        (batch, _, channels), (height, width) = x.shape, size
        grid = self.norm1(x).view(batch, height, width, channels)
        below, right = -height % self.window, -width % self.window
        grid = F.pad(grid, (0, 0, 0, right, 0, below))
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), (1, 2))
        windows = to_windows(grid, self.window)
        windows = self.attn(windows, mask if self.shift else None, text, text_mask)
        grid = from_windows(windows, self.window, height + below, width + right)
        if self.shift:
            grid = torch.roll(grid, (self.shift, self.shift), (1, 2))
        if below or right:
            grid = grid[:, :height, :width].contiguous()
        x = x + grid.view(batch, height * width, channels)
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Join each square of 2 x 2 tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H W, C), (H, W) -> (B, H W / 4, 2 C)."""
        grid = x.view(len(x), *size, -1)
        corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1).flatten(1, 2)))


class Stage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, blocks: list[Block], downsample: Merging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        # The same blocks with their type.
        self.typed_blocks = tuple(blocks)


class Body(nn.Module):
    """The image tower, with a norm for each stage that leaves it."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        swin, fusion = config.swin, config.fusion
        self.window = swin.window_size
        self.patch_embed = PatchEmbed(swin.embed_dim)
        first_fused = sum(swin.depths) - fusion.num_fused_layers
        stages, number = [], 0
        for stage, depth in enumerate(swin.depths):
            channels = swin.channels[stage]
            blocks = []
            for block in range(depth):
                blocks.append(
                    Block(
                        channels,
                        swin.num_heads[stage],
                        self.window,
                        shifted=block % 2 == 1,
                        text_width=config.roberta.width if number >= first_fused else None,
                    )
                )
                if blocks[-1].attn.is_fused and not fusion.normalize_query:
                    blocks[-1].attn.norm_i2t_i = nn.Identity()
                number += 1
            last = stage == len(swin.depths) - 1
            stages.append(Stage(blocks, None if last else Merging(channels)))
        self.layers = nn.ModuleList(stages)
        self.stages: tuple[Stage, ...] = tuple(stages)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for width in swin.channels[1:])

    def leave(self, stage: int, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalise what a stage gives, the first excepted: (B, H W, C) -> (B, C, H, W)."""
        norms = (nn.Identity(), self.norm1, self.norm2, self.norm3)
        return norms[stage](x).view(len(x), *size, -1).permute(0, 3, 1, 2).contiguous()


class TextTower(Roberta):
    """The text tower; plain layers have no gate, and reading an image no norm of its own."""

    def __init__(self, config: FiberConfig, image_widths: list[int | None]) -> None:
        super().__init__(config, image_widths)
        for layer, image_width in zip(self.layers, image_widths, strict=True):
            if image_width is None:
                del layer.alpha_t2i
            else:
                del layer.crossattention_t2i.output.LayerNorm


class Pyramid(nn.Module):
    """Five maps of equal width out of three."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.fpn_inner2, self.fpn_inner3, self.fpn_inner4 = (
            nn.Conv2d(width, channels, 1) for width in widths
        )
        self.fpn_layer2, self.fpn_layer3, self.fpn_layer4 = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in widths
        )
        self.top_blocks = nn.ModuleDict(
            {name: nn.Conv2d(channels, channels, 3, stride=2, padding=1) for name in ("p6", "p7")}
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C3 to C5, (B, C_s, H_s, W_s) each -> P3 to P7, (B, C, H_l, W_l) each."""
        inner = self.fpn_inner4(maps[2])
        levels = [self.fpn_layer4(inner)]
        for lateral, layer, features in (
            (self.fpn_inner3, self.fpn_layer3, maps[1]),
            (self.fpn_inner2, self.fpn_layer2, maps[0]),
        ):
            finer = lateral(features)
            inner = finer + F.interpolate(inner, size=finer.shape[-2:], mode="nearest")
            levels.insert(0, layer(inner))
        levels.append(self.top_blocks["p6"](levels[-1]))
        levels.append(self.top_blocks["p7"](F.relu(levels[-1])))
        return levels


class DeformConvNorm(nn.Module):
    """Modulated deformable convolution, 3 x 3 with padding 1, and GroupNorm."""

    def __init__(self, channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # It holds the weights alone.
        self.conv = nn.Conv2d(channels, channels, 3)
        self.bn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve (B, C, H, W) with offsets (B, 18, H', W') and factors (B, 9, H', W').

        The published kernel indexes the flat memory of offsets and factors by the size that comes
        out, whatever their own size is.
        """
        batch, stride = len(x), self.stride
        height, width = ((side - 1) // stride + 1 for side in x.shape[-2:])
        offset, mask = (
            values.reshape(batch, -1)[:, : kinds * height * width].view(batch, kinds, height, width)
            for values, kinds in ((offset, 2 * TAPS), (mask, TAPS))
        )
        out = deform_conv2d(
            x,
            offset,
            self.conv.weight,
            self.conv.bias,
            stride=(stride, stride),
            padding=(1, 1),
            mask=mask,
        )
        return self.bn(out)


class DynamicRelu(nn.Module):
    """Greater of two lines that depend on the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, 4 * channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        theta = hard_sigmoid(self.fc(pooled))[:, :, None, None]
        slope, offset, other_slope, other_offset = theta.chunk(4, 1)
        first = x * ((slope - 0.5) * 2 + 1) + (offset - 0.5)
        second = x * ((other_slope - 0.5) * 2) + (other_offset - 0.5)
        return torch.max(first, second)


class DyConv(nn.Module):
    """One block of the dynamic head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        # For the coarser level, the level itself and the finer one.
        self.DyConv = nn.ModuleList(
            DeformConvNorm(channels, groups, stride) for stride in (1, 1, 2)
        )
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.relu = DynamicRelu(channels)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Mix every level with its neighbours: (B, C, H_l, W_l) each -> the same shapes."""
        coarser, same, finer = self.DyConv
        mixed = []
        for level, x in enumerate(levels):
            raw = self.offset(x)
            offset, mask = raw[:, : 2 * TAPS], raw[:, 2 * TAPS :].sigmoid()
            branches = [same(x, offset, mask)]
            if level > 0:
                branches.append(finer(levels[level - 1], offset, mask))
            if level < len(levels) - 1:
                up = coarser(levels[level + 1], offset, mask)
                branches.append(
                    F.interpolate(up, size=x.shape[-2:], mode="bilinear", align_corners=True)
                )
            # The published block takes this mean too, and overwrites it.
            torch.stack(branches).mean(0)
            weights = hard_sigmoid(torch.stack([self.AttnConv(branch) for branch in branches]))
            mixed.append((torch.stack(branches) * weights).mean(0))
        return [self.relu(x) for x in mixed]


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.scale


class Predictions(NamedTuple):
    """What the head gives; the lists go through the levels P3 to P7."""

    #: (B, A, L) logits.
    tokens: list[Tensor]
    #: (B, 4, H_l, W_l) deltas, and (B, 1, H_l, W_l) logits.
    deltas: list[Tensor]
    centerness: list[Tensor]
    #: (B, K, H_l, W_l) logits of a layer that was never trained.
    unused: list[Tensor]


class Head(nn.Module):
    """Dynamic head and predictions."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        detector, width = config.detector, config.roberta.width
        channels = detector.channels
        self.dyhead_tower = nn.Sequential(
            *(DyConv(channels, detector.norm_groups) for _ in range(detector.num_blocks))
        )
        self.cls_logits = nn.Conv2d(channels, detector.num_unused_classes, 1)
        self.bbox_pred = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.dot_product_projection_text = nn.Linear(width, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(width))
        self.bias0 = nn.Parameter(torch.zeros(1))
        self.scales = nn.ModuleList(Scale() for _ in detector.strides)

    def forward(self, levels: list[Tensor], embedded: Tensor) -> Predictions:
        """Predict from five (B, C, H_l, W_l) and (B, L, D), padded tokens all zeros."""
        levels = self.dyhead_tower(levels)
        unit = F.normalize(embedded, dim=-1)
        keys = self.dot_product_projection_text(unit / 2)
        token_bias = unit @ self.bias_lang + self.bias0
        found = Predictions([], [], [], [])
        for scale, x in zip(self.scales, levels, strict=True):
            found.unused.append(self.cls_logits(x))
            found.deltas.append(scale(self.bbox_pred(x)))
            found.centerness.append(self.centerness(x))
            queries = to_rows(x)
            bias = token_bias.unsqueeze(1).repeat(1, queries.shape[1], 1)
            logits = queries @ keys.transpose(-1, -2) / self.log_scale.exp() + bias
            logits = logits.clamp(max=MAX_TOKEN_LOGIT)
            found.tokens.append(logits.clamp(min=-MAX_TOKEN_LOGIT))
        return found


class Features(NamedTuple):
    """What the towers give."""

    #: C2 to C5, (B, C_s, H_s, W_s) each; the last three normalized.
    maps: list[Tensor]
    #: (B, L, D), padding included.
    text: Tensor


class EagerDetector(nn.Module):
    """Towers, pyramid and head of the fine stage."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        self.config = config
        swin, detector = config.swin, config.detector
        # The stage of each fused image block, and so the width that its text layer reads.
        places = [stage for stage, depth in enumerate(swin.depths) for _ in range(depth)]
        fused = [swin.channels[stage] for stage in places[-config.fusion.num_fused_layers :]]
        self.num_plain_layers = config.roberta.num_layers - len(fused)
        body, pyramid = Body(config), Pyramid(swin.channels[1:], detector.channels)
        text, head = TextTower(config, [*[None] * self.num_plain_layers, *fused]), Head(config)
        self.fusion_backbone = nn.ModuleDict(
            {
                "backbone": nn.ModuleDict({"body": body, "fpn": pyramid}),
                "language_backbone": nn.ModuleDict({"body": nn.ModuleDict({"model": text})}),
            }
        )
        self.rpn = nn.ModuleDict({"head": head})
        # The same parts with their type; a tuple registers nothing.
        self.parts: tuple[Body, TextTower, Pyramid, Head] = (body, text, pyramid, head)

    def forward(self, images: Tensor, ids: Tensor, text_mask: Tensor) -> Predictions:
        """Run one whole pass.

        Args:
            images: (B, 3, H, W) normalized, H and W multiples of 32.
            ids: (B, L), padded to the longest text.
            text_mask: (B, L) bool, True = real token.
        """
        return self.predict(self.fuse(images, ids, text_mask), text_mask)

    def fuse(self, images: Tensor, ids: Tensor, text_mask: Tensor) -> Features:
        """Run both towers; in a fused pair each reads what the other one was."""
        body, tower, _, _ = self.parts
        scores, layers = padding_scores(text_mask), tower.layers
        text = tower.embeddings(ids)
        for layer in layers[: self.num_plain_layers]:
            text = layer(text, scores)
        x, number, maps = body.patch_embed(images), self.num_plain_layers, []
        size = (images.shape[-2] // 4, images.shape[-1] // 4)
        for index, stage in enumerate(body.stages):
            mask = shift_mask(size, body.window)
            for block in stage.typed_blocks:
                if block.attn.is_fused:
                    new_x = block(x, size, mask, text, scores)
                    text = layers[number](text, scores, x)
                    x, number = new_x, number + 1
                else:
                    x = block(x, size, mask)
            maps.append(body.leave(index, x, size))
            if stage.downsample is not None:
                x = stage.downsample(x, size)
                size = (size[0] // 2, size[1] // 2)
        return Features(maps, text)

    def predict(self, features: Features, text_mask: Tensor) -> Predictions:
        """Run pyramid and head."""
        _, _, pyramid, head = self.parts
        return head(pyramid(features.maps[1:]), features.text * text_mask.unsqueeze(-1).float())


def hard_sigmoid(x: Tensor) -> Tensor:
    """Clip a line to [0, 1]."""
    return F.relu6(x + 3) / 6


def to_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B nW, N, C) -> (B, H, W, C)."""
    channels = windows.shape[-1]
    grid = windows.view(-1, height // window, width // window, window, window, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def shift_mask(size: tuple[int, int], window: int) -> Tensor:
    """Scores to add in the windows of a padded and rolled map: (nW, N, N)."""
    height, width = (side + -side % window for side in size)
    shift = window // 2
    regions = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        regions[:, rows, columns] = number
    numbers = to_windows(regions, window).squeeze(-1)
    return (numbers[:, None] != numbers[:, :, None]).float() * SEPARATED
