"""ITC, ITM and MLM, one branch at a time.

They share computation below the first fused block: the image is encoded once for MLM, ITC and all
ITM pairs, and the text is encoded twice, unmasked and masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fiber.data.batch import ImageTextBatch
from fiber.losses.cross_entropy import IGNORED, num_labels
from fiber.losses.itc import Similarities, itc_loss, queue_itc_loss, text_fingerprints
from fiber.losses.itc_queue import PairQueue
from fiber.losses.itm import (
    HardNegatives,
    half_of_negatives,
    hard_negatives,
    join_pairs,
    matching_labels,
    negative_rows,
)
from fiber.losses.mlm import mlm_loss
from fiber.models.features import ImagePrefix
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.image_text import ImageTextModel
from fiber.tasks.image_text.fields import ImageTextTask
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.pairs import PairBatch, Pairs, random_itm
from fiber.training.objectives.split_backward import SplitGraph


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
    micro = PairBatch.of(model, batch, draw, split, passes)
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
            yield from random_itm(micro, own)
        else:
            negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
            if queue is None:
                fetched = micro.fetched(partial(negative_rows, negatives=negatives), *own)
                wrong = _triple(fetched)
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


def _mlm(micro: PairBatch, image_prefix: Tensor) -> Iterator[dict[str, Tensor]]:
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
    micro: PairBatch, image_prefix: Tensor, text_prefix: Tensor, queue: PairQueue | None
) -> tuple[Tensor, _Contrast]:
    """Compute the ITC loss over the global batch, or against the queue."""
    model, batch = cast(FiberImageText, micro.model), micro.batch
    backbone, mask = model.backbone, batch.text_mask

    def image_vectors(tokens: Tensor) -> Tensor:
        return model.image_vectors(backbone.complete_image(ImagePrefix(tokens)))

    def text_vectors(prefix: Tensor, mask: Tensor) -> Tensor:
        return model.text_vectors(backbone.complete_text(prefix, mask, wanted="pooled"))

    images = micro.recomputed(Place.IMAGE_ALONE, image_vectors, image_prefix)
    texts = micro.recomputed(Place.TEXT_ALONE, text_vectors, text_prefix, mask)
    text_ids = text_fingerprints(batch.token_ids, mask)
    inputs = images, texts, model.temperature, batch.image_ids, text_ids
    loss, similarities = itc_loss(*inputs) if queue is None else queue_itc_loss(*inputs, queue)
    return loss, _Contrast(similarities, images.detach(), texts.detach(), text_ids)


def _hard_itm(
    micro: PairBatch,
    pairs: Pairs,
    wrong: Pairs,
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
        loss = micro.itm_loss((images, texts, mask), own_labels, rows, whole)
        del joined, images, texts
        yield {"itm": loss}


def _triple(tensors: tuple[Tensor, ...]) -> Pairs:
    images, texts, mask = tensors
    return images, texts, mask


def _queued(micro: PairBatch, queue: PairQueue, negatives: HardNegatives) -> Pairs:
    """Encode negatives from the queue, without padding columns."""
    batch = micro.batch
    images, token_ids, masks = queue.candidate_rows(
        batch.images,
        batch.token_ids,
        batch.text_mask,
        image_index=negatives.image_index,
        text_index=negatives.text_index,
    )
    longest = int(masks.sum(1).max()) if len(masks) else 0
    token_ids, masks = token_ids[:, :longest], masks[:, :longest]
    tokens = micro.encode_image(Place.QUEUED_IMAGE, images)
    texts = micro.encode_text(Place.QUEUED_TEXT, token_ids, masks)
    if micro.passes.count > 1:
        tokens, texts = micro.split.cut(tokens), micro.split.cut(texts)
    return tokens, texts, masks
