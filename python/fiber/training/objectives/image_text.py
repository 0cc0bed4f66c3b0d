"""Losses of image-text tasks: ITC, ITM, MLM and ranking.

They share computation below the first fused block: the image is encoded once for MLM, ITC and all
ITM pairs, and the text is encoded twice, unmasked and masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fiber.data.batch import ImageTextBatch, RankingBatch
from fiber.losses.distributed import fetch_rows
from fiber.losses.itc import Similarities, itc_loss, text_fingerprints
from fiber.losses.itc_queue import PairQueue, queue_itc_loss, queued_negatives
from fiber.losses.itm import (
    HardNegatives,
    half_of_negatives,
    half_pairs,
    hard_negatives,
    join_pairs,
    matching_labels,
    negative_rows,
    pair_loss,
)
from fiber.losses.language import IGNORED, mlm_loss, num_labels, ranking_loss
from fiber.models.features import ImagePrefix
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.image_text import ImageTextModel
from fiber.models.meter.image_text import MeterImageText
from fiber.training.config.tasks import ImageTextTask, RankingTask
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph


@dataclass(frozen=True)
class _MicroBatch:
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
    ) -> _MicroBatch:
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


def image_text_branches(
    model: ImageTextModel,
    batch: ImageTextBatch,
    task: ImageTextTask,
    draw: Draw,
    queue: PairQueue | None = None,
    split: SplitGraph | None = None,
    passes: ForwardPasses = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the MLM, ITC and ITM losses one branch at a time, from shared encoder prefixes.

    In training mode, the batch is added to the queue after the last branch. `split` detaches the
    prefixes from the graph; None keeps a single graph. With several `passes`, MLM and ITM yield
    parts of their losses, which add up.

    Source: FIBER (Dou et al. 2022); ITM with hard negatives as in ALBEF (Li et al. 2021).
    """
    micro = _MicroBatch.of(model, batch, draw, split, passes)
    image_prefix = micro.split.cut(micro.encode_image(Place.IMAGE, batch.images))

    if task.mlm > 0:
        yield from _mlm(micro, image_prefix)

    if task.itc == 0 and task.itm == 0:
        return
    mask = batch.text_mask
    text_prefix = micro.split.cut(micro.encode_text(Place.TEXT, batch.token_ids, mask))
    contrast = None
    if task.has_contrast:
        # Hard negatives need the similarities even if ITC is not trained.
        with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
            loss, contrast = _itc(micro, image_prefix, text_prefix, queue)
        if task.itc > 0:
            yield {"itc": loss}
        # Free the graph of a loss whose backward pass has run.
        del loss
    if task.itm > 0:
        similarities = contrast.similarities if contrast else None
        own = image_prefix, text_prefix, mask
        if similarities is None or task.itm_negatives == "random":
            yield from _random_itm(micro, own)
        else:
            negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
            if queue is None:
                wrong = _fetched(micro, own, negatives)
            else:
                wrong = _queued(micro, queue, negatives)
            first_row = similarities.first_row if task.itm_negatives == "half" else None
            yield from _hard_itm(micro, own, wrong, negatives, first_row)
    if contrast is not None and queue is not None and model.training:
        queue.enqueue(
            contrast.image_vectors,
            contrast.text_vectors,
            batch.images,
            batch.token_ids,
            mask,
            batch.image_ids,
            contrast.text_ids,
        )


