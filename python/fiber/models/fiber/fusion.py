"""Gated cross-attention between the encoders.

Source: FIBER (Dou et al. 2022), fusion in the backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiber import kernels
from fiber.ops.dropout import attention, dropout, is_by_row
from fiber.ops.linear import is_plain


class ImageToTextAttention(nn.Module):
    """Gated cross-attention from image to text, added to the image self-attention output."""

    def __init__(
        self,
        image_width: int,
        text_width: int,
        num_heads: int,
        *,
        normalize_query: bool,
        gate_start: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(image_width, eps=1e-5) if normalize_query else nn.Identity()
        self.query = nn.Linear(image_width, image_width)
        self.key_value = nn.Linear(text_width, 2 * image_width)
        self.output = nn.Linear(image_width, image_width)
        self.gate = nn.Parameter(torch.full((1,), gate_start))
        for linear in (self.query, self.key_value, self.output):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, attended: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Add the gated cross-attention output: (B, H, W, C) -> (B, H, W, C).

        Each image token attends to the whole text, so windows are not needed.

        Args:
            attended: self-attention output of the image block.
            text: (B, L, D) input of the paired text layer.
            text_mask: (B, L) bool, True = real token.
        """
        # (B, H, W, C) -> (B, H W, h, d)
        query = self.query(self.norm(attended)).unflatten(-1, (self.num_heads, -1)).flatten(1, 2)
        # (B, L, 2 C) -> 2 x (B, L, h, d)
        key, value = self.key_value(text).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        read = kernels.image_to_text_attention(query, key, value, key_mask=text_mask)
        return _gated_residual(attended, read.reshape(attended.shape), self.output, self.gate)


class TextToImageAttention(nn.Module):
    """Gated cross-attention from text to image, added to the text self-attention output."""

    def __init__(
        self,
        image_width: int,
        text_width: int,
        num_heads: int,
        *,
        gate_start: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(text_width, text_width)
        self.key_value = nn.Linear(image_width, 2 * text_width)
        self.output = nn.Linear(text_width, text_width)
        self.gate = nn.Parameter(torch.full((1,), gate_start))
        for linear in (self.query, self.key_value, self.output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        attended: Tensor,
        image_tokens: Tensor,
        sizes: tuple[tuple[int, int], ...] | None = None,
    ) -> Tensor:
        """Add the gated cross-attention output: (B, L, D) -> (B, L, D).

        Args:
            attended: self-attention output of the text layer.
            image_tokens: (B, H, W, C) or (B, T, C) input of the paired image block.
            sizes: (height, width) of each sample's valid region; requires (B, H, W, C) tokens. None
                means the whole map.
        """
        key, value = self.keys_values(image_tokens)
        if sizes is None:
            return self.read(attended, key, value)
        return self.read(
            attended,
            key,
            value,
            valid_sizes=torch.tensor(sizes, device=key.device),
            map_size=(image_tokens.shape[1], image_tokens.shape[2]),
        )

    def keys_values(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute image keys and values: (B, ..., C) -> (B, T, h, d) each."""
        key, value = (
            self.key_value(image_tokens.flatten(1, -2))
            .unflatten(-1, (2, self.num_heads, -1))
            .unbind(2)
        )
        return key, value

    def read(
        self,
        attended: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_sizes: Tensor | None = None,
        map_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Add the gated cross-attention output: (B n, L, D) -> (B n, L, D).

        Args:
            attended: self-attention output; the n texts of an image are contiguous.
            key: (B, T, h, d).
            value: (B, T, h, d).
            valid_sizes: (B, 2) int64 (height, width) of each image's valid region.
            map_size: (H, W) with H * W = T; required with valid_sizes.
        """
        # (B n, L, D) -> (B, n L, h, d): queries are independent, so the texts of an image are
        # concatenated to share its keys.
        texts_of_each = attended.shape[0] // max(1, key.shape[0])
        query = self.query(attended).reshape(
            key.shape[0], texts_of_each * attended.shape[1], *key.shape[2:]
        )
        dropout_p = self.dropout if self.training else 0.0
        if dropout_p and is_by_row():
            mask = None
            if valid_sizes is not None and map_size is not None:
                mask = _inside(valid_sizes, map_size)
            read = _read_by_row(query, key, value, mask, texts_of_each, dropout_p)
        else:
            read = kernels.text_to_image_attention(
                query, key, value, valid_sizes=valid_sizes, map_size=map_size, dropout_p=dropout_p
            )
        read = read.reshape(attended.shape)
        if dropout_p:
            # Dropout comes between projection and gate, so the fused kernel cannot be used.
            return attended + self.gate * dropout(self.output(read), dropout_p)
        return _gated_residual(attended, read, self.output, self.gate)


def _gated_residual(attended: Tensor, read: Tensor, output: nn.Linear, gate: Tensor) -> Tensor:
    """Compute attended + gate * output(read), fused if the module adds nothing to its weights."""
    if is_plain(output):
        return kernels.gated_residual(attended, read, output.weight, output.bias, gate)
    return attended + gate * output(read)


def _read_by_row(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, texts_of_each: int, p: float
) -> Tensor:
    """Attend as `kernels.text_to_image_attention`, with dropout of weights drawn by row.

    `mask` is (B, T) bool, True = attend.
    """
    # (B, n L, h, d) -> (B n, h, L, d): what a text draws does not depend on the length of others.
    batch, lengths = len(key), query.shape[1] // max(1, texts_of_each)
    query = query.reshape(batch * texts_of_each, lengths, *query.shape[2:]).transpose(1, 2)
    # (B, T, h, d) -> (B n, h, T, d)
    key, value = (
        tensor.transpose(1, 2).repeat_interleave(texts_of_each, 0) for tensor in (key, value)
    )
    if mask is not None:
        mask = mask.repeat_interleave(texts_of_each, 0)[:, None, None]
    read = attention(query, key, value, mask, p)
    # (B n, h, L, d) -> (B, n L, h, d)
    return read.transpose(1, 2).reshape(batch, texts_of_each * lengths, *read.shape[1::2])


def _inside(sizes: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Return a (B, H W) bool mask of the valid regions, of (B, 2) sizes in an (H, W) map."""
    rows, columns = (torch.arange(size, device=sizes.device) for size in map_size)
    valid = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    return valid.flatten(1)


class FusedPair(nn.Module):
    """Both cross-attentions of an (image block, text layer) pair."""

    def __init__(
        self, image_to_text: ImageToTextAttention, text_to_image: TextToImageAttention
    ) -> None:
        super().__init__()
        self.image_to_text = image_to_text
        self.text_to_image = text_to_image
