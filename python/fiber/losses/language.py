"""Losses for MLM, captioning, VQA, NLVR2 and entailment.

Each loss is a mean over the global batch (all ranks): a rank returns its own sum times the world
size, divided by the count over all ranks, so the mean over ranks equals the loss of one process on
the global batch. Logits are cast to float32. `whole` is the count over all ranks, if known; pass it
for a part of the rank's samples, so that the losses of all parts add up. All functions raise
ValueError if shapes do not match.

Shapes: B samples on this rank, L text tokens, V vocabulary, A answers; token_ids are (B, L) int64
with <s> and </s>, text_mask is (B, L) bool, True = real token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import rank_mean, wide

#: Label of a token or pair without a target.
IGNORED = -100


def mlm_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the masked tokens of all ranks, or 0 if there are none.

    Args:
        logits: (B, L, V), or (M, V) at M masked positions only.
        labels: (B, L) or (M,) int64: the original id of each masked token, else -100.
        whole: number of masked tokens of all ranks, if known.

    Source: RoBERTa (Liu et al. 2019), as in FIBER.
    """
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"MLM logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (B, L, V) and (B, L), or (M, V) and (M,)"
        )
    _check_integers("MLM labels", labels)
    return mean_cross_entropy(logits.flatten(0, -2), labels.flatten(), whole=whole)


def caption_loss(
    logits: Tensor, token_ids: Tensor, text_mask: Tensor, *, whole: Tensor | None = None
) -> Tensor:
    """Compute the mean next-token cross entropy over the captions of all ranks.

    Position t of the (B, L, V) logits predicts token t + 1; padding is ignored.
    """
    targets = next_tokens(logits, token_ids, text_mask)
    return mean_cross_entropy(logits.flatten(0, 1), targets.flatten(), whole=whole)


def next_tokens(logits: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Return the (B, L) int64 next token of each position, or -100 if no real token follows.

    `logits` (B, L, V) is only used to check the shapes.
    """
    if logits.ndim != 3 or logits.shape[:2] != token_ids.shape:
        raise ValueError(
            f"caption logits have shape {tuple(logits.shape)}, token_ids {tuple(token_ids.shape)};"
            " expected (B, L, V) and (B, L)"
        )
    if text_mask.shape != token_ids.shape:
        raise ValueError(
            f"text_mask has shape {tuple(text_mask.shape)}; expected {tuple(token_ids.shape)}"
        )
    _check_integers("caption token_ids", token_ids)
    following = token_ids[:, 1:].masked_fill(~text_mask[:, 1:].bool(), IGNORED)
    return F.pad(following, [0, 1], value=IGNORED)


def vqa_loss(logits: Tensor, targets: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the binary cross entropy, summed over answers and averaged over all ranks' questions.

    Both arguments are (B, A); targets are soft scores in [0, 1].

    Source: FIBER's published code (the mean over all entries, multiplied by the number of answers).
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"VQA logits have shape {tuple(logits.shape)}, targets {tuple(targets.shape)};"
            " expected both to have shape (B, answers)"
        )
    logits = wide(logits)
    total = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return rank_mean(total, torch.tensor(logits.shape[0], device=logits.device), whole)


def nlvr2_loss(logits: Tensor, truths: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the statements of all ranks.

    Args:
        logits: (B, 2); column 1 is "true".
        truths: (B,) int64, 1 for true statements, else 0.
        whole: number of statements of all ranks, if known.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or tuple(truths.shape) != (logits.shape[0],):
        raise ValueError(
            f"NLVR2 logits have shape {tuple(logits.shape)}, truths {tuple(truths.shape)};"
            " expected (B, 2) and (B,)"
        )
    _check_integers("truths", truths)
    return mean_cross_entropy(logits, truths, whole=whole)


def entailment_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy over the image-text pairs of all ranks (SNLI-VE).

    Args:
        logits: (B, 3), in the order contradiction, neutral, entailment.
        labels: (B,) int64.
        whole: number of pairs of all ranks, if known.
    """
    if logits.ndim != 2 or logits.shape[1] != 3 or tuple(labels.shape) != (logits.shape[0],):
        raise ValueError(
            f"entailment logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (B, 3) and (B,)"
        )
    _check_integers("entailment labels", labels)
    return mean_cross_entropy(logits, labels, whole=whole)


def ranking_loss(scores: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean cross entropy of each image's own text among the texts scored with it.

    Args:
        scores: (B, 1 + K); column 0 is the image's own text, the others are K false texts.
        whole: number of images of all ranks, if known.

    Source: METER (Dou et al. 2022), fine-tuning for retrieval.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"ranking scores have shape {tuple(scores.shape)}; expected (B, 1 + K)")
    labels = scores.new_zeros(len(scores), dtype=torch.int64)
    return mean_cross_entropy(scores, labels, whole=whole)


def _check_integers(name: str, values: Tensor) -> None:
    if values.dtype != torch.int64:
        raise ValueError(f"{name} have dtype {values.dtype}; expected torch.int64")


def mean_cross_entropy(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Average the cross entropy of (N, V) logits over the labels of all ranks, except IGNORED."""
    total = F.cross_entropy(wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return rank_mean(total, num_labels(labels), whole)


def num_labels(labels: Tensor) -> Tensor:
    """Count the labels that are not IGNORED, as an int64 scalar."""
    return (labels != IGNORED).sum()
