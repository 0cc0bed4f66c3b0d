"""What one pass trains: each task turns a batch into named losses.

Passes share what they can: the picture below the first fused block runs once and serves contrast,
masked words and all matching pairs; the text below it runs once as it is and once masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fiber.data.batches import GroundingBatch, ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.losses.contrastive import Similarities, itc_loss, text_fingerprints
from fiber.losses.grounding import grounding_losses
from fiber.losses.language import caption_loss, mlm_loss, nlvr2_loss, vqa_loss
from fiber.losses.matching import hard_negatives, itm_loss, matching_pairs
from fiber.models.backbone import ImagePrefix
from fiber.models.detector import FiberDetector
from fiber.models.image_text import FiberImageText
from fiber.training.run_config import ImageTextTask, TasksConfig


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
) -> dict[str, Tensor]:
    """Compute the losses of one task, unweighted.

    Args:
        name: of the task, a field of `TasksConfig`.
        model: the detector for grounding, else the image-text model.
        batch: of the type that the task reads.
        tasks: settings of all tasks.
        draw: source of this pass's random numbers.

    Returns:
        Scalars by name; their mean over the ranks is the loss of the whole batch.
    """
    if isinstance(model, FiberDetector):
        return grounding_task(model, batch)
    if name == "image_text":
        return image_text_task(model, batch, tasks.image_text, draw)
    if name == "question":
        return question_task(model, batch)
    if name == "reasoning":
        return reasoning_task(model, batch)
    return caption_task(model, batch)


def image_text_task(
    model: FiberImageText, batch: ImageTextBatch, task: ImageTextTask, draw: Draw
) -> dict[str, Tensor]:
    """Contrast, masked words and matching from shared prefixes.

    Source: FIBER (Dou et al. 2022); matching with hard negatives as in ALBEF (Li et al. 2021).
    """
    backbone, mask, losses = model.backbone, batch.text_mask, {}
    image_prefix = backbone.image_prefix(batch.images)

    if task.mlm > 0:
        masked_prefix = backbone.text_prefix(batch.masked_ids, mask)
        fused = backbone.fuse(image_prefix, masked_prefix, mask)
        assert fused.text is not None
        picked = batch.mlm_labels != -100
        losses["mlm"] = mlm_loss(model.mlm_logits(fused.text, picked), batch.mlm_labels[picked])

    if task.itc > 0 or task.itm > 0:
        text_prefix = backbone.text_prefix(batch.token_ids, mask)
        # Matching needs the similarities even where contrast itself is not trained.
        with torch.set_grad_enabled(task.itc > 0 and torch.is_grad_enabled()):
            itc, similarities = itc_loss(
                model.image_vectors(backbone.complete_image(image_prefix)),
                model.text_vectors(backbone.complete_text(text_prefix, mask)),
                model.temperature,
                batch.image_ids,
                text_fingerprints(batch.token_ids, mask),
            )
        if task.itc > 0:
            losses["itc"] = itc
        if task.itm > 0:
            losses["itm"] = _matching(
                model, image_prefix, text_prefix, mask, similarities, task.itm_negatives, draw
            )
    return losses


def _matching(
    model: FiberImageText,
    image_prefix: ImagePrefix,
    text_prefix: Tensor,
    text_mask: Tensor,
    similarities: Similarities,
    kept: str,
    draw: Draw,
) -> Tensor:
    """The matching loss: true pairs against pairs with a similar text or a similar picture."""
    negatives = hard_negatives(similarities, seed=draw.seed, step=draw.number)
    pairs = matching_pairs(image_prefix.tokens, text_prefix, text_mask, negatives)
    images, texts, masks = pairs.image_rows, pairs.text_rows, pairs.text_mask
    batch_size = len(text_mask)
    rows = None
    if kept == "half":
        rows = half_of_negatives(batch_size, similarities.first_row).to(images.device)
        images, texts, masks = images[rows], texts[rows], masks[rows]
    fused = model.backbone.fuse(ImagePrefix(images), texts, masks)
    return itm_loss(model.itm_logits(model.pooled(fused)), batch_size, negatives, rows=rows)


def half_of_negatives(batch_size: int, first_row: int) -> Tensor:
    """Choose, of the 3B matching pairs, the true ones and one negative for each.

    Args:
        batch_size: B of this rank.
        first_row: number of this rank's first row in the whole batch, so that ranks choose what one
            process with the whole batch would.

    Returns:
        (2B,) int64: true pairs, then a wrong text for even rows and a wrong picture for odd ones.
    """
    rows = torch.arange(batch_size)
    is_odd = (rows + first_row) % 2
    return torch.cat([rows, rows + batch_size * (1 + is_odd)])


def question_task(model: FiberImageText, batch: QuestionBatch) -> dict[str, Tensor]:
    """Answers to questions (VQA)."""
    fused = model.backbone.encode_pair(batch.images, batch.token_ids, batch.text_mask)
    return {"vqa": vqa_loss(model.vqa_logits(model.pooled(fused)), batch.targets)}


def reasoning_logits(model: FiberImageText, batch: ReasoningBatch) -> Tensor:
    """Logits of "the statement is true of both pictures": (B, 2); both pictures run in one pass."""
    backbone = model.backbone
    # (B, 2, 3, H, W) -> (2B, 3, H, W), all left pictures before all right ones
    images = batch.images.transpose(0, 1).flatten(0, 1)
    text = backbone.text_prefix(batch.token_ids, batch.text_mask)
    fused = backbone.fuse(
        backbone.image_prefix(images), torch.cat([text, text]), batch.text_mask.repeat(2, 1)
    )
    left, right = model.pooled(fused).chunk(2)
    return model.nlvr2_logits(left, right)


def reasoning_task(model: FiberImageText, batch: ReasoningBatch) -> dict[str, Tensor]:
    """Statements about two pictures (NLVR2)."""
    return {"nlvr2": nlvr2_loss(reasoning_logits(model, batch), batch.truths)}


def caption_task(model: FiberImageText, batch: ImageTextBatch) -> dict[str, Tensor]:
    """Captions, each token from the picture and the tokens before it."""
    tokens = model.backbone.encode_image(batch.images).stages[-1]
    text = model.decode_text(tokens, batch.token_ids, batch.text_mask)
    return {"caption": caption_loss(model.caption_logits(text), batch.token_ids, batch.text_mask)}


def grounding_task(model: FiberDetector, batch: GroundingBatch) -> dict[str, Tensor]:
    """Boxes for the spans of a text."""
    output = model(batch.images, batch.token_ids, batch.text_mask)
    return grounding_losses(output, batch, model.config)
