"""Backbone of both stages: Swin and RoBERTa with cross-attention in their last layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fiber.config import FiberConfig
from fiber.models.encoders.roberta import (
    KeyValueCache,
    RobertaEncoder,
    causal_attention_mask,
    key_attention_mask,
)
from fiber.models.encoders.swin import MapSizes, SwinEncoder
from fiber.models.fiber.fusion import FusedPair, ImageToTextAttention, TextToImageAttention
from fiber.models.init import draw_by_fan_in

#: Outputs that are needed: "all"; "pooled" = image and first text token; or "text". The last fused
#: pair skips the others.
Wanted = Literal["all", "pooled", "text"]


#: (height, width) in pixels of each image's valid region in a padded tensor, at the top left, in
#: whole patches of the last stage.
ImageSizes = tuple[tuple[int, int], ...]


class BackboneOutput(NamedTuple):
    """Features of images or of (image, text) pairs."""

    #: Stage s: (B, H_s, W_s, C_s), not normalized, before patch merging. Without the last stage if
    #: only "text" was wanted.
    stages: tuple[Tensor, ...]
    #: (B, L, D); (B, 1, D) if "pooled"; None for images alone.
    text: Tensor | None = None
    #: (B, L) bool, True = real token.
    text_mask: Tensor | None = None
    #: Valid regions, if they differ.
    sizes: ImageSizes | None = None


class ImagePrefix(NamedTuple):
    """Image features below the first fused block."""

    #: (B, H, W, C) output of the last unfused block.
    tokens: Tensor
    #: Outputs of finished stages.
    stages: tuple[Tensor, ...] = ()
    #: Valid regions, if they differ.
    sizes: ImageSizes | None = None

    def take(self, indices: Tensor, *, with_stages: bool = False) -> ImagePrefix:
        """Select samples.

        Args:
            indices: (n,) int64, in any order, repeats allowed.
            with_stages: keep the finished stages, which the detector needs.
        """
        sizes = self.sizes
        return ImagePrefix(
            self.tokens.index_select(0, indices),
            tuple(stage.index_select(0, indices) for stage in self.stages if with_stages),
            None if sizes is None else tuple(sizes[index] for index in indices.tolist()),
        )


@dataclass
class Decoding:
    """State of incremental decoding with `decode_next`."""

    #: Image keys and values of each fused layer, (B, T, h, d) each.
    pictures: list[tuple[Tensor, Tensor]]
    #: Cache of each text layer, over the tokens of all texts of an image.
    caches: list[KeyValueCache]
    #: (B, n, tokens) bool, True = the cached token belongs to this text.
    held: Tensor | None = None
    #: Tokens per text.
    length: int = 0

    def select(self, sources: Tensor) -> None:
        """Continue from other texts: (B, m) int64 indices of the texts to continue."""
        assert self.held is not None
        index = sources[..., None].expand(-1, -1, self.held.shape[2])
        self.held = self.held.gather(1, index)


class FiberBackbone(nn.Module):
    """Swin and RoBERTa, fused in their last layers.

    Block and layer of a fused pair cross-attend to each other's input, not output.

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
        #: Indices of the first fused image block and text layer.
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
            draw_by_fan_in(self)

    def image_prefix(self, images: Tensor, sizes: ImageSizes | None = None) -> ImagePrefix:
        """Run the image tower up to the first fused block.

        Args:
            images: (B, 3, H, W) normalized pixels.
            sizes: valid regions, with zeros outside; features do not depend on the padding then.
                None: padding is treated as part of the image, as published.
        """
        start = ImagePrefix(self.image.patch_embedding(images), sizes=sizes)
        return self._image_blocks(start, 0, self.first_fused_block)

    def text_prefix(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Run the text tower up to the first fused layer: (B, L), (B, L) bool -> (B, L, D)."""
        return self._text_layers(
            self.text.embeddings(token_ids),
            key_attention_mask(text_mask),
            0,
            self.first_fused_layer,
        )

    def complete_image(self, prefix: ImagePrefix) -> BackboneOutput:
        """Run the rest of the image tower without fusion."""
        last = len(self.image.places)
        prefix = self._image_blocks(prefix, self.first_fused_block, last)
        return BackboneOutput((*prefix.stages, prefix.tokens), sizes=prefix.sizes)

    def complete_text(self, prefix: Tensor, text_mask: Tensor, *, wanted: Wanted = "all") -> Tensor:
        """Run the rest of the text tower without fusion.

        Args:
            prefix: (B, L, D).
            text_mask: (B, L) bool, True = real token.
            wanted: "pooled" if only the first token is needed.

        Returns:
            (B, L, D), or (B, 1, D) if "pooled".
        """
        mask, last = key_attention_mask(text_mask), len(self.text.layers)
        if wanted != "pooled" or self.first_fused_layer == last:
            text = self._text_layers(prefix, mask, self.first_fused_layer, last)
            return text[:, :1] if wanted == "pooled" else text
        text = self._text_layers(prefix, mask, self.first_fused_layer, last - 1)
        return self._run(partial(self.text.layers[last - 1], num_queries=1), text, mask)

    def encode_image(self, images: Tensor) -> BackboneOutput:
        """Encode images alone: (B, 3, H, W) normalized pixels of any size."""
        return self.complete_image(self.image_prefix(images))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts alone: (B, L) ids and (B, L) bool mask -> (B, L, D)."""
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
        """Encode pairs with fusion.

        Args:
            images: (B, 3, H, W) normalized pixels of any size.
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            sizes: as in `image_prefix`.
            wanted: outputs that are needed.
        """
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
        """Run the fused layers on prefixes, which several objectives may share.

        Args:
            image_prefix: B images.
            text_prefix: (B, L, D).
            text_mask: (B, L) bool, True = real token.
            wanted: outputs that are needed.

        Returns:
            Stages of the prefix and of the fused blocks, and the text. Without fused layers the
            text has its last LayerNorm in every config.
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
        """Encode texts causally with cross-attention to images encoded alone (captioning).

        Args:
            image_tokens: (B, T, C) for each fused layer, with the channels of its image block.
            token_ids: (B n, L) int64; the n texts of an image are contiguous.
            text_mask: (B n, L) bool, True = real token.

        Returns:
            (B n, L, D); position t depends on tokens 0 to t. All LayerNorms are applied.
        """
        mask = causal_attention_mask(text_mask)
        text = self._text_layers(self.text.embeddings(token_ids), mask, 0, self.first_fused_layer)
        for pair, tokens in zip(range(len(self.fusion)), image_tokens, strict=True):
            text = self._run(self._decoder_layer, pair, text, mask, tokens)
        return text

    def start_decoding(self, image_tokens: Sequence[Tensor]) -> Decoding:
        """Compute the image keys and values for `decode_next`.

        Args:
            image_tokens: as in `decode_text`.
        """
        pictures = [
            cast(FusedPair, pair).text_to_image.keys_values(tokens)
            for pair, tokens in zip(self.fusion, image_tokens, strict=True)
        ]
        return Decoding(pictures, [KeyValueCache() for _ in self.text.layers])

    def decode_next(self, decoding: Decoding, token_ids: Tensor) -> Tensor:
        """Process the next token of each text; equals the last position of `decode_text`.

        The texts of an image are tokens of one sample, masked to their own past. They share image
        keys, and `Decoding.select` moves no keys. Caches are updated in place: use `decode_text`
        for gradients.

        Args:
            decoding: state from `start_decoding`; updated.
            token_ids: (B, n) int64, newest token of each text.

        Returns:
            (B, n, D).
        """
        batch, texts = token_ids.shape
        newest = torch.eye(texts, dtype=torch.bool, device=token_ids.device)
        newest = newest.expand(batch, -1, -1)
        held = newest if decoding.held is None else torch.cat((decoding.held, newest), 2)
        # (B, n) -> (B n, 1, D) -> (B, n, D): each token has the position of its own text
        text = self.text.embeddings(token_ids.reshape(-1, 1), decoding.length)
        text = text.reshape(batch, texts, text.shape[-1])
        for number, (layer, cache) in enumerate(
            zip(self.text.layers, decoding.caches, strict=True), -self.first_fused_layer
        ):
            branch = None if number < 0 else self._reader(number, decoding.pictures[number])
            text = layer(text, held[:, None], branch, cache=cache)
        decoding.held = held
        decoding.length += 1
        return text

    def _reader(self, pair: int, picture: tuple[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
        """Bind the text-to-image attention of a pair to image keys and values."""
        fusion = cast(FusedPair, self.fusion[pair])
        return lambda attended: fusion.text_to_image.read(attended, *picture)

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
        """Run blocks first to last - 1 without fusion."""
        tokens, stages, sizes = prefix
        for number in range(first, last):
            tokens, stages = self.image.enter(number, tokens, stages)
            own = self._map_sizes(number, sizes)
            tokens = self._run(self.image.block(number), tokens, None, own)
        return ImagePrefix(tokens, stages, sizes)

    def _map_sizes(self, number: int, sizes: ImageSizes | None) -> MapSizes | None:
        """Convert valid regions in pixels to tokens at a block."""
        if sizes is None:
            return None
        stride = self.config.swin.patch_size * 2 ** self.image.places[number][0]
        return tuple((height // stride, width // stride) for height, width in sizes)

    def _text_layers(self, text: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
        """Run layers first to last - 1 without fusion."""
        for number in range(first, last):
            text = self._run(self.text.layers[number], text, mask)
        return text

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, with gradient checkpointing if enabled."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)
