"""Image encoder of CLIP: a pre-norm Vision Transformer with a class token; blocks of both encoders.

Source: CLIP (Radford et al. 2021).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import ClipConfig
from fiber.models.encoders.clip_text_config import ClipTextConfig

#: Epsilon of the LayerNorms of the image encoder.
LAYER_NORM_EPS = 1e-5


class QuickGELU(nn.Module):
    """Sigmoid approximation of GELU that CLIP was trained with."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute x * sigmoid(1.702 x)."""
        # Of the product as it is written, the backward pass needs a tensor more.
        return F.silu(1.702 * hidden) / 1.702


class ClipBlock(nn.Module):
    """Pre-norm block of self-attention and MLP, in both encoders of CLIP.

    With `is_causal`, a token attends to itself and to earlier ones.
    """

    def __init__(
        self,
        config: ClipConfig | ClipTextConfig,
        *,
        eps: float = LAYER_NORM_EPS,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.is_causal = is_causal
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), QuickGELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, past: PastKeys | None = None) -> Tensor:
        """Run the block: (B, T, C) -> (B, T, C).

        With `past`, tokens follow those of earlier calls, whose keys and values it has; theirs are
        appended. A causal block then takes one token.
        """
        qkv = self.qkv(self.attention_norm(tokens))
        # (B, T, 3 C) -> 3 x (B, h, T, d)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = past.append(key, value)
        is_causal = self.is_causal and past is None
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


class PastKeys:
    """Keys and values of the tokens so far, of one attention layer."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, h, T, d) keys and values; return all of them."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), 2), torch.cat((self.value, value), 2)
        self.key, self.value = key, value
        return key, value

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all tokens so far, of which there is one."""
        assert self.key is not None and self.value is not None
        return self.key, self.value


class PatchProjection(nn.Module):
    """Split an image into patches and project each one."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed patches in row-major order: (B, 3, H, W) -> (B, T, C)."""
        return self.projection(images).flatten(2).transpose(1, 2)


class ClipEncoder(nn.Module):
    """Image encoder of CLIP, without its projection to the joint space."""

    def __init__(self, config: ClipConfig, image_size: int) -> None:
        super().__init__()
        width = config.width
        self.patch_embedding = PatchProjection(config.patch_size, width)
        tokens = 1 + (image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.position_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.first_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(ClipBlock(config) for _ in range(config.num_blocks))
        self.last_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        init_blocks(self.blocks, width)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images of the size of the position embedding: (B, 3, S, S) -> (B, T, C).

        The first token is the class token; the others are patches in row-major order.
        """
        patches = self.patch_embedding(images)
        first = self.class_embedding.expand(images.shape[0], 1, -1)
        tokens = self.first_norm(torch.cat((first, patches), 1) + self.position_embedding)
        for block in self.blocks:
            tokens = block(tokens)
        return self.last_norm(tokens)


def init_blocks(blocks: nn.ModuleList, width: int) -> None:
    """Initialize linear layers of blocks as in CLIP."""
    output_std = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in cast("list[ClipBlock]", list(blocks)):
        nn.init.normal_(block.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.output.weight, std=output_std)
        nn.init.normal_(cast(nn.Linear, block.mlp[0]).weight, std=(2 * width) ** -0.5)
        nn.init.normal_(cast(nn.Linear, block.mlp[2]).weight, std=output_std)
        for linear in (block.qkv, block.output, block.mlp[0], block.mlp[2]):
            nn.init.zeros_(cast(nn.Linear, linear).bias)
