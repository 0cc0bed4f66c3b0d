"""The backbone of both stages: two towers, and the pairs in which they read one another."""

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
    RobertaTower,
    causal_attention_mask,
    key_attention_mask,
)
from fiber.models.encoders.swin import MapSizes, SwinTower
from fiber.models.fiber.fusion import FusedPair, ImageToTextAttention, TextToImageAttention
from fiber.models.init import draw_by_fan_in

#: What of a pair is read: "all" of it; what is "pooled", the picture and the first token of the
#: text; or the "text" alone. In the last pair the rest is not computed.
Wanted = Literal["all", "pooled", "text"]


#: (height, width) in pixels of each picture's own part of a padded tensor, whole patches of the
#: last stage; the part starts in the first corner.
PictureSizes = tuple[tuple[int, int], ...]


class BackboneOutput(NamedTuple):
    """Features of a batch of pictures, of texts, or of pairs."""

    #: Stage s: (B, H_s, W_s, C_s), not normalised, before the merging that follows it. The last
    #: stage is missing where the text alone was wanted.
    stages: tuple[Tensor, ...]
    #: (B, L, D), or (B, 1, D) where it is pooled, or None where pictures were encoded alone.
    text: Tensor | None = None
    #: (B, L) bool, True = real token.
    text_mask: Tensor | None = None
    #: Where pictures of several sizes share the batch; None: every picture fills its tensor.
    sizes: PictureSizes | None = None


class ImagePrefix(NamedTuple):
    """What the image tower computes below the first fused block."""

    #: (B, H, W, C) output of the last plain block.
    tokens: Tensor
    #: Stages that have ended.
    stages: tuple[Tensor, ...] = ()
    #: Where pictures of several sizes share the batch; None: every picture fills its tensor.
    sizes: PictureSizes | None = None

    def take(self, indices: Tensor, *, with_stages: bool = False) -> ImagePrefix:
        """Choose samples, for pairing them with other texts.

        Args:
            indices: (n,) int64 sample numbers, in any order, repeats allowed.
            with_stages: take the ended stages along, which the detector reads.
        """
        sizes = self.sizes
        return ImagePrefix(
            self.tokens.index_select(0, indices),
            tuple(stage.index_select(0, indices) for stage in self.stages if with_stages),
            None if sizes is None else tuple(sizes[index] for index in indices.tolist()),
        )


@dataclass
class Decoding:
    """Texts that are being written: what `decode_next` needs of pictures and earlier tokens."""

    #: For each fused layer keys and values of the pictures, (B, T, h, d) each.
    pictures: list[tuple[Tensor, Tensor]]
    #: Of each text layer, on all tokens that were read of a picture's texts.
    caches: list[KeyValueCache]
    #: (B, n, tokens) bool, which of these tokens each of a picture's n texts holds.
    held: Tensor | None = None
    #: Tokens in a text.
    length: int = 0

    def select(self, sources: Tensor) -> None:
        """Go on with other texts: (B, m) int64, the number of the text that each one continues."""
        assert self.held is not None
        index = sources[..., None].expand(-1, -1, self.held.shape[2])
        self.held = self.held.gather(1, index)


