"""Pairs of images and texts in a micro-batch, and ITM on random ones.

Tasks on pairs share computation below the first fused block.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        encode = self.draw.within(place, lambda images: backbone.image_prefix(images).tokens)
        return self.passes.recomputed(encode, self.rows, images)

    def encode_text(self, place: Place, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts up to the first fused layer."""
        encode = self.draw.within(place, self.model.backbone.text_prefix)
        return self.passes.recomputed(encode, self.rows, token_ids, text_mask)


#: Prefixes of images and texts, and the mask of the texts.
Pairs = tuple[Tensor, Tensor, Tensor]


def random_itm(micro: PairBatch, pairs: Pairs) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss of pairs, half of them with a random image of another pair."""
    (images, texts, mask), draw, passes = pairs, micro.draw, micro.passes
    half = half_pairs(micro.batch.image_ids, seed=draw.seed, step=draw.number)
    if passes.count > 1:
        # Parts share the fetched rows, so they are cut from their source, whose graph they end in.
        source = micro.split.source(images)
        images = micro.split.cut(fetch_rows(source, half.image_index, half.counts))
    else:
        images = fetch_rows(images, half.image_index, half.counts)
    whole = passes.whole(num_labels(half.labels))
    for part in passes.parts(images, texts, mask, half.labels, micro.rows):
        tokens, prefix, own_mask, labels, rows = part
        with draw.dropout(Place.ITM, rows):
            loss = labeled_itm_loss(
                micro.model, ImagePrefix(tokens), prefix, own_mask, labels, whole=whole
            )
        yield {"itm": loss}


def labeled_itm_loss(
    model: ImageTextModel,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    text_mask: Tensor,
    labels: Tensor,
    *,
    whole: Tensor | None = None,
) -> Tensor:
    """Compute the ITM loss of pairs; labels and `whole` are those of `pair_loss`."""
    fused = model.backbone.fuse(image_prefix, text_prefix, text_mask, wanted="pooled")
    return pair_loss(model.itm_logits(model.pooled(fused)), labels, whole=whole)
