"""Losses over tokens and answers: MLM, captions, VQA, NLVR2.

Each is the mean over the global batch (all ranks): a rank returns its own sum times the number of
ranks over the count of all ranks, so that the mean over ranks of losses and of gradients equals
that of one process with the global batch. Logits are cast to float32.

Letters: B samples of this rank, L text tokens, V vocabulary, A answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import all_rank_sum, wide, world_size

#: Label of a token that is not masked.
IGNORED = -100


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the masked tokens of all ranks.

    Args:
        logits: (B, L, V), or (M, V) at M masked positions only.
        labels: (B, L) or (M,) int64: the original id of a masked token, else -100.

    Returns:
        The loss; a 0 with gradient if no rank has a masked token.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: RoBERTa (Liu et al. 2019), as in FIBER.
    """
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"masked-word logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (B, L, V) and (B, L), or (M, V) and (M,)"
        )
    _check_integers("masked-word labels", labels)
    return _mean_cross_entropy(logits.flatten(0, -2), labels.flatten())


def caption_loss(logits: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Mean cross entropy of next tokens over the captions of all ranks.

    Position t predicts token t + 1. The last real token (</s>) is only a target; padding is
    ignored.

    Args:
        logits: (B, L, V) from `decode_text`.
        token_ids: (B, L) int64 with <s> and </s>.
        text_mask: (B, L) bool, True = real token.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    targets = next_tokens(logits, token_ids, text_mask)
    return _mean_cross_entropy(logits.flatten(0, 1), targets.flatten())


def next_tokens(logits: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Return the target of each position, the token after it.

    Args:
        logits: (B, L, V), whose shape is checked.
        token_ids: (B, L) int64.
        text_mask: (B, L) bool, True = real token.

    Returns:
        (B, L) int64: -100 if no real token follows.

    Raises:
        ValueError: if the shapes do not fit together.
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


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy, sum over answers, mean over the questions of all ranks.

    Args:
        logits: (B, A).
        targets: (B, A) soft scores in [0, 1].

    Raises:
        ValueError: if the shapes differ.

    Source: FIBER's published code: mean over all entries times the number of answers.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"answer logits have shape {tuple(logits.shape)}, targets {tuple(targets.shape)};"
            " expected both (B, answers)"
        )
    logits = wide(logits)
    total = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    questions = all_rank_sum(torch.tensor(logits.shape[0], device=logits.device)).clamp(min=1)
    return total * world_size() / questions


def nlvr2_loss(logits: Tensor, truths: Tensor) -> Tensor:
    """Mean cross entropy over the statements of all ranks.

    Args:
        logits: (B, 2); column 1 is "true".
        truths: (B,) int64, 1 for true statements, else 0.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or tuple(truths.shape) != (logits.shape[0],):
        raise ValueError(
            f"statement logits have shape {tuple(logits.shape)}, truths {tuple(truths.shape)};"
            " expected (B, 2) and (B,)"
        )
    _check_integers("truths", truths)
    return _mean_cross_entropy(logits, truths)


def _check_integers(name: str, values: Tensor) -> None:
    if values.dtype != torch.int64:
        raise ValueError(f"{name} are {values.dtype}; expected torch.int64")


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels of all ranks that are not IGNORED; logits (N, V), labels (N,)."""
    total = F.cross_entropy(wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    picked = all_rank_sum((labels != IGNORED).sum()).clamp(min=1)
    return total * world_size() / picked