class FiberBackbone(nn.Module):
    """Swin and RoBERTa, fused in their last blocks.

    In a fused pair both members read the inputs of the pair, then both are replaced.

    Attributes:
        gradient_checkpointing: recompute blocks in the backward pass instead of keeping their
            activations.
    """

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        fusion, swin, roberta = config.fusion, config.swin, config.roberta
        self.image = SwinTower(swin, shift_small_maps=fusion.shift_small_maps)
        self.text = RobertaTower(roberta)
        #: Numbers of the first fused block and the first fused layer.
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

    def image_prefix(self, images: Tensor, sizes: PictureSizes | None = None) -> ImagePrefix:
        """Run the image tower up to the first fused block.

        Args:
            images: (B, 3, H, W) normalised pixels.
            sizes: of each picture's own part, outside of which there are zeros. Features of a part
                are then those of the picture alone, whatever shares the batch. None: padding is
                seen as a part of the picture, as published.
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
        """Run the rest of the image tower without a text."""
        last = len(self.image.places)
        prefix = self._image_blocks(prefix, self.first_fused_block, last)
        return BackboneOutput((*prefix.stages, prefix.tokens), sizes=prefix.sizes)

    def complete_text(self, prefix: Tensor, text_mask: Tensor, *, wanted: Wanted = "all") -> Tensor:
        """Run the rest of the text tower without a picture.

        Args:
            prefix: (B, L, D).
            text_mask: (B, L) bool, True = real token.
            wanted: "pooled" where the first token alone is read.

        Returns:
            (B, L, D), or (B, 1, D) where it is pooled.
        """
        mask, last = key_attention_mask(text_mask), len(self.text.layers)
        if wanted != "pooled" or self.first_fused_layer == last:
            text = self._text_layers(prefix, mask, self.first_fused_layer, last)
            return text[:, :1] if wanted == "pooled" else text
        text = self._text_layers(prefix, mask, self.first_fused_layer, last - 1)
        return self._run(partial(self.text.layers[last - 1], num_queries=1), text, mask)

    def encode_image(self, images: Tensor) -> BackboneOutput:
        """Encode pictures alone: (B, 3, H, W) normalised pixels of any size."""
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
        sizes: PictureSizes | None = None,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Encode pictures and texts that read one another.

        Args:
            images: (B, 3, H, W) normalised pixels of any size.
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            sizes: as `image_prefix` takes them.
            wanted: what of the pairs is read.
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
        """Run the fused pairs on prefixes, which several objectives may share.

        Without fused layers the text keeps its last LayerNorm in every configuration.

        Args:
            image_prefix: of B pictures.
            text_prefix: (B, L, D).
            text_mask: (B, L) bool, True = real token.
            wanted: what of the pairs is read.

        Returns:
            Every stage that the prefix holds or that ends here, and the text, as far as wanted.
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
        """Encode texts causally while they read a picture that was encoded alone (captioning).

        Args:
            image_tokens: for each fused layer (B, T, C) with the channels of its image block.
            token_ids: (B n, L) int64; the n texts of a picture follow one another.
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
        """Prepare to write texts token by token: what does not depend on them is computed here.

        Args:
            image_tokens: as `decode_text` takes them.
        """
        pictures = [
            cast(FusedPair, pair).text_to_image.keys_values(tokens)
            for pair, tokens in zip(self.fusion, image_tokens, strict=True)
        ]
        return Decoding(pictures, [KeyValueCache() for _ in self.text.layers])

    def decode_next(self, decoding: Decoding, token_ids: Tensor) -> Tensor:
        """Read one more token of each text: what `decode_text` gives for the last position.

        The texts of a picture stand side by side as tokens of one sample, and read their own past
        only: so they share the picture, and going on from another text moves no keys. Keys are
        written in place: for what needs a gradient there is `decode_text`.

        Args:
            decoding: of `start_decoding`; the tokens are added to it.
            token_ids: (B, n) int64, the newest token of each picture's texts.

        Returns:
            (B, n, D).
        """
        batch, texts = token_ids.shape
        newest = torch.eye(texts, dtype=torch.bool, device=token_ids.device)
        newest = newest.expand(batch, -1, -1)
        held = newest if decoding.held is None else torch.cat((decoding.held, newest), 2)
        # (B, n) -> (B n, 1, D) -> (B, n, D): each token is the next one of a text of its own
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
        """Bind a pair's text-to-image attention to keys and values."""
        fusion = cast(FusedPair, self.fusion[pair])
        return lambda attended: fusion.text_to_image.read(attended, *picture)

    def _pair(
        self,
        pair: int,
        tokens: Tensor,
        text: Tensor,
        text_mask: Tensor,
        wanted: Wanted,
        sizes: PictureSizes | None,
    ) -> tuple[Tensor | None, Tensor]:
        """Replace both members of a pair, as far as wanted; each reads what the other one was."""
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
        """Run the plain blocks first to last - 1."""
        tokens, stages, sizes = prefix
        for number in range(first, last):
            tokens, stages = self.image.enter(number, tokens, stages)
            own = self._map_sizes(number, sizes)
            tokens = self._run(self.image.block(number), tokens, None, own)
        return ImagePrefix(tokens, stages, sizes)

    def _map_sizes(self, number: int, sizes: PictureSizes | None) -> MapSizes | None:
        """Sizes of the pictures' own maps in tokens, at a block."""
        if sizes is None:
            return None
        stride = self.config.swin.patch_size * 2 ** self.image.places[number][0]
        return tuple((height // stride, width // stride) for height, width in sizes)

    def _text_layers(self, text: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
        """Run the plain layers first to last - 1."""
        for number in range(first, last):
            text = self._run(self.text.layers[number], text, mask)
        return text

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call, recomputing in the backward pass where gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)
