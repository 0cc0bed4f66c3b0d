"""Objectives: compute the named losses of a task's batch.

The image-text losses share computation below the first fused block: the image is encoded once for
MLM, ITC and all ITM pairs, and the text is encoded twice, unmasked and masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fiber.data.batch import ImageTextBatch, QuestionBatch, RankingBatch
from fiber.losses.caption import (
    PUBLISHED_BASELINE,
    gold_loss,
    others_mean,
    self_critical_loss,
)
from fiber.losses.distributed import fetch_rows, rank, row_counts, world_size
from fiber.losses.grounding import grounding_losses
from fiber.losses.itc import Similarities, clamp_temperature, itc_loss, text_fingerprints
from fiber.losses.itc_queue import PairQueue, queue_itc_loss, queued_negatives
from fiber.losses.itm import (
    counter_uniforms,
    half_of_negatives,
    half_pairs,
    hard_negatives,
    itm_loss,
    join_pairs,
    matching_pairs,
    pair_loss,
)
from fiber.losses.language import (
    caption_loss,
    entailment_loss,
    mlm_loss,
    nlvr2_loss,
    ranking_loss,
    vqa_loss,
)
from fiber.models.features import ImagePrefix
from fiber.models.fiber.captioner import caption_log_probs, is_written, sample_captions
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.image_text import ImageTextModel
from fiber.models.meter.image_text import MeterImageText
from fiber.models.registry import Network
from fiber.training.config.tasks import CaptionTask, ImageTextTask, RankingTask, TasksConfig
from fiber.training.objective_state import ObjectiveState
from fiber.training.scst import CaptionRewards
from fiber.training.split_backward import SplitGraph

#: Stream of `counter_uniforms` that seeds caption sampling; distinct from those of `losses.itm`.
_CAPTION_STREAM = 4


@dataclass(frozen=True)
class Draw:
    """Key of a micro-batch's random numbers: the run's seed and the micro-batch's index.

    It is the same on every rank.
    """

    seed: int
    number: int


def image_text_branches(
    model: ImageTextModel,
    batch: ImageTextBatch,
    task: ImageTextTask,
    draw: Draw,
    queue: PairQueue | None = None,
    split: SplitGraph | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the MLM, ITC and ITM losses one branch at a time, from shared encoder prefixes.

    In training mode, the batch is added to the queue after the last branch. `split` detaches the
    prefixes from the graph; None keeps a single graph.

    Source: FIBER (Dou et al. 2022); ITM with hard negatives as in ALBEF (Li et al. 2021).
    """
    backbone, mask = model.backbone, batch.text_mask
    cut = split.cut if split is not None else lambda tensor: tensor
    image_prefix = ImagePrefix(cut(backbone.image_prefix(batch.images).tokens))

    if task.mlm > 0:
        yield {"mlm": _mlm(model, batch, image_prefix)}

    if task.itc == 0 and task.itm == 0:
        return
    text_prefix = cut(backbone.text_prefix(batch.token_ids, mask))
    contrast = None
    if task.has_contrast:
        # Hard negatives need the similarities even if ITC is not trained.
        with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
            fiber = cast(FiberImageText, model)
            loss, contrast = _itc(fiber, batch, image_prefix, text_prefix, queue)
        if task.itc > 0:
            yield {"itc": loss}
        # Free the graph of a loss whose backward pass has run.
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


def _mlm(model: ImageTextModel, batch: ImageTextBatch, image_prefix: ImagePrefix) -> Tensor:
    """Compute the MLM loss at the masked tokens, conditioned on the image."""
    mask = batch.text_mask
    masked_prefix = model.backbone.text_prefix(batch.masked_ids, mask)
    fused = model.backbone.fuse(image_prefix, masked_prefix, mask, wanted="text")
    assert fused.text is not None
    picked = batch.mlm_labels != -100
    return mlm_loss(model.mlm_logits(fused.text, picked), batch.mlm_labels[picked])


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
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    queue: PairQueue | None,
) -> tuple[Tensor, _Contrast]:
    """Compute the ITC loss over the global batch, or against the queue."""
    backbone, mask = model.backbone, batch.text_mask
    images = model.image_vectors(backbone.complete_image(image_prefix))
    texts = model.text_vectors(backbone.complete_text(text_prefix, mask, wanted="pooled"))
    text_ids = text_fingerprints(batch.token_ids, mask)
    inputs = images, texts, model.temperature, batch.image_ids, text_ids
    loss, similarities = itc_loss(*inputs) if queue is None else queue_itc_loss(*inputs, queue)
    return loss, _Contrast(similarities, images.detach(), texts.detach(), text_ids)


