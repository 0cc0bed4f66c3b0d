"""Losses of image-text tasks: ITC, ITM, MLM and ranking.

They share computation below the first fused block: the image is encoded once for MLM, ITC and all
ITM pairs, and the text is encoded twice, unmasked and masked.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from fiber.losses.language import mlm_loss, num_labels, ranking_loss
from fiber.models.features import ImagePrefix
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.image_text import ImageTextModel
from fiber.models.meter.image_text import MeterImageText
from fiber.training.config.tasks import ImageTextTask, RankingTask
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.passes import ONE_PASS, Passes
from fiber.training.objectives.split_backward import SplitGraph


def image_text_branches(
    model: ImageTextModel,
    batch: ImageTextBatch,
    task: ImageTextTask,
    draw: Draw,
    queue: PairQueue | None = None,
    split: SplitGraph | None = None,
    passes: Passes = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the MLM, ITC and ITM losses one branch at a time, from shared encoder prefixes.

    In training mode, the batch is added to the queue after the last branch. `split` detaches the
    prefixes from the graph; None keeps a single graph. With several `passes`, MLM and ITM yield
    parts of their losses, which add up.

    Source: FIBER (Dou et al. 2022); ITM with hard negatives as in ALBEF (Li et al. 2021).
    """
    backbone, mask = model.backbone, batch.text_mask
    split = split or SplitGraph(is_split=False)
    image_prefix = split.cut(
        passes.recomputed(lambda images: backbone.image_prefix(images).tokens, batch.images)
    )

    if task.mlm > 0:
        whole = passes.whole(num_labels(batch.mlm_labels))
        tokens = passes.parts(image_prefix)
        for part, (own,) in zip(passes.batches(batch), tokens, strict=True):
            yield {"mlm": _mlm(model, part, ImagePrefix(own), whole)}

    if task.itc == 0 and task.itm == 0:
        return
    text_prefix = split.cut(passes.recomputed(backbone.text_prefix, batch.token_ids, mask))
    contrast = None
    if task.has_contrast:
        # Hard negatives need the similarities even if ITC is not trained.
        with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
            fiber = cast(FiberImageText, model)
            loss, contrast = _itc(fiber, batch, image_prefix, text_prefix, queue, passes)
        if task.itc > 0:
            yield {"itc": loss}
        # Free the graph of a loss whose backward pass has run.
        del loss
    if task.itm > 0:
        similarities = contrast.similarities if contrast else None
        own = image_prefix, text_prefix, mask
        if similarities is None or task.itm_negatives == "random":
            losses = _random_itm(model, batch.image_ids, own, draw, split, passes)
        else:
            negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
            if queue is None:
                wrong = _fetched(own, negatives, split, passes)
            else:
                wrong = _queued(model, batch, queue, negatives, split, passes)
            first_row = similarities.first_row if task.itm_negatives == "half" else None
            losses = _hard_itm(model, own, wrong, negatives, first_row, passes)
        for loss in losses:
            yield {"itm": loss}
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


def _mlm(
    model: ImageTextModel, batch: ImageTextBatch, image_prefix: ImagePrefix, whole: Tensor | None
) -> Tensor:
    """Compute the MLM loss at the masked tokens, conditioned on the image."""
    mask = batch.text_mask
    masked_prefix = model.backbone.text_prefix(batch.masked_ids, mask)
    fused = model.backbone.fuse(image_prefix, masked_prefix, mask, wanted="text")
    assert fused.text is not None
    picked = batch.mlm_labels != -100
    logits = model.mlm_logits(fused.text, picked)
    return mlm_loss(logits, batch.mlm_labels[picked], whole=whole)


class _Contrast(NamedTuple):
    """ITC results that ITM and the queue use."""

    similarities: Similarities
    #: (B, D) unit vectors, detached.
    image_vectors: Tensor
    text_vectors: Tensor
    #: (B,) int64; the same id means the same text.
    text_ids: Tensor


def _itc(
    model: FiberImageText,
    batch: ImageTextBatch,
    image_prefix: Tensor,
    text_prefix: Tensor,
    queue: PairQueue | None,
    passes: Passes,
) -> tuple[Tensor, _Contrast]:
    """Compute the ITC loss over the global batch, or against the queue."""
    backbone, mask = model.backbone, batch.text_mask

    def image_vectors(tokens: Tensor) -> Tensor:
        return model.image_vectors(backbone.complete_image(ImagePrefix(tokens)))

    def text_vectors(prefix: Tensor, mask: Tensor) -> Tensor:
        return model.text_vectors(backbone.complete_text(prefix, mask, wanted="pooled"))

    images = passes.recomputed(image_vectors, image_prefix)
    texts = passes.recomputed(text_vectors, text_prefix, mask)
    text_ids = text_fingerprints(batch.token_ids, mask)
    inputs = images, texts, model.temperature, batch.image_ids, text_ids
    loss, similarities = itc_loss(*inputs) if queue is None else queue_itc_loss(*inputs, queue)
    return loss, _Contrast(similarities, images.detach(), texts.detach(), text_ids)


#: Prefixes of images and texts, and the mask of the texts.
_Pairs = tuple[Tensor, Tensor, Tensor]


