"""Swin Transformer image encoder.

Feature maps are (B, H, W, C). Fusion is added by passing a block a `branch`, which is applied to
the self-attention output.

Source: Swin Transformer (Liu et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber import kernels
from fiber.config import SwinConfig
from fiber.kernels.window_attention import export
from fiber.ops.drop_path import drop_path
from fiber.ops.linear import is_plain

#: Size in bytes of MLP activation chunks that fit in the CPU cache; used without gradients.
PIECE_BYTES = 8_000_000
#: Epsilon of all LayerNorms.
LAYER_NORM_EPS = 1e-5

#: Maps a self-attention output to its replacement, before the residual.
Branch = Callable[[Tensor], Tensor]
#: (height, width) in tokens of each sample's valid region, at the top left of the map.
MapSizes = tuple[tuple[int, int], ...]


class PatchEmbedding(nn.Module):
    """Split an image into patches and project each one."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Embed patches of p x p pixels: (B, 3, H, W) -> (B, H / p, W / p, C).

        Images are zero-padded to multiples of p.
        """
        height, width = images.shape[-2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merge each 2 x 2 square of tokens into one token with twice as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=LAYER_NORM_EPS)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge 2 x 2 patches: (B, H, W, C) -> (B, H / 2, W / 2, 2 C).

        Odd sides are zero-padded.
        """
        batch, height, width, channels = tokens.shape
        if height % 2 or width % 2:
            tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
            height, width = tokens.shape[1:3]
        # (B, H/2, 2, W/2, 2, C) -> (B, H/2, W/2, 4 C), column before row offset, as in Swin
        squares = tokens.reshape(batch, height // 2, 2, width // 2, 2, channels)
        squares = squares.permute(0, 1, 3, 4, 2, 5).reshape(
            batch, height // 2, width // 2, 4 * channels
        )
        return self.reduction(self.norm(squares))


class WindowAttention(nn.Module):
    """Self-attention in (shifted) windows with relative position bias."""

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        window_size: int,
        shift: int,
        valid_sizes: Tensor | None = None,
        *,
        limit_to_map: bool = False,
    ) -> Tensor:
        """Compute window attention: (B, H, W, C) -> (B, H, W, C).

        Args:
            tokens: feature map.
            window_size: window size in tokens, at most `self.window_size`.
            shift: cyclic shift of the map in tokens.
            valid_sizes: (B, 2) int64 (height, width) of valid regions. None means the whole map.
            limit_to_map: compute window size and shift for small maps from the traced size, in an
                export. See `fiber.kernels.window_attention.export`.
        """
        head_shape = (3, self.num_heads, tokens.shape[-1] // self.num_heads)
        # What the layer gives for padding, which is zero.
        padding = (
            self.qkv.bias if is_plain(self.qkv) else self.qkv(tokens.new_zeros(tokens.shape[-1]))
        )
        qkv = self.qkv(tokens).unflatten(-1, head_shape)
        if limit_to_map:
            out = export.window_attention(
                qkv,
                self.bias_table,
                padding.view(head_shape),
                window_size=window_size,
                shift=shift,
                limit_to_map=True,
            )
            return self.output(out.flatten(-2))
        out = kernels.window_attention(
            qkv,
            self._table(window_size),
            padding.view(head_shape),
            window_size=window_size,
            shift=shift,
            valid_sizes=valid_sizes,
        )
        return self.output(out.flatten(-2))

    def _table(self, window_size: int) -> Tensor:
        """Crop the bias table to window size w: ((2 w - 1) ** 2, h)."""
        margin = self.window_size - window_size
        if margin == 0:
            return self.bias_table
        side, inner = 2 * self.window_size - 1, 2 * window_size - 1
        square = self.bias_table.view(side, side, self.num_heads)
        return square[margin : margin + inner, margin : margin + inner].reshape(inner**2, -1)


class SwinBlock(nn.Module):
    """Pre-norm block of window attention and MLP."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        *,
        shifted: bool,
        shift_small_maps: bool,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shifted = shifted
        self.shift_small_maps = shift_small_maps
        self.drop_path = drop_path
        hidden = int(channels * mlp_ratio)
        self.attention_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attention = WindowAttention(channels, num_heads, window_size)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(
        self,
        tokens: Tensor,
        branch: Branch | None = None,
        sizes: MapSizes | None = None,
    ) -> Tensor:
        """Run the block: (B, H, W, C) -> (B, H, W, C). Values outside valid regions are undefined.

        Args:
            tokens: feature map.
            branch: applied to the self-attention output before the residual.
            sizes: valid region of each sample; tokens outside are not attended to. None means the
                whole map.
        """
        attended = self._attend(self.attention_norm(tokens), sizes)
        if branch is not None:
            attended = branch(attended)
        tokens = tokens + self._drop(attended)
        if torch.is_grad_enabled() or tokens.device.type != "cpu" or torch.compiler.is_compiling():
            return tokens + self._drop(self.mlp(self.mlp_norm(tokens)))
        # Run in chunks, so that the hidden activations stay in the cache.
        hidden = cast(nn.Linear, self.mlp[0]).out_features
        at_once = max(1, PIECE_BYTES // (hidden * tokens.element_size()))
        for piece in tokens.flatten(0, 2).split(at_once):
            piece += self.mlp(self.mlp_norm(piece))
        return tokens

    def _attend(self, tokens: Tensor, sizes: MapSizes | None) -> Tensor:
        if sizes is None:
            map_size = tokens.shape[1:3]
            if kernels.is_exporting() and not self.shift_small_maps and _is_symbolic(map_size):
                # A decision on the size would hold for the traced map only.
                shift = self.window_size // 2 if self.shifted else 0
                return self.attention(tokens, self.window_size, shift, limit_to_map=True)
            return self.attention(tokens, *self._window(map_size))
        rules = [self._window(size) for size in sizes]
        out = torch.empty_like(tokens)
        # Window and shift may depend on the size of the map.
        for rule in dict.fromkeys(rules):
            rows = [row for row, own in enumerate(rules) if own == rule]
            valid = torch.tensor([sizes[row] for row in rows], device=tokens.device)
            if len(rows) == len(rules):
                return self.attention(tokens, *rule, valid)
            out[rows] = self.attention(tokens[rows], *rule, valid)
        return out

    def _window(self, map_size: Sequence[int]) -> tuple[int, int]:
        """Return the window size and shift in tokens for a (height, width) map.

        The fine stage always pads the map to whole windows and keeps the shift. The coarse stage,
        like Swin, limits windows to the map and does not shift if a side is at most one window.
        """
        shift = self.window_size // 2 if self.shifted else 0
        if self.shift_small_maps:
            return self.window_size, shift
        window_size = min(self.window_size, max(map_size))
        return window_size, 0 if min(map_size) <= self.window_size else shift

    def _drop(self, update: Tensor) -> Tensor:
        return drop_path(update, self.drop_path, training=self.training)


class SwinStage(nn.Module):
    """Blocks at one resolution, followed by patch merging."""

    def __init__(self, blocks: list[SwinBlock], merging: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merging = merging


class SwinEncoder(nn.Module):
    """Swin encoder with four stages. Blocks are numbered consecutively across stages."""

    def __init__(self, config: SwinConfig, *, shift_small_maps: bool = False) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.patch_size, config.embed_dim)
        # Explicitly on the CPU, since the default device may be meta.
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        #: (stage, block in the stage) of every block.
        self.places: list[tuple[int, int]] = []
        for stage, depth in enumerate(config.depths):
            channels = config.channels[stage]
            blocks = [
                SwinBlock(
                    channels,
                    config.num_heads[stage],
                    config.window_size,
                    shifted=block % 2 == 1,
                    shift_small_maps=shift_small_maps,
                    mlp_ratio=config.mlp_ratio,
                    drop_path=rates[len(self.places) + block],
                )
                for block in range(depth)
            ]
            last = stage == len(config.depths) - 1
            self.stages.append(SwinStage(blocks, None if last else PatchMerging(channels)))
            self.places += [(stage, block) for block in range(depth)]
        self.apply(_init_weights)

    def block(self, number: int) -> SwinBlock:
        """Return a block by its number."""
        stage, block = self.places[number]
        return cast(SwinBlock, cast(SwinStage, self.stages[stage]).blocks[block])

    def enter(
        self, number: int, tokens: Tensor, stages: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Prepare the input of a block: apply patch merging if the block starts a new stage.

        `tokens` is the output of the previous block; `stages` has the outputs of finished stages.
        Returns the input of the block, and `stages` with `tokens` appended if a stage ended.
        """
        stage, block = self.places[number]
        if block > 0 or stage == 0:
            return tokens, stages
        merging = cast(PatchMerging, cast(SwinStage, self.stages[stage - 1]).merging)
        return merging(tokens), (*stages, tokens)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images without fusion: (B, 3, H, W) -> output of each stage before merging."""
        tokens = self.patch_embedding(images)
        stages: tuple[Tensor, ...] = ()
        for number in range(len(self.places)):
            tokens, stages = self.enter(number, tokens, stages)
            tokens = self.block(number)(tokens)
        return (*stages, tokens)


def _is_symbolic(map_size: Sequence[int]) -> bool:
    """Return whether the size of a map is not fixed in an export."""
    return any(isinstance(side, torch.SymInt) for side in map_size)


def _init_weights(module: nn.Module) -> None:
    """Initialize linear layers as in Swin; convolutions and norms keep PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