def _itm(
    model: ImageTextModel,
    batch: ImageTextBatch,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    similarities: Similarities | None,
    itm_negatives: str,
    draw: Draw,
    queue: PairQueue | None,
) -> Tensor:
    """Compute the ITM loss with random images or hard negatives."""
    mask = batch.text_mask
    if similarities is None or itm_negatives == "random":
        half = half_pairs(batch.image_ids, seed=draw.seed, step=draw.number)
        images = fetch_rows(image_prefix.tokens, half.image_index, half.counts)
        return labeled_itm_loss(model, ImagePrefix(images), text_prefix, mask, half.labels)
    negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
    if queue is None:
        pairs = matching_pairs(image_prefix.tokens, text_prefix, mask, negatives)
    else:
        # Encode the queued negatives, without padding columns.
        images, token_ids, masks = queued_negatives(
            batch.images, batch.token_ids, mask, queue, negatives
        )
        longest = int(masks.sum(1).max()) if len(masks) else 0
        token_ids, masks = token_ids[:, :longest], masks[:, :longest]
        image_rows = model.backbone.image_prefix(images).tokens
        text_rows = model.backbone.text_prefix(token_ids, masks)
        pairs = join_pairs((image_prefix.tokens, text_prefix, mask), (image_rows, text_rows, masks))
    images, texts, masks = pairs.image_rows, pairs.text_rows, pairs.text_mask
    rows = None
    if itm_negatives == "half":
        first_row = similarities.first_row
        rows = half_of_negatives(len(batch), first_row).to(images.device)
        images, texts, masks = images[rows], texts[rows], masks[rows]
    fused = model.backbone.fuse(ImagePrefix(images), texts, masks, wanted="pooled")
    return itm_loss(model.itm_logits(model.pooled(fused)), len(batch), negatives, rows=rows)


def labeled_itm_loss(
    model: ImageTextModel,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    text_mask: Tensor,
    labels: Tensor,
) -> Tensor:
    """Compute the ITM loss of B pairs of an image and a text; labels as for `pair_loss`."""
    fused = model.backbone.fuse(image_prefix, text_prefix, text_mask, wanted="pooled")
    return pair_loss(model.itm_logits(model.pooled(fused)), labels)


