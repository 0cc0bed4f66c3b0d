"""What one pass trains: each task turns a batch into named losses.

Passes share what they can: the picture below the first fused block runs once and serves contrast,
masked words and all matching pairs; the text below it runs once as it is and once masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fiber.data.batch import GroundingBatch, ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.losses.caption import (
    PUBLISHED_BASELINE,
    gold_loss,
    others_mean,
    self_critical_loss,
)
from fiber.losses.distributed import fetch_rows, rank, row_counts, world_size
from fiber.losses.grounding import grounding_losses
from fiber.losses.itc import Similarities, itc_loss, text_fingerprints
from fiber.losses.itc_queue import PairQueue, queue_itc_loss, queued_negatives
from fiber.losses.itm import (
    MatchingPairs,
    counter_uniforms,
    half_of_negatives,
    half_pairs,
    hard_negatives,
    itm_loss,
    join_pairs,
    matching_pairs,
    pair_loss,
)
from fiber.losses.language import caption_loss, mlm_loss, nlvr2_loss, vqa_loss
from fiber.models.fiber.backbone import ImagePrefix
from fiber.models.fiber.captioner import caption_log_probs, is_written, sample_captions
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.tasks import CaptionTask, ImageTextTask, TasksConfig
from fiber.training.objective_state import NO_MEMORY, Memory
from fiber.training.scst import CaptionRewards
from fiber.training.split_backward import Backward, Branches

#: Number of the stream of draws that samples of captions begin from; `losses.matching` has others.
_SAMPLES = 4


@dataclass(frozen=True)
class Draw:
    """Where a pass takes its random numbers from: seed of the run, number of the pass."""

    seed: int
    number: int


def task_losses(
    name: str,
    model: FiberImageText | FiberDetector,
    batch: Any,
    tasks: TasksConfig,
    draw: Draw,
    memory: Memory = NO_MEMORY,
    backward: Backward | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of one task, unweighted.

    Args:
        name: of the task, a field of `TasksConfig`.
        model: the detector for grounding, else the image-text model.
        batch: of the type that the task reads.
        tasks: settings of all tasks.
        draw: source of this pass's random numbers.
        memory: what the tasks keep from pass to pass, if they do.
        backward: runs losses backward, by name, as soon as memory can be saved by it; None: the
            caller does.

    Returns:
        Scalars by name, detached if they ran backward; their mean over the ranks is the loss of the
        whole batch.
    """
    if name == "image_text" and not isinstance(model, FiberDetector):
        return image_text_task(model, batch, tasks.image_text, draw, memory.queue, backward)
    losses = _single_branch(name, model, batch, tasks, draw, memory)
    if backward is None:
        return losses
    backward(losses)
    return {key: loss.detach() for key, loss in losses.items()}


def _single_branch(
    name: str,
    model: FiberImageText | FiberDetector,
    batch: Any,
    tasks: TasksConfig,
    draw: Draw,
    memory: Memory,
) -> dict[str, Tensor]:
    """Compute the losses of a task whose losses run backward together."""
    if isinstance(model, FiberDetector):
        return grounding_task(model, batch)
    if name == "question":
        return question_task(model, batch)
    if name == "reasoning":
        return reasoning_task(model, batch)
    if memory.rewards is not None:
        return self_critical_task(model, batch, tasks.caption, draw, memory.rewards)
    return caption_task(model, batch, tasks.caption, memory.reference)


