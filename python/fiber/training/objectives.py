"""Objectives: each turns a batch of its task into named losses.

The image-text losses share what they can: the image below the first fused block is encoded once for
MLM, ITC and all pairs of ITM; the text below it once as it is and once masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fiber.data.batch import ImageTextBatch, QuestionBatch, ReasoningBatch
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
from fiber.training.objective_state import ObjectiveState
from fiber.training.scst import CaptionRewards
from fiber.training.split_backward import SplitGraph

#: Stream of `counter_uniforms` that seeds sampled captions; `fiber.losses.itm` uses others.
_CAPTION_STREAM = 4


@dataclass(frozen=True)
class Draw:
    """Key of the random numbers of one micro-batch; the same on every rank."""

    #: Seed of the run.
    seed: int
    #: Number of the micro-batch in the run.
    number: int


def image_text_branches(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: ImageTextTask,
    draw: Draw,
    queue: PairQueue | None = None,
    split: SplitGraph | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Compute MLM, ITC and ITM, one after the other, from shared prefixes of the two towers.

    Args:
        model: in training mode it writes the batch into the queue, after the last branch.
        batch: images with captions.
        task: which losses, and their forms.
        draw: key of the random numbers of this micro-batch.
        queue: older pairs, for ITC of the form "queue".
        split: cuts the prefixes from the graph, so that each branch can run backward before the
            next one is computed; None keeps one graph.

    Yields:
        One loss by name for each branch. No other tensor of a branch is kept past its turn.

    Source: FIBER (Dou et al. 2022); ITM with hard negatives as in ALBEF (Li et al. 2021).
    """
    backbone, mask = model.backbone, batch.text_mask
    image_prefix = ImagePrefix(_shared(backbone.image_prefix(batch.images).tokens, split))

    if task.mlm > 0:
        yield {"mlm": _mlm(model, batch, image_prefix)}

    if task.itc == 0 and task.itm == 0:
        return
    text_prefix = _shared(backbone.text_prefix(batch.token_ids, mask), split)
    contrast = None
    if task.has_contrast:
        # Hard negatives need the similarities even if ITC itself is not trained.
        with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
            loss, contrast = _itc(model, batch, image_prefix, text_prefix, queue)
        if task.itc > 0:
            yield {"itc": loss}
        # The graph of a loss that has run backward is not kept.
        del loss
    if task.itm > 0:
        similarities = contrast.similarities if contrast else None
        prefixes = image_prefix, text_prefix
        yield {"itm": _itm(model, batch, *prefixes, similarities, task.itm_negatives, draw, queue)}
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


def _shared(tensor: Tensor, split: SplitGraph | None) -> Tensor:
    return tensor if split is None else split.cut(tensor)


def _mlm(model: FiberImageText, batch: ImageTextBatch, image_prefix: ImagePrefix) -> Tensor:
    """MLM loss at the masked tokens, given the image."""
    mask = batch.text_mask
    masked_prefix = model.backbone.text_prefix(batch.masked_ids, mask)
    fused = model.backbone.fuse(image_prefix, masked_prefix, mask, wanted="text")
    assert fused.text is not None
    picked = batch.mlm_labels != -100
    return mlm_loss(model.mlm_logits(fused.text, picked), batch.mlm_labels[picked])


class _Contrast(NamedTuple):
    """What ITM and the queue take from ITC."""

    similarities: Similarities
    #: (B, D) of unit length, detached.
    image_vectors: Tensor
    text_vectors: Tensor
    #: (B,) int64, equal numbers mean the same text.
    text_ids: Tensor


def _itc(
    model: FiberImageText,
    batch: ImageTextBatch,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    queue: PairQueue | None,
) -> tuple[Tensor, _Contrast]:
    """ITC loss within the batch of all ranks, or against the queue."""
    backbone, mask = model.backbone, batch.text_mask
    images = model.image_vectors(backbone.complete_image(image_prefix))
    texts = model.text_vectors(backbone.complete_text(text_prefix, mask, wanted="pooled"))
    text_ids = text_fingerprints(batch.token_ids, mask)
    inputs = images, texts, model.temperature, batch.image_ids, text_ids
    loss, similarities = itc_loss(*inputs) if queue is None else queue_itc_loss(*inputs, queue)
    return loss, _Contrast(similarities, images.detach(), texts.detach(), text_ids)


def _itm(
    model: FiberImageText,
    batch: ImageTextBatch,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    similarities: Similarities | None,
    itm_negatives: str,
    draw: Draw,
    queue: PairQueue | None,
) -> Tensor:
    """ITM loss against random images, or against hard negatives of both kinds."""
    mask = batch.text_mask
    if similarities is None or itm_negatives == "random":
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
    if itm_negatives == "half":
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
    """Join the prefixes of the batch with those of queued negatives, which are encoded here."""
    images, token_ids, mask = wrong
    longest = int(mask.sum(1).max()) if len(mask) else 0
    token_ids, mask = token_ids[:, :longest], mask[:, :longest]
    image_rows = model.backbone.image_prefix(images).tokens
    return join_pairs(true, (image_rows, model.backbone.text_prefix(token_ids, mask), mask))


def vqa_losses(model: FiberImageText, batch: QuestionBatch) -> dict[str, Tensor]:
    """Classify answers to questions (VQA)."""
    fused = model.backbone.encode_pair(
        batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
    )
    return {"vqa": vqa_loss(model.vqa_logits(model.pooled(fused)), batch.targets)}


