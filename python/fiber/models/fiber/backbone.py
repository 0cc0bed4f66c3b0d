"""Backbone of both stages: Swin and RoBERTa with cross-attention in their last layers.

Shapes:
    images: (B, 3, H, W) normalized pixels of any size.
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
    text features: (B, L, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fiber.config import FiberConfig
from fiber.models.encoders.roberta import (
    Branch,
    KeyValueCache,
    RobertaEncoder,
    causal_attention_mask,
    key_attention_mask,
)
from fiber.models.encoders.swin import MapSizes, SwinEncoder
from fiber.models.features import BackboneOutput, ImagePrefix, ImageSizes, Wanted
from fiber.models.fiber.fusion import FusedPair, ImageToTextAttention, TextToImageAttention
from fiber.models.init import init_linear
from fiber.ops.dropout import checkpointed


@dataclass
class Decoding:
    """State of incremental decoding with `decode_next`."""

    #: Cross-attention of each fused layer, bound to the keys and values of the image.
    branches: list[Branch]
    #: Cache of each text layer, over the tokens of all texts of an image.
    caches: list[KeyValueCache]
    #: (B, n, tokens) bool, True = the cached token belongs to this text.
    own_tokens: Tensor | None = None
    #: Tokens per text.
    length: int = 0

    def select(self, sources: Tensor) -> None:
        """Select the texts to continue for each image, by (B, m) int64 indices."""
        assert self.own_tokens is not None
        index = sources[..., None].expand(-1, -1, self.own_tokens.shape[2])
        self.own_tokens = self.own_tokens.gather(1, index)


class PastKeyValues:
    """Keys and values of previous tokens as a tensor, (2, B, h, P, d), for a single step."""

    def __init__(self, past: Tensor) -> None:
        self._past = past
        #: (2, B, h, L, d) of the new tokens, after `extend`.
        self.newest = past

    def extend(self, key_value: Tensor) -> Tensor:
        """Append keys and values as `KeyValueCache.extend` does."""
        self.newest = key_value
        return torch.cat((self._past, key_value), 3)


class FiberBackbone(nn.Module):
    """Swin and RoBERTa, fused in their last layers.

    The image block and text layer of a fused pair cross-attend to each other's input, not output.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        fusion, swin, roberta = config.fusion, config.swin, config.roberta
        self.image = SwinEncoder(swin, shift_small_maps=fusion.shift_small_maps)
        self.text = RobertaEncoder(roberta)
        # Indices of the first fused image block and text layer.
        self.first_fused_block = len(self.image.places) - fusion.num_fused_layers
        self.first_fused_layer = roberta.num_layers - fusion.num_fused_layers
        self.fusion = nn.ModuleList()
        for stage, _ in self.image.places[self.first_fused_block :]:
            channels = swin.channels[stage]
            self.fusion.append(
                FusedPair(
                    ImageToTextAttention(
                        channels,
                        roberta.width,
                        swin.num_heads[stage],
                        normalize_query=fusion.normalize_query,
                        gate_start=fusion.gate_start,
                    ),
                    TextToImageAttention(
                        channels,
                        roberta.width,
                        roberta.num_heads,
                        gate_start=fusion.gate_start,
                        dropout=roberta.dropout,
                    ),
                )
            )
        if config.weight_start == "fan_in":
            init_linear(self, fan_in=True)

    def image_prefix(self, images: Tensor, sizes: ImageSizes | None = None) -> ImagePrefix:
        """Run the image encoder up to the first fused block.

        If `sizes` gives the valid regions (pixels outside are 0), features do not depend on the
        padding. If it is None, padding is treated as part of the image, as in the published code.
        """
        start = ImagePrefix(self.image.patch_embedding(images), sizes=sizes)
        return self._image_blocks(start, 0, self.first_fused_block)

    def text_prefix(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Run the text encoder up to the first fused layer: (B, L) -> (B, L, D)."""
        text, mask = self.text.embeddings(token_ids), key_attention_mask(text_mask)
        return self._text_layers(text, mask, 0, self.first_fused_layer)

    def complete_image(self, prefix: ImagePrefix) -> BackboneOutput:
        """Run the rest of the image encoder without fusion."""
        last = len(self.image.places)
        prefix = self._image_blocks(prefix, self.first_fused_block, last)
        return BackboneOutput((*prefix.stages, prefix.tokens), sizes=prefix.sizes)

    def complete_text(self, prefix: Tensor, text_mask: Tensor, *, wanted: Wanted = "all") -> Tensor:
        """Run the rest of the text encoder without fusion.

        Returns (B, L, D) features, or (B, 1, D) if `wanted` is "pooled".
        """
        mask, last = key_attention_mask(text_mask), len(self.text.layers)
        if wanted != "pooled" or self.first_fused_layer == last:
            text = self._text_layers(prefix, mask, self.first_fused_layer, last)
            return text[:, :1] if wanted == "pooled" else text
        text = self._text_layers(prefix, mask, self.first_fused_layer, last - 1)
        return self._run(partial(self.text.layers[last - 1], num_queries=1), text, mask)

    def encode_image(self, images: Tensor) -> BackboneOutput:
        """Encode images without fusion."""
        return self.complete_image(self.image_prefix(images))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts without fusion: (B, L) -> (B, L, D)."""
        return self.complete_text(self.text_prefix(token_ids, text_mask), text_mask)

    def encode_pair(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        *,
        sizes: ImageSizes | None = None,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Encode pairs with fusion. See `image_prefix` for `sizes`."""
        return self.fuse(
            self.image_prefix(images, sizes),
            self.text_prefix(token_ids, text_mask),
            text_mask,
            wanted=wanted,
        )

    def fuse(
        self,
        image_prefix: ImagePrefix,
        text_prefix: Tensor,
        text_mask: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Run the fused layers on prefixes. Several objectives may share a prefix.

        A model without fused layers always applies the last LayerNorm of the text encoder.
        """
        tokens, stages, sizes = image_prefix
        text = text_prefix
        last = len(self.fusion) - 1
        for pair in range(len(self.fusion)):
            tokens, stages = self.image.enter(self.first_fused_block + pair, tokens, stages)
            tokens, text = self._run(
                self._pair, pair, tokens, text, text_mask, wanted if pair == last else "all", sizes
            )
        if wanted == "pooled":
            text, text_mask = text[:, :1], text_mask[:, :1]
        stages = stages if tokens is None else (*stages, tokens)
        return BackboneOutput(stages, text, text_mask, sizes)

    def decode_text(
        self, image_tokens: Sequence[Tensor], token_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Encode texts causally with cross-attention to separately encoded images (captioning).

        Args:
            image_tokens: (B, T, C) for each fused layer, with the channels of its image block.
            token_ids: (B n, L); the n texts of an image are contiguous.
            text_mask: (B n, L).

        Returns:
            (B n, L, D); position t depends on tokens 0 to t. All LayerNorms are applied.
        """
        mask = causal_attention_mask(text_mask)
        text = self._text_layers(self.text.embeddings(token_ids), mask, 0, self.first_fused_layer)
        for pair, tokens in zip(range(len(self.fusion)), image_tokens, strict=True):
            text = self._run(self._decoder_layer, pair, text, mask, tokens)
        return text

    def start_decoding(self, image_tokens: Sequence[Tensor]) -> Decoding:
        """Compute image keys and values for `decode_next`. See `decode_text` for `image_tokens`."""
        branches: list[Branch] = []
        for pair, tokens in zip(self.fusion, image_tokens, strict=True):
            attention = cast(FusedPair, pair).text_to_image
            key, value = attention.keys_values(tokens)
            branches.append(partial(attention.read, key=key, value=value))
        return Decoding(branches, [KeyValueCache() for _ in self.text.layers])

    def image_keys_values(self, image_tokens: Sequence[Tensor]) -> Tensor:
        """Compute image keys and values for `resume_decoding`: (B, fused layers, 2, T, h, d).

        See `decode_text` for `image_tokens`.
        """
        pairs = [
            torch.stack(cast(FusedPair, pair).text_to_image.keys_values(tokens), 1)
            for pair, tokens in zip(self.fusion, image_tokens, strict=True)
        ]
        return torch.stack(pairs, 1)

    def resume_decoding(
        self, tokens_before: Tensor, own_tokens: Tensor, past: Tensor, image_keys_values: Tensor
    ) -> tuple[Decoding, list[PastKeyValues]]:
        """Build the state for `decode_next` from tensors.

        Args:
            tokens_before: () int64 tokens per text.
            own_tokens: (B, n, P) bool, see `Decoding`.
            past: (B, layers, 2, h, P, d) keys and values of the P earlier tokens.
            image_keys_values: output of the method of that name.

        Returns:
            The state, and its cache of each layer, which keeps the new keys and values.
        """
        branches: list[Branch] = [
            partial(cast(FusedPair, pair).text_to_image.read, key=both[:, 0], value=both[:, 1])
            for pair, both in zip(self.fusion, image_keys_values.unbind(1), strict=True)
        ]
        caches = [PastKeyValues(both.transpose(0, 1)) for both in past.unbind(1)]
        state = Decoding(branches, cast("list[KeyValueCache]", caches), own_tokens)
        state.length = cast(int, tokens_before)
        return state, caches

    def decode_next(self, decoding: Decoding, token_ids: Tensor) -> Tensor:
        """Process the next token of each text as in `decode_text`: (B, n) -> (B, n, D).

        All texts of an image are processed as tokens of one sample, and each token attends only to
        its own text. The texts can therefore share image keys, and `Decoding.select` copies no
        keys. Caches in `decoding` are updated in place. For gradients, use `decode_text`.
        """
        batch, texts = token_ids.shape
        places = torch.arange(texts, device=token_ids.device)
        newest = (places[:, None] == places).expand(batch, -1, -1)
        past = decoding.own_tokens
        own_tokens = newest if past is None else torch.cat((past, newest), 2)
        # (B, n) -> (B n, 1, D) -> (B, n, D): positions are those within each text
        text = self.text.embeddings(token_ids.reshape(-1, 1), decoding.length)
        text = text.reshape(batch, texts, text.shape[-1])
        for number, (layer, cache) in enumerate(
            zip(self.text.layers, decoding.caches, strict=True), -self.first_fused_layer
        ):
            branch = None if number < 0 else decoding.branches[number]
            text = layer(text, own_tokens[:, None], branch, cache=cache)
        decoding.own_tokens = own_tokens
        decoding.length += 1
        return text

    def _pair(
        self,
        pair: int,
        tokens: Tensor,
        text: Tensor,
        text_mask: Tensor,
        wanted: Wanted,
        sizes: ImageSizes | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Run the image block and text layer of a pair; each cross-attends to the other's input."""
        fusion = cast(FusedPair, self.fusion[pair])
        last = pair == len(self.fusion) - 1
        own = self._map_sizes(self.first_fused_block + pair, sizes)
        new_tokens = None
        if wanted != "text":
            new_tokens = self.image.block(self.first_fused_block + pair)(
                tokens, lambda attended: fusion.image_to_text(attended, text, text_mask), own
            )
        new_text = self.text.layers[self.first_fused_layer + pair](
            text,
            key_attention_mask(text_mask),
            lambda attended: fusion.text_to_image(attended, tokens, own),
            normalize_output=not last or self.config.fusion.normalize_last_text,
            num_queries=1 if wanted == "pooled" else None,
        )
        return new_tokens, new_text

    def _decoder_layer(self, pair: int, text: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        fusion = cast(FusedPair, self.fusion[pair])
        return self.text.layers[self.first_fused_layer + pair](
            text, mask, lambda attended: fusion.text_to_image(attended, tokens)
        )

    def _image_blocks(self, prefix: ImagePrefix, first: int, last: int) -> ImagePrefix:
        """Run image blocks `first` (inclusive) to `last` (exclusive) without fusion."""
        tokens, stages, sizes = prefix
        for number in range(first, last):
            tokens, stages = self.image.enter(number, tokens, stages)
            own = self._map_sizes(number, sizes)
            tokens = self._run(self.image.block(number), tokens, None, own)
        return ImagePrefix(tokens, stages, sizes)

    def _map_sizes(self, number: int, sizes: ImageSizes | None) -> MapSizes | None:
        """Convert valid regions from pixels to tokens of the map at block `number`."""
        if sizes is None:
            return None
        stride = self.config.swin.patch_size * 2 ** self.image.places[number][0]
        return tuple((height // stride, width // stride) for height, width in sizes)

    def _text_layers(self, text: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
        """Run text layers `first` (inclusive) to `last` (exclusive) without fusion."""
        for number in range(first, last):
            text = self._run(self.text.layers[number], text, mask)
        return text

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, with gradient checkpointing if enabled."""
        if self.gradient_checkpointing and self.training:
            return checkpointed(function, *arguments)
        return function(*arguments)
