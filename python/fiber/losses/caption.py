"""Losses of a captioner: maximum likelihood, and GOLD (off-policy) and SCST for fine-tuning.

`whole` and means over ranks are defined as in `losses.cross_entropy`.

Shapes: B captions on this rank, L text tokens, V vocabulary, S samples per image; token_ids are
(B, L) int64 with <s> and </s>, text_mask is (B, L) bool, True = real token.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.cross_entropy import IGNORED, check_integers, mean_cross_entropy
from fiber.losses.distributed import rank_mean, wide

#: Minimum token weight, as in the published code.
LEAST_WEIGHT = 0.1
#: Added to probabilities and to the "padding" divisor, as in the published code.
_EPS = 1e-9
#: Constant baseline and scale of the rewards in the published code.
PUBLISHED_BASELINE, PUBLISHED_SCALE = 1.0, 100.0


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
    check_integers("caption token_ids", token_ids)
    following = token_ids[:, 1:].masked_fill(~text_mask[:, 1:].bool(), IGNORED)
    return F.pad(following, [0, 1], value=IGNORED)


def gold_loss(
    logits: Tensor,
    reference_logits: Tensor,
    token_ids: Tensor,
    text_mask: Tensor,
    *,
    divisor: Literal["tokens", "padding"] = "tokens",
    whole: Tensor | None = None,
) -> Tensor:
    """Compute the next-token cross entropy, weighted by a frozen model's probabilities.

    The weight of token t is max(p_t q_t, 0.1), where p_t is its probability in the frozen model and
    q_t the mean of p from t to the end of the caption.

    The logits of both models are (B, L, V). The loss is averaged over all captions with a target.
    Each caption's sum is divided by its number of targets. If `divisor` is "padding", it is instead
    divided by the number of positions without a target, as in the published code; short captions
    then weigh less.

    Raises:
        ValueError: if the shapes do not match or the divisor is unknown.

    Source: GOLD (Pang and He 2021), as in FIBER.
    """
    if reference_logits.shape != logits.shape:
        raise ValueError(
            f"reference_logits have shape {tuple(reference_logits.shape)}; expected"
            f" {tuple(logits.shape)}, the shape of logits"
        )
    if divisor not in ("tokens", "padding"):
        raise ValueError(f"divisor: expected 'tokens' or 'padding', got {divisor!r}")
    targets = next_tokens(logits, token_ids, text_mask)
    real = targets >= 0
    weights = gold_weights(reference_logits, targets)
    losses = F.cross_entropy(wide(logits).transpose(1, 2), targets, reduction="none")
    counts = real.sum(1)
    if divisor == "tokens":
        per_caption = (weights * losses).sum(1) / counts.clamp(min=1)
    else:
        per_caption = (weights * losses).sum(1) / ((~real).sum(1) + _EPS)
    return rank_mean(per_caption.sum(), (counts > 0).sum(), whole)


@torch.no_grad()
def gold_weights(reference_logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the (B, L) float32 token weights of `gold_loss`, in [0.1, 1].

    `targets` is (B, L) int64; weights are undefined where it is negative (no target).
    """
    real = targets >= 0
    # The published code uses exp(log(softmax + 1e-9)).
    probabilities = wide(reference_logits).softmax(-1) + _EPS
    p = probabilities.gather(2, targets.clamp(min=0)[..., None])[..., 0] * real
    following = real.flip(1).cumsum(1).flip(1)
    q = p.flip(1).cumsum(1).flip(1) / following.clamp(min=1)
    return (p * q).clamp(min=LEAST_WEIGHT)


def self_critical_loss(
    log_probs: Tensor,
    is_token: Tensor,
    rewards: Tensor,
    *,
    baseline: Tensor | float = PUBLISHED_BASELINE,
    scale: float = PUBLISHED_SCALE,
    whole: Tensor | None = None,
) -> Tensor:
    """Compute the REINFORCE loss of sampled captions with a baseline.

    Args:
        log_probs: (B, S, L) differentiable log probability of each sampled token.
        is_token: (B, S, L) bool, True for sampled tokens, up to and including </s>.
        rewards: (B, S) CIDEr-D of each sample, from 0 to 10 (see `metrics.cider`); detached.
        baseline: number or (B, S) tensor, such as `others_mean`, subtracted from the rewards.
        scale: factor on the rewards.
        whole: number of images of all ranks, if known.

    Returns:
        scale * (baseline - reward) times the mean log probability of a sample's tokens, summed over
        the samples of an image and averaged over the images of all ranks.

    Raises:
        ValueError: if the shapes do not match.

    Source: self-critical training (Rennie et al. 2017) with the published constant baseline.
    """
    if log_probs.shape != is_token.shape or rewards.shape != log_probs.shape[:2]:
        raise ValueError(
            f"log_probs have shape {tuple(log_probs.shape)}, is_token {tuple(is_token.shape)},"
            f" rewards {tuple(rewards.shape)}; expected (B, S, L), (B, S, L) and (B, S)"
        )
    # Masked positions may have log probability -inf, and 0 * inf is NaN.
    kept = wide(log_probs).masked_fill(~is_token, 0.0)
    means = kept.sum(2) / is_token.sum(2).clamp(min=1)
    total = (means * (scale * (baseline - wide(rewards.detach())))).sum()
    return rank_mean(total, torch.tensor(len(rewards), device=rewards.device), whole)


def others_mean(rewards: Tensor) -> Tensor:
    """For each of (B, S) samples, average the rewards of the other samples of its image."""
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"expected at least 2 samples per image, got {samples}")
    return (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