def ranking_branches(
    model: MeterImageText,
    batch: RankingBatch,
    task: RankingTask,
    draw: Draw,
    split: SplitGraph | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the ITM loss and the ranking loss of each caption among K false ones.

    The image is encoded once for all pairs, and the 1 + K texts once for both losses. `split` is as
    for `image_text_branches`.

    Source: METER (Dou et al. 2022), fine-tuning for retrieval, which encodes the image for each
    pair and draws the negatives of ITM from the whole dataset.
    """
    backbone = model.backbone
    cut = split.cut if split is not None else lambda tensor: tensor
    # (B, 1 + K, L), its own text first
    ids = torch.cat((batch.token_ids[:, None], batch.false_ids), 1)
    masks = torch.cat((batch.text_mask[:, None], batch.false_mask), 1)
    texts = ids.shape[1]
    images = ImagePrefix(cut(backbone.image_prefix(batch.images).tokens))
    text_prefix = cut(backbone.text_prefix(ids.flatten(0, 1), masks.flatten(0, 1)))
    if task.itm > 0:
        yield {"itm": _itm(model, batch, images, text_prefix[::texts], None, "random", draw, None)}
    rows = torch.arange(len(batch), device=ids.device).repeat_interleave(texts)
    fused = backbone.fuse(images.take(rows), text_prefix, masks.flatten(0, 1), wanted="pooled")
    scores = model.rank_scores(model.pooled(fused)).view(len(batch), texts)
    yield {"rank": ranking_loss(scores)}


def caption_losses(
    model: FiberImageText,
    batch: ImageTextBatch,
    task: CaptionTask,
    reference: FiberImageText | None = None,
) -> dict[str, Tensor]:
    """Compute the loss of predicting each caption token from the image and the tokens before it.

    `reference` is the frozen copy of the model for the objective "gold". If it is None, the loss is
    maximum likelihood.
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
    """Compute the caption likelihood and a policy-gradient loss on sampled captions (SCST).

    Both share one image encoding. Captions are sampled with the model in its current mode (with
    dropout in training, as in the published code). A second, differentiable pass then computes
    their log probabilities. An image's samples depend on `draw` and its row in the global batch,
    not on world size.

    Returns:
        The losses `caption` and `self_critical`, and the mean reward `cider_d` (no gradient).

    Source: self-critical training (Rennie et al. 2017) as in FIBER.
    """
    tokens = model.backbone.encode_image(batch.images).stages[-1]
    text = model.decode_text(tokens, batch.token_ids, batch.text_mask)
    likelihood = caption_loss(model.caption_logits(text), batch.token_ids, batch.text_mask)

    counts = row_counts(batch.image_ids)
    # One generator per row of the global batch, seeded with all 53 random bits, because CPU
    # generators only use the lowest 32 bits of a seed.
    first = sum(counts[: rank()])
    rows = np.arange(first, first + len(batch))
    uniforms = counter_uniforms(draw.seed, draw.number, _CAPTION_STREAM, rows).tolist()
    generators = [
        torch.Generator(tokens.device).manual_seed(int(uniform * 2**53)) for uniform in uniforms
    ]
    samples = sample_captions(
        model,
        tokens,
        samples_per_image=task.cider_samples,
        max_tokens=model.config.max_tokens,
        generator=generators,
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


class TrainStep(nn.Module):
    """Model and objectives: the module to wrap with torch.compile, FSDP2 or DDP.

    `forward` is an ordinary forward pass with one graph:

        losses = step(task, batch, draw)
        sum(weights[name] * loss for name, loss in losses.items()).backward()

    `branches` computes the same losses one branch at a time, for callers that run each backward
    before the next branch is computed (see `fiber.training.split_backward`).

    The parameters of this module are those of the model; the trainer saves `state`.
    """

    def __init__(
        self,
        model: Network,
        tasks: TasksConfig,
        state: ObjectiveState | None = None,
    ) -> None:
        """Wrap a detector for the task "grounding", or an image-text model for all other tasks.

        `state` is required by stateful objectives, such as ITC with a queue.
        """
        super().__init__()
        self.model = model
        self.tasks = tasks
        self.state = state or ObjectiveState()

    def forward(self, task: str, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Compute the losses of one task; see `branches` for the arguments.

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
        """Yield the losses of one task, one branch at a time.

        Exhaust the iterator: the ITC queue stores the batch after the last branch.

        Args:
            task: name of a `TasksConfig` field.
            batch: batch of the task's type.
            draw: key of the random numbers.
            split: detaches tensors shared by branches from the graph. The caller then runs each
                branch's backward before requesting the next branch, and calls `split.backward()`
                at the end.

        Yields:
            Unweighted scalars by name; no name occurs in two branches.
        """
        if isinstance(self.model, FiberDetector):
            output = self.model(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
            yield grounding_losses(output, batch, self.model.config)
        elif task == "image_text":
            yield from image_text_branches(
                self.model, batch, self.tasks.image_text, draw, self.state.queue, split
            )
        elif task == "question":
            fused = self.model.backbone.encode_pair(
                batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
            )
            logits = self.model.vqa_logits(self.model.pooled(fused))
            yield {"vqa": vqa_loss(logits, batch.targets)}
        elif task == "reasoning":
            logits = self.model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
            yield {"nlvr2": nlvr2_loss(logits, batch.truths)}
        elif task == "entailment":
            yield self._entailment_loss(batch)
        elif task == "ranking":
            meter = cast(MeterImageText, self.model)
            yield from ranking_branches(meter, batch, self.tasks.ranking, draw, split)
        else:
            yield self._caption_losses(batch, draw)

    def pass_through(self, tensor: Tensor) -> Tensor:
        """Return the tensor; under FSDP2, gradients can be reduced by its backward pass."""
        return tensor * 1

    def clamp_parameters(self) -> None:
        """Clamp the ITC temperature to its range; call this after each optimizer step."""
        temperature = getattr(self.model, "temperature", None)
        if temperature is not None:
            clamp_temperature(temperature)

    def num_branches(self, task: str) -> int:
        """Return the number of branches that `branches` yields for a task."""
        if task == "image_text":
            weights = self.tasks.image_text
            return sum(weight > 0 for weight in (weights.mlm, weights.itc, weights.itm))
        return 2 if task == "ranking" and self.tasks.ranking.itm > 0 else 1

    def _entailment_loss(self, batch: QuestionBatch) -> dict[str, Tensor]:
        model = cast(MeterImageText, self.model)
        fused = model.backbone.encode_pair(
            batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
        )
        logits = model.snli_logits(model.pooled(fused))
        return {"snli": entailment_loss(logits, batch.targets.argmax(1))}

    def _caption_losses(self, batch: ImageTextBatch, draw: Draw) -> dict[str, Tensor]:
        model, task = cast(FiberImageText, self.model), self.tasks.caption
        if self.state.rewards is not None:
            return self_critical_losses(model, batch, task, draw, self.state.rewards)
        return caption_losses(model, batch, task, self.state.reference)