def _random_itm(
    model: ImageTextModel,
    image_ids: Tensor,
    pairs: _Pairs,
    draw: Draw,
    split: SplitGraph,
    passes: Passes,
) -> Iterator[Tensor]:
    """Yield the ITM loss of pairs, half of them with a random image of another pair."""
    images, texts, mask = pairs
    half = half_pairs(image_ids, seed=draw.seed, step=draw.number)
    if passes.count > 1:
        # Parts fetch from the same prefix, so that a part cannot free its graph.
        images = split.cut(fetch_rows(split.source(images), half.image_index, half.counts))
    else:
        images = fetch_rows(images, half.image_index, half.counts)
    whole = passes.whole(num_labels(half.labels))
    for tokens, prefix, own_mask, labels in passes.parts(images, texts, mask, half.labels):
        yield labeled_itm_loss(model, ImagePrefix(tokens), prefix, own_mask, labels, whole=whole)


def _hard_itm(
    model: ImageTextModel,
    pairs: _Pairs,
    wrong: _Pairs,
    negatives: HardNegatives,
    first_row: int | None,
    passes: Passes,
) -> Iterator[Tensor]:
    """Yield the ITM loss of pairs and of their hard negatives.

    With `first_row`, the index of the first pair in the global batch, each pair has one negative
    (`half_of_negatives`), otherwise two.
    """
    labels = matching_labels(len(pairs[0]), negatives)
    whole = None
    if passes.count > 1:
        chosen = labels
        if first_row is not None:
            chosen = labels[half_of_negatives(len(pairs[0]), first_row).to(labels.device)]
        whole = passes.whole(num_labels(chosen))
    slices = passes.slices(len(pairs[0]))
    parts = zip(passes.parts(*pairs), passes.parts(*wrong), strict=True)
    for rows, (own, other) in zip(slices, parts, strict=True):
        joined = join_pairs(_triple(own), _triple(other))
        images, texts, mask = joined.image_rows, joined.text_rows, joined.text_mask
        own_labels = labels.view(3, -1)[:, rows].flatten()
        if first_row is not None:
            kept = half_of_negatives(rows.stop - rows.start, first_row + rows.start)
            kept = kept.to(images.device)
            images, texts, mask = images[kept], texts[kept], mask[kept]
            own_labels = own_labels[kept]
        yield labeled_itm_loss(model, ImagePrefix(images), texts, mask, own_labels, whole=whole)


def _triple(tensors: tuple[Tensor, ...]) -> _Pairs:
    images, texts, mask = tensors
    return images, texts, mask


def _fetched(pairs: _Pairs, negatives: HardNegatives, split: SplitGraph, passes: Passes) -> _Pairs:
    """Fetch the prefixes of negatives from the ranks that own them."""
    images, texts, mask = pairs
    if passes.count == 1:
        return negative_rows(images, texts, mask, negatives)
    # See `_random_itm`.
    sources = split.source(images), split.source(texts)
    images, texts, mask = negative_rows(*sources, mask, negatives)
    return split.cut(images), split.cut(texts), mask


def _queued(
    model: ImageTextModel,
    batch: ImageTextBatch,
    queue: PairQueue,
    negatives: HardNegatives,
    split: SplitGraph,
    passes: Passes,
) -> _Pairs:
    """Encode negatives from the queue, without padding columns."""
    backbone = model.backbone
    images, token_ids, masks = queued_negatives(
        batch.images, batch.token_ids, batch.text_mask, queue, negatives
    )
    longest = int(masks.sum(1).max()) if len(masks) else 0
    token_ids, masks = token_ids[:, :longest], masks[:, :longest]
    tokens = passes.recomputed(lambda images: backbone.image_prefix(images).tokens, images)
    texts = passes.recomputed(backbone.text_prefix, token_ids, masks)
    if passes.count > 1:
        tokens, texts = split.cut(tokens), split.cut(texts)
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
    passes: Passes = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss and the ranking loss of each caption among K false ones.

    The image is encoded once for all pairs, and the 1 + K texts once for both losses. `split` and
    `passes` are as for `image_text_branches`.

    Source: METER (Dou et al. 2022), fine-tuning for retrieval, which encodes the image for each
    pair and draws the negatives of ITM from the whole dataset.
    """
    backbone = model.backbone
    split = split or SplitGraph(is_split=False)
    # (B, 1 + K, L), its own text first
    ids = torch.cat((batch.token_ids[:, None], batch.false_ids), 1)
    masks = torch.cat((batch.text_mask[:, None], batch.false_mask), 1)
    texts = ids.shape[1]
    images = split.cut(
        passes.recomputed(lambda images: backbone.image_prefix(images).tokens, batch.images)
    )
    text_prefix = split.cut(
        passes.recomputed(backbone.text_prefix, ids.flatten(0, 1), masks.flatten(0, 1))
    )
    if task.itm > 0:
        own = images, text_prefix[::texts], batch.text_mask
        for loss in _random_itm(model, batch.image_ids, own, draw, split, passes):
            yield {"itm": loss}
    whole = passes.whole(num_labels(batch.token_ids[:, 0]))
    by_image = text_prefix.unflatten(0, (-1, texts))
    for tokens, prefix, mask in passes.parts(images, by_image, masks):
        rows = torch.arange(len(tokens), device=ids.device).repeat_interleave(texts)
        image = ImagePrefix(tokens).take(rows)
        fused = backbone.fuse(image, prefix.flatten(0, 1), mask.flatten(0, 1), wanted="pooled")
        scores = model.rank_scores(model.pooled(fused)).view(len(tokens), texts)
        yield {"rank": ranking_loss(scores, whole=whole)}
