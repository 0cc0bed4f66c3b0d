"""Image-text matching (ITM): pairs with hard or random negatives, and their loss.

Pre-training with hard negatives uses 3B pairs, in this order: B true pairs, B images with a
mismatched text, B texts with a mismatched image. In fine-tuning without ITC, half of the texts keep
their image and the rest get a random different one.

Random samples depend only on (seed, step, index of the row in the global batch), so they are
independent of the world size. `step` is the index of the micro-batch in the run.

Shapes: B pairs on this rank, G pairs in the global batch (all ranks), L text tokens. A text_mask is
(B, L) bool, True = real token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiber.losses.cross_entropy import IGNORED, mean_cross_entropy
from fiber.losses.distributed import (
    all_rank_max,
    fetch_rows,
    gather_rows,
    rank,
    row_counts,
    world_size,
)
from fiber.losses.itc import Similarities


@dataclass(frozen=True)
class HardNegatives:
    """A negative text and image for each row on this rank.

    Indices refer to the candidates in `Similarities`: rows of the global batch, or this rank's rows
    followed by the queue.
    """

    #: (B,) int64, candidate index of each image's negative text and of each text's negative image.
    text_index: Tensor
    image_index: Tensor
    #: (B,) bool, False if no candidate is a negative. Both indices are then the row's own, and the
    #: loss ignores both pairs.
    exists: Tensor
    #: Number of rows on each rank.
    counts: tuple[int, ...]


@dataclass(frozen=True)
class HalfPairs:
    """Texts on this rank, each paired with its own or a mismatched image."""

    #: (B,) int64, global batch row of the image paired with each text.
    image_index: Tensor
    #: (B,) int64: 1 for a text's own image, 0 for a mismatched one, -100 (ignored) if the global
    #: batch has no different image.
    labels: Tensor
    #: Number of rows on each rank.
    counts: tuple[int, ...]


@dataclass(frozen=True)
class MatchingPairs:
    """The 3B pairs to score."""

    #: (3B, ...) images, (3B, L, ...) texts and their (3B, L) mask.
    image_rows: Tensor
    text_rows: Tensor
    text_mask: Tensor


def hard_negatives(similarities: Similarities, *, seed: int, step: int) -> HardNegatives:
    """Sample one negative text for each image and one negative image for each text.

    A candidate's probability is the softmax of its similarity over all negatives.

    Source: ALBEF (Li et al. 2021) 3.2; candidates from all ranks as in VLMo, which FIBER's paper
    follows. The published code adds 1e-9 to every weight; here true pairs have weight 0.
    """
    first, rows = similarities.first_row, similarities.is_negative.shape[0]
    numbers = np.arange(first, first + rows)
    exists = similarities.is_negative.any(1)
    own = torch.arange(rows, device=exists.device) + similarities.first_candidate
    sampled = []
    for stream, logits in enumerate((similarities.image_to_text, similarities.text_to_image)):
        uniforms = counter_uniforms(seed, step, stream, numbers)
        index = _sample_columns(logits, similarities.is_negative, torch.from_numpy(uniforms))
        sampled.append(torch.where(exists, index, own))
    return HardNegatives(*sampled, exists=exists, counts=similarities.counts)


def half_pairs(image_ids: Tensor, *, seed: int, step: int) -> HalfPairs:
    """Keep the image of half of the texts; pair each remaining text with a random mismatched image.

    A random G // 2 of the G texts in the global batch keep their image. The rest get an image
    sampled uniformly from the rows with a different image; `image_ids` (B,) identifies images.

    Raises:
        ValueError: if the global batch is a single pair.

    Source: ITM fine-tuning in the published code of FIBER, which samples the mismatched image from
    the whole dataset, including the text's own image.
    """
    counts = row_counts(image_ids)
    whole, rows = sum(counts), len(image_ids)
    if whole < 2:
        raise ValueError(
            "ITM with random images needs at least 2 pairs, since other pairs are the negatives;"
            f" got {whole} in the global batch (world size {world_size()})"
        )
    first = sum(counts[: rank()])
    order = counter_uniforms(seed, step, 2, np.arange(whole)).argsort(kind="stable")
    is_true = torch.zeros(whole, dtype=torch.bool)
    is_true[torch.from_numpy(order[: whole // 2])] = True
    is_true = is_true[first : first + rows].to(image_ids.device)
    is_other = image_ids[:, None] != gather_rows(image_ids, counts)[None]
    uniforms = counter_uniforms(seed, step, 3, np.arange(first, first + rows))
    others = _sample_columns(
        torch.zeros_like(is_other, dtype=torch.float32), is_other, torch.tensor(uniforms)
    )
    exists = is_other.any(1)
    own = torch.arange(rows, device=image_ids.device) + first
    return HalfPairs(
        image_index=torch.where(is_true | ~exists, own, others),
        labels=is_true.long().masked_fill(~is_true & ~exists, IGNORED),
        counts=counts,
    )


def negative_rows(
    image_rows: Tensor, text_rows: Tensor, text_mask: Tensor, negatives: HardNegatives
) -> tuple[Tensor, Tensor, Tensor]:
    """Fetch the images and texts of negatives differentiably from the ranks that own them.

    Args:
        image_rows: (B, ...) images of this rank, or their prefixes.
        text_rows: (B, L, ...) texts.
        text_mask: (B, L).
        negatives: rows to fetch.

    Returns:
        (B, ...) images, (B, L', ...) texts and their mask; L' is the largest L of all ranks.
    """
    longest = all_rank_max(text_rows.shape[1], text_rows.device)
    text_rows, text_mask = _pad_texts(text_rows, text_mask, longest)
    counts = negatives.counts
    return (
        fetch_rows(image_rows, negatives.image_index, counts),
        fetch_rows(text_rows, negatives.text_index, counts),
        fetch_rows(text_mask, negatives.text_index, counts),
    )


def join_pairs(
    true: tuple[Tensor, Tensor, Tensor], wrong: tuple[Tensor, Tensor, Tensor]
) -> MatchingPairs:
    """Build the 3B pairs from (images, texts, text mask) of the true pairs and of the negatives.

    Shorter texts are zero-padded.
    """
    longest = max(true[1].shape[1], wrong[1].shape[1])
    texts, mask = _pad_texts(true[1], true[2], longest)
    wrong_texts, wrong_mask = _pad_texts(wrong[1], wrong[2], longest)
    return MatchingPairs(
        image_rows=torch.cat([true[0], true[0], wrong[0]]),
        text_rows=torch.cat([texts, wrong_texts, texts]),
        text_mask=torch.cat([mask, wrong_mask, mask]),
    )


def _pad_texts(text_rows: Tensor, text_mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    missing = length - text_rows.shape[1]
    pad = [0, 0] * (text_rows.ndim - 2) + [0, missing]
    return F.pad(text_rows, pad), F.pad(text_mask, [0, missing])


def matching_labels(
    batch_size: int,
    negatives: HardNegatives | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return (3B,) int64 labels: 1 for true pairs, 0 for negatives, -100 for missing negatives."""
    if negatives is not None:
        device = negatives.exists.device
    labels = torch.zeros(3, batch_size, dtype=torch.int64, device=device)
    labels[0] = 1
    if negatives is not None:
        labels[1:, ~negatives.exists] = IGNORED
    return labels.flatten()


def itm_loss(
    logits: Tensor,
    batch_size: int,
    negatives: HardNegatives | None = None,
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Compute the mean ITM cross entropy over the 3B pairs of all ranks.

    Args:
        logits: (3B, 2), in the order of `join_pairs`; column 1 is "match".
        batch_size: B.
        negatives: sampled negatives; pairs whose negative does not exist are ignored.
        rows: (n,) int64 indices of the scored pairs, if logits are (n, 2); None if all are scored.

    Raises:
        ValueError: if the shape of `logits` is wrong.

    Source: ALBEF (Li et al. 2021) 3.2, as in FIBER: two hard negatives per true pair.
    """
    scored = 3 * batch_size if rows is None else len(rows)
    if tuple(logits.shape) != (scored, 2):
        raise ValueError(
            f"ITM logits have shape {tuple(logits.shape)}; expected ({scored}, 2) for a batch of"
            f" {batch_size}"
        )
    labels = matching_labels(batch_size, negatives, logits.device)
    return pair_loss(logits, labels if rows is None else labels[rows])


def pair_loss(logits: Tensor, labels: Tensor, *, whole: Tensor | None = None) -> Tensor:
    """Compute the mean ITM cross entropy over the labeled pairs of all ranks.

    Args:
        logits: (n, 2); column 1 is "match".
        labels: (n,) int64: 1, 0, or -100 to ignore a pair.
        whole: number of labeled pairs of all ranks, as in `losses.cross_entropy`.

    Raises:
        ValueError: if the shapes do not match.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"ITM logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (n, 2) and (n,)"
        )
    return mean_cross_entropy(logits, labels, whole=whole)


def counter_uniforms(
    seed: int, step: int, stream: int, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return a uniform number in [0, 1) per row, determined by the arguments (counter-based RNG).

    Source: finalizer of SplitMix64 (Steele et al. 2014), applied once for each argument.
    """
    state = np.zeros(len(rows), dtype=np.uint64)
    for word in (seed, step, stream, rows):
        words = np.asarray(word).astype(np.uint64)
        with np.errstate(over="ignore"):
            state = _splitmix(state ^ _splitmix(words))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _sample_columns(logits: Tensor, allowed: Tensor, uniforms: Tensor) -> Tensor:
    """Sample one (B,) int64 column per row by inverting the row's cumulative distribution."""
    if not logits.shape[0]:
        return torch.zeros(0, dtype=torch.int64, device=logits.device)
    # In float64, boundaries between candidates hardly depend on the order of summation.
    masked = logits.double().masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(masked, 1).nan_to_num(0.0)
    cumulative = weights.cumsum(1)
    targets = uniforms.to(logits.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    index = index.clamp(max=logits.shape[1] - 1)
    # Rounding errors in a parallel cumulative sum may select a column with weight 0.
    forbidden = weights.gather(1, index[:, None])[:, 0] == 0
    return torch.where(forbidden, weights.argmax(1), index)


def half_of_negatives(batch_size: int, first_row: int) -> Tensor:
    """Select the true pairs, and one negative for each, from the 3B pairs.

    `first_row`, the index of this rank's first row in the global batch, makes the selection
    independent of the world size.

    Returns:
        (2B,) int64: the true pairs, then one negative per row, with a mismatched text for even rows
        and a mismatched image for odd rows.
    """
    rows = torch.arange(batch_size)
    is_odd = (rows + first_row) % 2
    return torch.cat([rows, rows + batch_size * (1 + is_odd)])
