"""Decoder: queries that read the image, one another, and tokens of texts.

Shapes:
    Q queries: Q - 1 latent ones and the class query, the last.
    R rows: the queries, in captioning followed by L caption tokens, in referring by Q - 1 copies
        of the latent queries.
    states: (B, R, D).
    hidden: bool masks, True = may not be attended to.
    maps: at strides 32, 16 and 8, which the layers read in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.encoders.clip import PastKeys
from fiber.models.masks.attention import PackedAttention, feed_forward
from fiber.models.masks.pixel_decoder import PixelFeatures, sine_positions
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.ops.masks import resize_masks
from fiber.ops.shrink_masks import shrink_masks
from fiber.ops.tracing import is_exporting

#: Number of maps that the layers read in turn.
NUM_LEVELS = 3
#: Added to norms of states before dividing by them.
NORM_EPS = 1e-7


class Memory(NamedTuple):
    """What the decoder reads of an image."""

    #: (B, N_s, D) values and keys of each map; keys have positions.
    values: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    #: (height, width) of each map.
    sizes: tuple[tuple[int, int], ...]
    #: (B, M, H / 4, W / 4), and the same at the size of each map.
    mask_features: Tensor
    resized_features: tuple[Tensor, ...]

    @property
    def batch_size(self) -> int:
        """Number of images."""
        # Not `len`, which would fix the number of images in exported graphs.
        return self.mask_features.shape[0]


class Prediction(NamedTuple):
    """Predictions from the start states or after a layer."""

    #: (B, R, D) normalized states without caption tokens. That of the class query is the mean of
    #: the latent ones, weighted by their similarity to it.
    states: Tensor
    #: (B, R, M) mask embeddings.
    mask_embeddings: Tensor
    #: (B, R, N) of the map that the next layer reads; None after the last layer.
    hidden: Tensor | None
    #: (B, L, D) states of caption tokens, of which their next tokens are predicted; None from the
    #: start states, and without captions.
    captions: Tensor | None = None


class LayerPast:
    """Projected keys and values that one layer keeps to continue captions."""

    def __init__(self) -> None:
        #: Those of the map.
        self.map = PastKeys()
        #: Those of the queries and of the caption tokens so far.
        self.states = PastKeys()


class DecoderLayer(nn.Module):
    """Post-norm layer of cross-attention, self-attention and feed-forward layer."""

    extra_forwards = ("continue_caption",)

    def __init__(self, width: int, num_heads: int, ffn_width: int) -> None:
        super().__init__()
        self.cross_attention = PackedAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = PackedAttention(width, num_heads)
        self.self_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, ffn_width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        map_keys: Tensor,
        map_values: Tensor,
        map_hidden: Tensor,
        hidden: Tensor,
        tokens: Tensor | None = None,
        past: LayerPast | None = None,
    ) -> Tensor:
        """Run the layer.

        Args:
            states: (B, R, D).
            positions: (B, R + g, D) of states and tokens.
            map_keys: (B, N, D).
            map_values: (B, N, D).
            map_hidden: (B, R, N).
            hidden: mask of self-attention, over states and tokens.
            tokens: (B, g, D) states of tokens that do not read the map.
            past: where to keep keys and values.

        Returns:
            (B, R + g, D).
        """
        rows = states.shape[1]
        of_map, of_states = (None, None) if past is None else (past.map, past.states)
        placed = states + positions[:, :rows]
        attended = self.cross_attention(placed, map_keys, map_values, map_hidden[:, None], of_map)
        states = self.cross_norm(states + attended)
        if tokens is not None:
            states = torch.cat((states, tokens), 1)
        placed = states + positions
        attended = self.self_attention(placed, placed, states, hidden, of_states)
        states = self.self_norm(states + attended)
        return self.mlp_norm(states + self.mlp(states))

    def continue_caption(
        self, states: Tensor, positions: Tensor, past: LayerPast, outside: Tensor | None
    ) -> Tensor:
        """Run the layer for the next caption token: (B, 1, D) -> (B, 1, D).

        `outside` is (B, 1, N) bool, True = the caption may not look there.
        """
        hidden = None if outside is None else outside[:, None]
        attended = self.cross_attention(states + positions, None, None, hidden, past.map)
        states = self.cross_norm(states + attended)
        placed = states + positions
        attended = self.self_attention(placed, placed, states, None, past.states)
        states = self.self_norm(states + attended)
        return self.mlp_norm(states + self.mlp(states))


class XDecoderDecoder(nn.Module):
    """Decoder with the prediction heads that all tasks share."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        width, own = config.width, config.decoder
        self.num_queries, self.width = own.num_queries, width
        self.queries = nn.Embedding(own.num_queries, width)
        self.query_positions = nn.Embedding(own.num_queries, width)
        self.level_embedding = nn.Embedding(NUM_LEVELS, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, own.num_heads, own.ffn_width) for _ in range(own.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        #: (D, D), applied from the right.
        self.class_projection = nn.Parameter(torch.empty(width, width))
        self.mask_mlp = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, own.mask_width),
        )
        nn.init.trunc_normal_(self.class_projection, std=0.02)
        self.has_captions = "caption" in config.heads
        if self.has_captions:
            self.caption_positions = nn.Embedding(config.max_tokens, width)
            self.caption_projection = nn.Parameter(torch.empty(width, width))
            nn.init.trunc_normal_(self.caption_projection, std=0.02)

    def prepare(self, features: PixelFeatures) -> Memory:
        """Compute keys, values and resized mask features of images, once for all layers.

        Resizing is linear, so masks at the size of a map are products with resized features.
        """
        values, keys, sizes, resized = [], [], [], []
        levels = self._rows(self.level_embedding, NUM_LEVELS)
        for level, each in enumerate(features.maps):
            size = (each.shape[-2], each.shape[-1])
            value = each.flatten(2).transpose(1, 2) + levels[level]
            positions = sine_positions(*size, self.width, each).flatten(1).T
            values.append(value)
            keys.append(value + positions)
            sizes.append(size)
            if is_exporting():
                # Maps are at strides 32, 16 and 8, mask features at stride 4.
                resized.append(shrink_masks(features.mask_features, 2 ** (NUM_LEVELS - level)))
            else:
                resized.append(resize_masks(features.mask_features, size))
        return Memory(
            tuple(values), tuple(keys), tuple(sizes), features.mask_features, tuple(resized)
        )

    def forward(
        self,
        memory: Memory,
        phrase_tokens: Tensor | None = None,
        phrase_mask: Tensor | None = None,
        *,
        caption_tokens: Tensor | None = None,
        region: Tensor | None = None,
    ) -> list[Prediction]:
        """Decode the queries; return the predictions of the start and of each layer.

        Latent queries and the class query do not see each other: segmentation and retrieval. With
        tokens of phrases or of captions, see `refer` or `caption`.
        """
        if phrase_tokens is not None:
            return self.refer(memory, phrase_tokens, phrase_mask)
        if caption_tokens is not None:
            return self.caption(memory, caption_tokens, region)
        states, positions = self._start(memory)
        return self._decode(memory, states, positions, self._query_hidden(states))

    def refer(
        self, memory: Memory, phrase_tokens: Tensor, phrase_mask: Tensor | None = None
    ) -> list[Prediction]:
        """Decode copies of the latent queries together with the tokens of phrases.

        All phrases of an image see one another, as published; they do not see the image. Rows Q to
        2 Q - 2 of the predictions are the copies.

        Args:
            memory: images.
            phrase_tokens: (B, g, D) projected features of all tokens of the image's phrases.
            phrase_mask: (B, g) bool, True = real token; None if all are. The published training
                pads with zeros that are attended to.
        """
        states, positions = self._start(memory)
        latent, count = self.num_queries - 1, phrase_tokens.shape[1]
        states = torch.cat((states, states[:, :latent]), 1)
        positions = torch.cat((positions, positions[:, :latent]), 1)
        rows = self.num_queries + latent + count
        hidden = torch.ones(rows, rows, dtype=torch.bool, device=states.device)
        hidden[: self.num_queries, : self.num_queries] = self._query_hidden(states)
        hidden[self.num_queries :, self.num_queries :] = False
        if phrase_mask is not None:
            hidden = hidden.repeat(len(states), 1, 1)
            hidden[:, :, self.num_queries + latent :] |= ~phrase_mask[:, None]
            # A padded token sees itself, so that no row is empty; nothing sees it.
            hidden.diagonal(dim1=1, dim2=2).fill_(False)
            hidden = hidden[:, None]
        return self._decode(memory, states, positions, hidden, phrase_tokens)

    def caption(
        self, memory: Memory, caption_tokens: Tensor, region: Tensor | None = None
    ) -> list[Prediction]:
        """Decode the queries and the tokens of a caption, which see the queries and earlier tokens.

        Args:
            memory: images.
            caption_tokens: (B, L, D) projected features of the tokens. Their states get no
                gradient, their positions do, as published.
            region: (B, H, W) bool, True = the caption may look there. None means everywhere.

        Raises:
            ValueError: if a region is empty at the size of a map.
        """
        states, positions = self._start(memory)
        length = caption_tokens.shape[1]
        placed = caption_tokens + self._rows(self.caption_positions, length)
        states = torch.cat((states, caption_tokens.detach()), 1)
        positions = torch.cat((positions, placed), 1)
        queries = self.num_queries
        rows = queries + length
        hidden = torch.ones(rows, rows, dtype=torch.bool, device=states.device).triu(1)
        hidden[:queries, :queries] = self._query_hidden(states)
        outside = self.outside_region(memory, region)
        return self._decode(memory, states, positions, hidden, outside=outside)

    def read_queries(self, memory: Memory) -> list[LayerPast]:
        """Decode the queries, and return what captions of the images are continued with."""
        pasts = [LayerPast() for _ in self.layers]
        states, positions = self._start(memory)
        self._decode(memory, states, positions, self._query_hidden(states), pasts=pasts)
        return pasts

    def continue_captions(
        self,
        tokens: Tensor,
        place: int,
        pasts: Sequence[LayerPast],
        outside: Sequence[Tensor | None],
    ) -> Tensor:
        """Append a token to each caption.

        Args:
            tokens: (B, 1, D) projected features of the tokens.
            place: index of the token in its caption.
            pasts: of `read_queries`; the token is added.
            outside: of `outside_region`.

        Returns:
            (B, 1, D) states, of which the next tokens are predicted.
        """
        states, positions = tokens, tokens + self._rows(self.caption_positions, place + 1, place)
        for number, layer in enumerate(cast("list[DecoderLayer]", list(self.layers))):
            past, beyond = pasts[number], outside[number % NUM_LEVELS]
            states = layer.continue_caption(states, positions, past, beyond)
        return self.norm(states) @ self.caption_projection

    def outside_region(self, memory: Memory, region: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return where captions may not look: (B, 1, N) for each map, or None for everywhere.

        Raises:
            ValueError: if a region is empty at the size of a map.
        """
        if region is None:
            return (None,) * len(memory.sizes)
        found = []
        for size in memory.sizes:
            inside = F.interpolate(region[:, None].float(), size, mode="nearest").flatten(2) > 0.5
            empty = (~inside.any(-1)).flatten().nonzero().flatten().tolist()
            if empty:
                raise ValueError(
                    f"region {empty[0]} has no pixel left at the size {size[0]} x {size[1]} that"
                    f" the decoder reads it at; expected a larger region, got"
                    f" {int(region[empty[0]].sum())} pixels"
                )
            found.append(~inside)
        return tuple(found)

    def predict(self, states: Tensor, memory: Memory, level: int | None) -> Prediction:
        """Predict from the states of queries and copies, for a next layer that reads map `level`.

        Args:
            states: (B, R, D), with caption tokens after row Q if there are any beyond the copies.
            memory: images.
            level: None after the last layer.
        """
        normed = self.norm(states)
        unit = normed / (normed.norm(dim=-1, keepdim=True) + NORM_EPS)
        last = self.num_queries - 1
        similarity = (unit[:, last:][:, :1] @ unit[:, :last].transpose(1, 2)).softmax(-1)
        own_class = similarity @ normed[:, :last]
        states = torch.cat((normed[:, :last], own_class, normed[:, last + 1 :]), 1)
        embeddings = self.mask_mlp(states)
        if level is None:
            return Prediction(states, embeddings, None)
        with torch.no_grad():
            logits = torch.einsum("brm,bmhw->brhw", embeddings, memory.resized_features[level])
            hidden = logits.flatten(2).sigmoid() < 0.5
            # As published, where the comment means the class query: the first copy is freed.
            hidden[:, self.num_queries :][:, :1] = False
            hidden &= ~hidden.all(-1, keepdim=True)
        return Prediction(states, embeddings, hidden)

    def mask_logits(self, prediction: Prediction, memory: Memory, rows: slice) -> Tensor:
        """Compute mask logits of some rows at stride 4: (B, R', H / 4, W / 4)."""
        chosen = prediction.mask_embeddings[:, rows]
        return torch.einsum("brm,bmhw->brhw", chosen, memory.mask_features)

    def _start(self, memory: Memory) -> tuple[Tensor, Tensor]:
        queries, positions = (
            self._rows(table, self.num_queries).expand(memory.batch_size, -1, -1)
            for table in (self.queries, self.query_positions)
        )
        return queries, positions

    def _rows(self, table: nn.Embedding, stop: int, start: int = 0) -> Tensor:
        # The module is called: it may have an adapter or hooks.
        return table(torch.arange(start, stop, device=self.norm.weight.device))

    def _query_hidden(self, like: Tensor) -> Tensor:
        is_class = torch.arange(self.num_queries, device=like.device) == self.num_queries - 1
        return is_class[:, None] != is_class

    def _decode(
        self,
        memory: Memory,
        states: Tensor,
        positions: Tensor,
        hidden: Tensor,
        tokens: Tensor | None = None,
        outside: Sequence[Tensor | None] = (),
        pasts: Sequence[LayerPast] = (),
    ) -> list[Prediction]:
        """Run all layers.

        Args:
            memory: images.
            states: (B, R, D) start states.
            positions: (B, R, D).
            hidden: mask of self-attention, over rows and tokens.
            tokens: (B, g, D) tokens that take part in self-attention only, with themselves as
                positions in every layer. Their states get no gradient, their positions do, as
                published.
            outside: where caption tokens may not look, for each map; empty if there are none.
            pasts: where each layer keeps keys and values.
        """
        rows = states.shape[1]
        count = self.num_queries if outside else rows
        if tokens is not None:
            states = torch.cat((states, tokens.detach()), 1)
            positions = torch.cat((positions, tokens), 1)
        predictions = [self.predict(states[:, :count], memory, 0)]
        for number, layer in enumerate(cast("list[DecoderLayer]", list(self.layers))):
            level = number % NUM_LEVELS
            masked = predictions[-1].hidden
            assert masked is not None
            if outside:
                size = (len(masked), rows - count, masked.shape[-1])
                beyond = outside[level]
                more = masked.new_zeros(size) if beyond is None else beyond.expand(size)
                masked = torch.cat((masked, more), 1)
            own = None if tokens is None else states[:, rows:]
            states = layer(
                states[:, :rows],
                positions,
                memory.keys[level],
                memory.values[level],
                masked,
                hidden,
                own,
                pasts[number] if pasts else None,
            )
            is_last = number == len(self.layers) - 1
            following = None if is_last else (number + 1) % NUM_LEVELS
            prediction = self.predict(states[:, :count], memory, following)
            if outside:
                captions = self.norm(states[:, count:rows]) @ self.caption_projection
                prediction = prediction._replace(captions=captions)
            predictions.append(prediction)
        return predictions
