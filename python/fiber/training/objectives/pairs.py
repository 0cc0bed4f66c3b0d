"""Pairs of images and texts in a micro-batch, and ITM on random ones.

Tasks on pairs share computation below the first fused block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from fiber.data.batch import ImageTextBatch
from fiber.losses.cross_entropy import num_labels
from fiber.losses.distributed import fetch_rows
from fiber.losses.itm import half_pairs, pair_loss
from fiber.models.features import ImagePrefix
from fiber.models.image_text import ImageTextModel
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph

#: Prefixes of images and texts, and the mask of the texts.
Pairs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PairBatch:
    """A rank's samples of a micro-batch, and how to compute its losses."""

    model: ImageTextModel
    batch: ImageTextBatch
    draw: Draw
    split: SplitGraph
    passes: ForwardPasses
    #: (B,) int64 numbers of the samples, for random numbers.
    rows: Tensor

    @classmethod
    def of(
        cls,
        model: ImageTextModel,
        batch: ImageTextBatch,
        draw: Draw,
        split: SplitGraph | None,
        passes: ForwardPasses,
    ) -> PairBatch:
        """Number the samples of a batch; without `split`, a single graph is kept."""
        split = split or SplitGraph(is_split=False)
        return cls(model, batch, draw, split, passes, draw.rows(batch))

    def encode_image(self, place: Place, images: Tensor) -> Tensor:
        """Encode images up to the first fused block."""
        backbone = self.model.backbone
        return self.recomputed(place, lambda images: backbone.image_prefix(images).tokens, images)

    def encode_text(self, place: Place, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts up to the first fused layer."""
        return self.recomputed(place, self.model.backbone.text_prefix, token_ids, text_mask)

    def recomputed(self, place: Place, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply a function to all samples, with the random numbers of `place`.

        With several passes, no activations are kept; see `ForwardPasses.recomputed`.
        """
        return self.passes.recomputed(self.draw.within(place, function), self.rows, *tensors)

    def fetched(
        self, fetch: Callable[..., tuple[Tensor, ...]], *prefixes: Tensor
    ) -> tuple[Tensor, ...]:
        """Apply a function that fetches rows of prefixes from the ranks that own them.

        Parts of several passes share the fetched rows, so these are cut from the source of the
        prefixes, whose graph they end in.
        """
        if self.passes.count == 1:
            return fetch(*prefixes)
        rows = fetch(*map(self.split.source, prefixes))
        return tuple(map(self.split.cut, rows))

    def itm_loss(self, pairs: Pairs, labels: Tensor, rows: Tensor, whole: Tensor | None) -> Tensor:
        """Compute the ITM loss of pairs; labels and `whole` are those of `pair_loss`.

        Args:
            pairs: prefixes of images and texts, and the mask of the texts.
            labels: (P,) int64.
            rows: (P,) int64 numbers of the pairs, for random numbers.
            whole: number of labeled pairs of all ranks, for a part of them.
        """
        images, texts, mask = pairs
        model = self.model
        with self.draw.dropout(Place.ITM, rows):
            fused = model.backbone.fuse(ImagePrefix(images), texts, mask, wanted="pooled")
            return pair_loss(model.itm_logits(model.pooled(fused)), labels, whole=whole)


def random_itm(micro: PairBatch, pairs: Pairs) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss of pairs, half of them with a random image of another pair."""
    (images, texts, mask), draw, passes = pairs, micro.draw, micro.passes
    half = half_pairs(micro.batch.image_ids, seed=draw.seed, step=draw.number)
    (images,) = micro.fetched(
        lambda images: (fetch_rows(images, half.image_index, half.counts),), images
    )
    whole = passes.whole(num_labels(half.labels))
    for part in passes.parts(images, texts, mask, half.labels, micro.rows):
        tokens, prefix, own_mask, labels, rows = part
        yield {"itm": micro.itm_loss((tokens, prefix, own_mask), labels, rows, whole)}