def image_text_task(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: ImageTextTask,
    draw: Draw,
    queue: PairQueue | None = None,
    backward: Backward | None = None,
) -> dict[str, Tensor]:
    """Contrast, masked words and matching from shared prefixes.

    Args:
        model: in training mode it writes the batch into the queue.
        batch: pictures with captions.
        task: which losses, and their forms.
        draw: source of this pass's random numbers.
        queue: of older pairs, for the contrast of form "queue".
        backward: runs each loss backward before the next one is computed; None: the caller does.

    Returns:
        Scalars by name, detached if they ran backward.

    Source: FIBER (Dou et al. 2022); matching with hard negatives as in ALBEF (Li et al. 2021).
    """
    backbone, mask, branches = model.backbone, batch.text_mask, Branches(backward)
    image_prefix = ImagePrefix(branches.share(backbone.image_prefix(batch.images).tokens))

    if task.mlm > 0:
        masked_prefix = backbone.text_prefix(batch.masked_ids, mask)
        fused = backbone.fuse(image_prefix, masked_prefix, mask, wanted="text")
        assert fused.text is not None
        picked = batch.mlm_labels != -100
        logits = model.mlm_logits(fused.text, picked)
        branches.add("mlm", mlm_loss(logits, batch.mlm_labels[picked]))
        # Names would keep what ran backward.
        del masked_prefix, fused, logits

    if task.itc > 0 or task.itm > 0:
        text_prefix = branches.share(backbone.text_prefix(batch.token_ids, mask))
        contrast = None
        if task.has_contrast:
            # Matching needs the similarities even where contrast itself is not trained.
            with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
                contrast = _contrast(model, batch, image_prefix, text_prefix, queue)
            if task.itc > 0:
                branches.add("itc", contrast.loss)
        if task.itm > 0:
            similarities = contrast.similarities if contrast else None
            prefixes = image_prefix, text_prefix
            branches.add(
                "itm",
                _matching(model, batch, *prefixes, similarities, task.itm_negatives, draw, queue),
            )
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
    return branches.close()


class _Contrast(NamedTuple):
    """The contrastive loss of a pass, and what matching and the queue take from it."""

    loss: Tensor
    similarities: Similarities
    image_vectors: Tensor
    text_vectors: Tensor
    text_ids: Tensor


def _contrast(
    model: FiberImageText,
    batch: ImageTextBatch,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    queue: PairQueue | None,
) -> _Contrast:
    """Contrast within the batch of all ranks, or with the queue."""
    backbone, mask = model.backbone, batch.text_mask
    images = model.image_vectors(backbone.complete_image(image_prefix))
    texts = model.text_vectors(backbone.complete_text(text_prefix, mask, wanted="pooled"))
    text_ids = text_fingerprints(batch.token_ids, mask)
    given = images, texts, model.temperature, batch.image_ids, text_ids
    found = itc_loss(*given) if queue is None else queue_itc_loss(*given, queue)
    return _Contrast(*found, images, texts, text_ids)


def _matching(
    model: FiberImageText,
    batch: ImageTextBatch,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    similarities: Similarities | None,
    kept: str,
    draw: Draw,
    queue: PairQueue | None,
) -> Tensor:
    """The matching loss against random pictures, or against similar texts and pictures."""
    mask = batch.text_mask
    if similarities is None or kept == "random":
        half = half_pairs(batch.image_ids, seed=draw.seed, step=draw.number)
        images = fetch_rows(image_prefix.tokens, half.image_index, half.counts)
        fused = model.backbone.fuse(ImagePrefix(images), text_prefix, mask, wanted="pooled")
        return pair_loss(model.itm_logits(model.pooled(fused)), half.labels)
    negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
    if queue is None:
        pairs = matching_pairs(image_prefix.tokens, text_prefix, mask, negatives)
    else:
        wrong = queued_negatives(batch.images, batch.token_ids, mask, queue, negatives)
        pairs = _pairs_with(model, (image_prefix.tokens, text_prefix, mask), wrong)
    images, texts, masks = pairs.image_rows, pairs.text_rows, pairs.text_mask
    rows = None
    if kept == "half":
        first_row = similarities.first_row
        rows = half_of_negatives(len(batch), first_row).to(images.device)
        images, texts, masks = images[rows], texts[rows], masks[rows]
    fused = model.backbone.fuse(ImagePrefix(images), texts, masks, wanted="pooled")
    return itm_loss(model.itm_logits(model.pooled(fused)), len(batch), negatives, rows=rows)


def _pairs_with(
    model: FiberImageText,
    true: tuple[Tensor, Tensor, Tensor],
    wrong: tuple[Tensor, Tensor, Tensor],
) -> MatchingPairs:
    """Join prefixes of the batch with those of wrong pictures and texts, which run here."""
    images, token_ids, mask = wrong
    longest = int(mask.sum(1).max()) if len(mask) else 0
    token_ids, mask = token_ids[:, :longest], mask[:, :longest]
    image_rows = model.backbone.image_prefix(images).tokens
    return join_pairs(true, (image_rows, model.backbone.text_prefix(token_ids, mask), mask))