def nlvr2_losses(model: FiberImageText, batch: ReasoningBatch) -> dict[str, Tensor]:
    """Classify statements about two images as true or false (NLVR2)."""
    logits = model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
    return {"nlvr2": nlvr2_loss(logits, batch.truths)}


def caption_losses(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    reference: FiberImageText | None = None,
) -> dict[str, Tensor]:
    """Predict each token of a caption from the image and the tokens before it.

    Args:
        model: the trained model.
        batch: images with captions.
        task: settings of the objective.
        reference: frozen copy of the model, for the objective "gold"; None: plain likelihood.
    """
    logits = model.next_token_logits(batch.images, batch.token_ids, batch.text_mask)
    if reference is None:
        return {"caption": caption_loss(logits, batch.token_ids, batch.text_mask)}
    with torch.no_grad():
        frozen = reference.next_token_logits(batch.images, batch.token_ids, batch.text_mask)
    loss = gold_loss(logits, frozen, batch.token_ids, batch.text_mask, divisor=task.gold_divisor)
    return {"caption": loss}


def self_critical_losses(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    draw: Draw,
    rewards: CaptionRewards,
) -> dict[str, Tensor]:
    """Combine likelihood of captions with a policy gradient on sampled ones (SCST).

    The image is encoded once for both. Captions are sampled in the mode of the model, with dropout
    while it trains (as published), and then scored again with gradient. The samples of an image
    depend on `draw` and its row in the whole batch, not on the number of ranks.

    Args:
        model: the trained model.
        batch: images with captions.
        task: number of samples and baseline of the reward.
        draw: key of the random numbers of this micro-batch.
        rewards: CIDEr-D against the captions of the training data.

    Returns:
        `caption`, `self_critical` and, without gradient, the mean reward `cider_d`.

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
    cider = rewards(batch.keys, samples)
    loss = self_critical_loss(
        caption_log_probs(model, tokens, samples),
        is_written(samples),
        cider,
        baseline=others_mean(cider) if task.cider_baseline == "others" else PUBLISHED_BASELINE,
    )
    mean = cider.mean(1).sum() * world_size() / sum(counts)
    return {"caption": likelihood, "self_critical": loss, "cider_d": mean}


def _generators(
    draw: Draw, first_row: int, count: int, device: torch.device
) -> list[torch.Generator]:
    """Make one generator for each of `count` rows of the whole batch, starting at `first_row`."""
    rows = np.arange(first_row, first_row + count)
    uniforms = counter_uniforms(draw.seed, draw.number, _CAPTION_STREAM, rows)
    return [
        # All 53 random bits, because CPU generators use the lowest 32 bits of a seed.
        torch.Generator(device).manual_seed(int(uniform * 2**53))
        for uniform in uniforms.tolist()
    ]


class TrainStep(nn.Module):
    """Model and objectives: the module to wrap with torch.compile, FSDP2 or DDP.

    `forward` is an ordinary forward pass that leaves one graph:

        losses = step(task, batch, draw)
        sum(weights[name] * loss for name, loss in losses.items()).backward()

    `branches` computes the same losses one branch at a time, for callers that run each backward
    before the next one is computed (see `fiber.training.split_backward`).

    The parameters are those of the model alone; `state` is saved by the trainer.
    """

    def __init__(
        self,
        model: FiberImageText | FiberDetector,
        tasks: TasksConfig,
        state: ObjectiveState | None = None,
    ) -> None:
        """Args:
        model: the detector for the task "grounding", else the image-text model.
        tasks: settings of all tasks.
        state: of the objectives that keep one, such as the ITC queue; None for the others.
        """
        super().__init__()
        self.model = model
        self.tasks = tasks
        self.state = state if state is not None else ObjectiveState()

    def forward(self, task: str, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Compute the losses of one task.

        Args:
            task: a field of `TasksConfig`.
            batch: of the type that the task reads.
            draw: key of the random numbers of this micro-batch.

        Returns:
            Unweighted scalars by name. Their mean over the ranks is the loss of the whole batch.
        """
        return {
            name: loss
            for losses in self.branches(task, batch, draw)
            for name, loss in losses.items()
        }

    def branches(
        self, task: str, batch: Any, draw: Draw, split: SplitGraph | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Compute the losses of one task branch by branch.

        Iterate to the end: the ITC queue takes in the batch after the last branch.

        Args:
            task: a field of `TasksConfig`.
            batch: of the type that the task reads.
            draw: key of the random numbers of this micro-batch.
            split: cuts what branches share from the graph. The caller then runs each branch
                backward before it asks for the next one, and `split.backward()` at the end.

        Yields:
            Unweighted scalars by name, different names in each branch.
        """
        if isinstance(self.model, FiberDetector):
            output = self.model(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
            yield grounding_losses(output, batch, self.model.config)
        elif task == "image_text":
            yield from image_text_branches(
                self.model, batch, self.tasks.image_text, draw, self.state.queue, split
            )
        elif task == "question":
            yield vqa_losses(self.model, batch)
        elif task == "reasoning":
            yield nlvr2_losses(self.model, batch)
        elif self.state.rewards is not None:
            yield self_critical_losses(
                self.model, batch, self.tasks.caption, draw, self.state.rewards
            )
        else:
            yield caption_losses(self.model, batch, self.tasks.caption, self.state.reference)
