"""Losses of the caption task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fiber.data.batch import ImageTextBatch
from fiber.losses.caption import (
    PUBLISHED_BASELINE,
    caption_loss,
    gold_loss,
    others_mean,
    self_critical_loss,
)
from fiber.losses.distributed import rank, rank_mean, row_counts
from fiber.losses.itm import counter_uniforms
from fiber.models.fiber.captioner import caption_log_probs, is_written, sample_captions
from fiber.models.fiber.image_text import FiberImageText
from fiber.tasks.caption.fields import CaptionTask
from fiber.tasks.caption.rewards import CaptionRewards
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses

#: Stream of `counter_uniforms` that seeds caption sampling; distinct from those of `losses.itm`.
_CAPTION_STREAM = 4


def caption_losses(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    draw: Draw,
    reference: FiberImageText | None = None,
    passes: ForwardPasses = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the loss of predicting each caption token from the image and the tokens before it.

    `reference` is the frozen copy of the model for the objective "gold". If it is None, the loss is
    maximum likelihood. With several `passes`, the losses of parts are yielded, which add up.
    """
    counts = _num_targets(batch)
    whole = passes.whole(counts.sum() if reference is None else (counts > 0).sum())
    rows = passes.parts(draw.rows(batch))
    for part, (own_rows,) in zip(passes.batches(batch), rows, strict=True):
        ids, mask = part.token_ids, part.text_mask
        with draw.dropout(Place.CAPTION, own_rows):
            logits = model.next_token_logits(part.images, ids, mask)
        if reference is None:
            yield {"caption": caption_loss(logits, ids, mask, whole=whole)}
            continue
        with torch.no_grad():
            frozen = reference.next_token_logits(part.images, ids, mask)
        divisor = task.gold_divisor
        yield {"caption": gold_loss(logits, frozen, ids, mask, divisor=divisor, whole=whole)}


def self_critical_losses(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    draw: Draw,
    rewards: CaptionRewards,
    passes: ForwardPasses = ONE_PASS,
) -> Iterator[dict[str, Tensor]]:
    """Yield the caption likelihood and a policy-gradient loss on sampled captions (SCST).

    Both share one image encoding. Captions are sampled with the model in its current mode (with
    dropout in training, as in the published code). A second, differentiable pass then computes
    their log probabilities. An image's samples depend on `draw` and its row in the global batch,
    not on world size.

    Yields:
        The losses `caption` and `self_critical`, and the mean reward `cider_d` (no gradient); with
        several `passes`, those of parts, which add up.

    Source: self-critical training (Rennie et al. 2017) as in FIBER.
    """
    counts = row_counts(batch.image_ids)
    images = torch.tensor(sum(counts), device=batch.token_ids.device)
    whole = passes.whole(_num_targets(batch).sum())
    rows = torch.arange(len(batch), device=images.device) + sum(counts[: rank()])
    for part, (own,) in zip(passes.batches(batch), passes.parts(rows), strict=True):
        with draw.dropout(Place.CAPTION, own):
            tokens = model.backbone.encode_image(part.images).stages[-1]
            text = model.decode_text(tokens, part.token_ids, part.text_mask)
            logits = model.caption_logits(text)
        likelihood = caption_loss(logits, part.token_ids, part.text_mask, whole=whole)
        with draw.dropout(Place.SAMPLES, own):
            samples = sample_captions(
                model,
                tokens,
                samples_per_image=task.cider_samples,
                max_tokens=model.config.max_tokens,
                generator=_generators(draw, own.tolist(), tokens.device),
            ).token_ids
        cider = rewards(part.keys, samples)
        with draw.dropout(Place.LOG_PROBS, own):
            log_probs = caption_log_probs(model, tokens, samples)
        loss = self_critical_loss(
            log_probs,
            is_written(samples),
            cider,
            baseline=others_mean(cider) if task.cider_baseline == "others" else PUBLISHED_BASELINE,
            whole=images,
        )
        mean = rank_mean(cider.mean(1).sum(), images, images)
        yield {"caption": likelihood, "self_critical": loss, "cider_d": mean}


def _num_targets(batch: ImageTextBatch) -> Tensor:
    """Count the tokens of each caption that are predicted, (B,) int64."""
    return batch.text_mask[:, 1:].sum(1)


def _generators(draw: Draw, rows: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """Create a generator for each of some rows of the global batch."""
    uniforms = counter_uniforms(draw.seed, draw.number, _CAPTION_STREAM, np.array(rows)).tolist()
    # All 53 random bits, because CPU generators only use the lowest 32 bits of a seed.
    return [torch.Generator(device).manual_seed(int(uniform * 2**53)) for uniform in uniforms]