def _mlm(micro: _MicroBatch, image_prefix: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield the MLM loss at the masked tokens, conditioned on the image."""
    model, passes = micro.model, micro.passes
    whole = passes.whole(num_labels(micro.batch.mlm_labels))
    tensors = passes.parts(image_prefix, micro.rows)
    for part, (tokens, rows) in zip(passes.batches(micro.batch), tensors, strict=True):
        mask, picked = part.text_mask, part.mlm_labels != IGNORED
        with micro.draw.dropout(Place.MLM, rows):
            masked_prefix = model.backbone.text_prefix(part.masked_ids, mask)
            fused = model.backbone.fuse(ImagePrefix(tokens), masked_prefix, mask, wanted="text")
            assert fused.text is not None
            logits = model.mlm_logits(fused.text, picked)
        yield {"mlm": mlm_loss(logits, part.mlm_labels[picked], whole=whole)}


class _Contrast(NamedTuple):
    """ITC results that ITM and the queue use."""

    similarities: Similarities
    #: (B, D) unit vectors, detached.
    image_vectors: Tensor
    text_vectors: Tensor
    #: (B,) int64; the same id means the same text.
    text_ids: Tensor


def _itc(
    micro: _MicroBatch, image_prefix: Tensor, text_prefix: Tensor, queue: PairQueue | None
) -> tuple[Tensor, _Contrast]:
    """Compute the ITC loss over the global batch, or against the queue."""
    model, batch, passes = cast(FiberImageText, micro.model), micro.batch, micro.passes
    backbone, mask = model.backbone, batch.text_mask

    def image_vectors(tokens: Tensor) -> Tensor:
        return model.image_vectors(backbone.complete_image(ImagePrefix(tokens)))

    def text_vectors(prefix: Tensor, mask: Tensor) -> Tensor:
        return model.text_vectors(backbone.complete_text(prefix, mask, wanted="pooled"))

    encode_image = micro.draw.within(Place.IMAGE_ALONE, image_vectors)
    encode_text = micro.draw.within(Place.TEXT_ALONE, text_vectors)
    images = passes.recomputed(encode_image, micro.rows, image_prefix)
    texts = passes.recomputed(encode_text, micro.rows, text_prefix, mask)
    text_ids = text_fingerprints(batch.token_ids, mask)
    inputs = images, texts, model.temperature, batch.image_ids, text_ids
    loss, similarities = itc_loss(*inputs) if queue is None else queue_itc_loss(*inputs, queue)
    return loss, _Contrast(similarities, images.detach(), texts.detach(), text_ids)


#: Prefixes of images and texts, and the mask of the texts.
_Pairs = tuple[Tensor, Tensor, Tensor]


def _random_itm(micro: _MicroBatch, pairs: _Pairs) -> Iterator[dict[str, Tensor]]:
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


def _hard_itm(
    micro: _MicroBatch,
    pairs: _Pairs,
    wrong: _Pairs,
    negatives: HardNegatives,
    first_row: int | None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss of pairs and of their hard negatives.

    With `first_row`, the index of the first pair in the global batch, each pair has one negative
    (`half_of_negatives`), otherwise two.
    """
    passes, count = micro.passes, len(micro.rows)
    labels = matching_labels(count, negatives)
    # Numbers of true pairs, of those with another text, and of those with another image.
    numbers = torch.cat([3 * micro.rows + kind for kind in range(3)])
    chosen = labels
    if first_row is not None:
        chosen = labels[half_of_negatives(count, first_row).to(labels.device)]
    whole = passes.whole(num_labels(chosen))
    parts = zip(passes.parts(*pairs), passes.parts(*wrong), strict=True)
    for part, (own, other) in zip(passes.slices(count), parts, strict=True):
        joined = join_pairs(_triple(own), _triple(other))
        images, texts, mask = joined.image_rows, joined.text_rows, joined.text_mask
        own_labels, rows = (each.view(3, -1)[:, part].flatten() for each in (labels, numbers))
        if first_row is not None:
            kept = half_of_negatives(part.stop - part.start, first_row + part.start)
            kept = kept.to(images.device)
            images, texts, mask = images[kept], texts[kept], mask[kept]
            own_labels, rows = own_labels[kept], rows[kept]
        with micro.draw.dropout(Place.ITM, rows):
            loss = labeled_itm_loss(
                micro.model, ImagePrefix(images), texts, mask, own_labels, whole=whole
            )
        del joined, images, texts
        yield {"itm": loss}


def _triple(tensors: tuple[Tensor, ...]) -> _Pairs:
    images, texts, mask = tensors
    return images, texts, mask


def _fetched(micro: _MicroBatch, pairs: _Pairs, negatives: HardNegatives) -> _Pairs:
    """Fetch the prefixes of negatives from the ranks that own them."""
    images, texts, mask = pairs
    if micro.passes.count == 1:
        return negative_rows(images, texts, mask, negatives)
    # See `_random_itm`.
    split = micro.split
    sources = split.source(images), split.source(texts)
    images, texts, mask = negative_rows(*sources, mask, negatives)
    return split.cut(images), split.cut(texts), mask


def _queued(micro: _MicroBatch, queue: PairQueue, negatives: HardNegatives) -> _Pairs:
    """Encode negatives from the queue, without padding columns."""
    batch = micro.batch
    images, token_ids, masks = queued_negatives(
        batch.images, batch.token_ids, batch.text_mask, queue, negatives
    )
    longest = int(masks.sum(1).max()) if len(masks) else 0
    token_ids, masks = token_ids[:, :longest], masks[:, :longest]
    tokens = micro.encode_image(Place.QUEUED_IMAGE, images)
    texts = micro.encode_text(Place.QUEUED_TEXT, token_ids, masks)
    if micro.passes.count > 1:
        tokens, texts = micro.split.cut(tokens), micro.split.cut(texts)
    return tokens, texts, masks


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


def ranking_branches(
    model: MeterImageText,
    batch: RankingBatch,
    task: RankingTask,
    draw: Draw,
    split: SplitGraph | None = None,
    passes: ForwardPasses = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss and the ranking loss of each caption among K false ones.

    The image is encoded once for all pairs, and the 1 + K texts once for both losses. `split` and
    `passes` are as for `image_text_branches`.

    Source: METER (Dou et al. 2022), fine-tuning for retrieval, which encodes the image for each
    pair and draws the negatives of ITM from the whole dataset.
    """
    micro = _MicroBatch.of(model, batch, draw, split, passes)
    # (B, 1 + K, L), its own text first
    ids = torch.cat((batch.token_ids[:, None], batch.false_ids), 1)
    masks = torch.cat((batch.text_mask[:, None], batch.false_mask), 1)
    texts = ids.shape[1]

    def encode_texts(ids: Tensor, masks: Tensor) -> Tensor:
        prefix = model.backbone.text_prefix(ids.flatten(0, 1), masks.flatten(0, 1))
        return prefix.unflatten(0, (-1, texts))

    image_prefix = micro.split.cut(micro.encode_image(Place.IMAGE, batch.images))
    encode = draw.within(Place.TEXT, encode_texts)
    # (B, 1 + K, L, D)
    text_prefix = micro.split.cut(passes.recomputed(encode, micro.rows, ids, masks))
    if task.itm > 0:
        yield from _random_itm(micro, (image_prefix, text_prefix[:, 0], batch.text_mask))
    whole = passes.whole_rows(batch.token_ids)
    for tokens, prefix, mask, rows in passes.parts(image_prefix, text_prefix, masks, micro.rows):
        copies = torch.arange(len(tokens), device=ids.device).repeat_interleave(texts)
        image = ImagePrefix(tokens).take(copies)
        with draw.dropout(Place.RANKING, rows):
            fused = model.backbone.fuse(
                image, prefix.flatten(0, 1), mask.flatten(0, 1), wanted="pooled"
            )
            scores = model.rank_scores(model.pooled(fused)).view(len(tokens), texts)
        yield {"rank": ranking_loss(scores, whole=whole)}