def question_task(model: FiberImageText, batch: QuestionBatch) -> dict[str, Tensor]:
    """Answers to questions (VQA)."""
    fused = model.backbone.encode_pair(
        batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
    )
    return {"vqa": vqa_loss(model.vqa_logits(model.pooled(fused)), batch.targets)}


def reasoning_task(model: FiberImageText, batch: ReasoningBatch) -> dict[str, Tensor]:
    """Statements about two pictures (NLVR2)."""
    return {
        "nlvr2": nlvr2_loss(
            model.statement_logits(batch.images, batch.token_ids, batch.text_mask), batch.truths
        )
    }


def caption_task(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    reference: FiberImageText | None = None,
) -> dict[str, Tensor]:
    """Captions, each token from the picture and the tokens before it.

    Args:
        model: what is trained.
        batch: pictures with captions.
        task: which objective.
        reference: the frozen copy that the objective "gold" weighs tokens by.
    """
    logits = model.next_token_logits(batch.images, batch.token_ids, batch.text_mask)
    if reference is None:
        return {"caption": caption_loss(logits, batch.token_ids, batch.text_mask)}
    with torch.no_grad():
        believed = reference.next_token_logits(batch.images, batch.token_ids, batch.text_mask)
    loss = gold_loss(logits, believed, batch.token_ids, batch.text_mask, divisor=task.gold_divisor)
    return {"caption": loss}


def self_critical_task(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    draw: Draw,
    rewards: CaptionRewards,
) -> dict[str, Tensor]:
    """Captions by likelihood, and samples made likelier by how much they agree with people's.

    The picture is encoded once for both. Samples are drawn in the mode that the model is in, with
    dropout while it trains (as published), and then read again with gradient. What is drawn for a
    picture depends on the pass and its row in the whole batch alone: ranks draw what one process
    does.

    Args:
        model: what is trained.
        batch: pictures with captions.
        task: how many samples, and what their reward is compared with.
        draw: source of this pass's random numbers.
        rewards: of the data that the batch is from.

    Returns:
        `caption` and `self_critical`; and `cider_d`, the mean reward, which has no gradient.

    Source: self-critical training (Rennie et al. 2017) as in FIBER.
    """
    tokens = model.backbone.encode_image(batch.images).stages[-1]
    text = model.decode_text(tokens, batch.token_ids, batch.text_mask)
    likelihood = caption_loss(model.caption_logits(text), batch.token_ids, batch.text_mask)

    counts = row_counts(batch.image_ids)
    samples = sample_captions(
        model,
        tokens,
        samples_per_image=task.cider_samples,
        max_tokens=model.config.max_tokens,
        generator=_generators(draw, sum(counts[: rank()]), len(batch), tokens.device),
    ).token_ids
    earned = rewards(batch.keys, samples)
    loss = self_critical_loss(
        caption_log_probs(model, tokens, samples),
        is_written(samples),
        earned,
        baseline=others_mean(earned) if task.cider_baseline == "others" else PUBLISHED_BASELINE,
    )
    mean = earned.mean(1).sum() * world_size() / sum(counts)
    return {"caption": likelihood, "self_critical": loss, "cider_d": mean}


def _generators(
    draw: Draw, first_row: int, count: int, device: torch.device
) -> list[torch.Generator]:
    """Make a source of random numbers for each of `count` rows of the whole batch."""
    rows = np.arange(first_row, first_row + count)
    uniforms = counter_uniforms(draw.seed, draw.number, _SAMPLES, rows)
    return [
        # All 53 random bits: generators of the CPU begin from the lowest 32 of their seed.
        torch.Generator(device).manual_seed(int(uniform * 2**53))
        for uniform in uniforms.tolist()
    ]


def grounding_task(model: FiberDetector, batch: GroundingBatch) -> dict[str, Tensor]:
    """Boxes for the spans of a text."""
    output = model(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
    return grounding_losses(output, batch, model.config)
