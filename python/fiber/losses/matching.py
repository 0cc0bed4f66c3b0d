"""Image-text matching (ITM): hard negatives from the whole batch, and the loss over 3B pairs.

The pairs are, in this order, B true ones, B pictures with another text, B texts with another
picture. Letters: B pairs of this rank, G pairs of the whole batch (all ranks), L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiber.losses.contrastive import Similarities
from fiber.losses.gather import all_rank_max, fetch_rows
from fiber.losses.reduce import all_rank_sum, world_size

#: Label of a pair that the loss leaves out.
IGNORED = -100


@dataclass(frozen=True)
class HardNegatives:
    """For each of this rank's rows, a text and a picture that do not belong to it."""

    #: (B,) int64: row of the whole batch whose text goes with this picture.
    text_index: Tensor
    #: (B,) int64: row of the whole batch whose picture goes with this text.
    image_index: Tensor
    #: (B,) bool: False where the whole batch holds no negative (then both indices are the row's
    #: own, and the two pairs take no part in the loss).
    exists: Tensor
    #: Rows of each rank.
    counts: tuple[int, ...]


@dataclass(frozen=True)
class MatchingPairs:
    """The 3B pairs that go through fusion and the matching head."""

    #: (3B, ...) rows of pictures.
    image_rows: Tensor
    #: (3B, L, ...) rows of texts.
    text_rows: Tensor
    #: (3B, L) bool, True = real token.
    text_mask: Tensor


def hard_negatives(similarities: Similarities, *, seed: int, step: int) -> HardNegatives:
    """Draw one wrong text for each picture and one wrong picture for each text.

    A candidate's chance is the softmax of its similarity among all true negatives of the whole
    batch. The draw for a row depends on (seed, step, number of the row in the whole batch) alone:
    two ranks draw what one process with the whole batch draws.

    Args:
        similarities: from `contrastive.itc_loss`.
        seed: of the run.
        step: number of this batch in the run; micro-batches of one step need numbers of their own.

    Source: ALBEF (Li et al. 2021) 3.2; candidates from all ranks as in VLMo, which FIBER's paper
    follows (the published code adds 1e-9 to every weight, the true pair's too; here a true pair
    cannot be drawn).
    """
    first, rows = similarities.first_row, similarities.is_negative.shape[0]
    numbers = np.arange(first, first + rows)
    exists = similarities.is_negative.any(1)
    own = torch.arange(first, first + rows, device=exists.device)
    drawn = []
    for stream, logits in enumerate((similarities.image_to_text, similarities.text_to_image)):
        uniforms = counter_uniforms(seed, step, stream, numbers)
        index = _draw(logits, similarities.is_negative, torch.from_numpy(uniforms))
        drawn.append(torch.where(exists, index, own))
    return HardNegatives(
        text_index=drawn[0], image_index=drawn[1], exists=exists, counts=similarities.counts
    )


def matching_pairs(
    image_rows: Tensor, text_rows: Tensor, text_mask: Tensor, negatives: HardNegatives
) -> MatchingPairs:
    """Lay out the 3B pairs, with the negatives' rows fetched from the ranks that hold them.

    Args:
        image_rows: (B, ...) pictures, or what the model makes of them before fusion.
        text_rows: (B, L, ...) token ids, or what the model makes of them before fusion. Where L
            differs between ranks all are padded with zeros to the longest.
        text_mask: (B, L) bool, True = real token.
        negatives: from `hard_negatives`.

    Returns:
        The pairs; gradients flow to the rows on whichever rank they are.
    """
    longest = all_rank_max(text_rows.shape[1], text_rows.device)
    missing = longest - text_rows.shape[1]
    if missing:
        pad = [0, 0] * (text_rows.ndim - 2) + [0, missing]
        text_rows, text_mask = F.pad(text_rows, pad), F.pad(text_mask, [0, missing])
    counts = negatives.counts
    wrong_texts = fetch_rows(text_rows, negatives.text_index, counts)
    wrong_masks = fetch_rows(text_mask, negatives.text_index, counts)
    wrong_images = fetch_rows(image_rows, negatives.image_index, counts)
    return MatchingPairs(
        image_rows=torch.cat([image_rows, image_rows, wrong_images]),
        text_rows=torch.cat([text_rows, wrong_texts, text_rows]),
        text_mask=torch.cat([text_mask, wrong_masks, text_mask]),
    )


def matching_labels(
    batch_size: int,
    negatives: HardNegatives | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """(3B,) int64: 1 for the B true pairs, 0 for the 2B others, -100 where no negative exists."""
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
    """Cross entropy of "these belong together" over the 3B pairs of all ranks.

    Args:
        logits: (3B, 2) float, in the order of `matching_pairs`; column 1 is "match".
        batch_size: B of this rank.
        negatives: what the pairs were made of; pairs without a negative are left out.
        rows: (n,) int64 numbers of the pairs that were scored, where not all were; logits are
            (n, 2).

    Returns:
        The loss of this rank; the mean over ranks is the mean over all pairs of all ranks.

    Raises:
        ValueError: if `logits` is not (3B, 2).

    Source: ALBEF (Li et al. 2021) 3.2, as in FIBER: one true pair to two hard negatives.
    """
    scored = 3 * batch_size if rows is None else len(rows)
    if tuple(logits.shape) != (scored, 2):
        raise ValueError(
            f"matching logits have shape {tuple(logits.shape)}; expected ({scored}, 2) for"
            f" a batch of {batch_size}: the true pairs and two negatives of each, or those of rows"
        )
    labels = matching_labels(batch_size, negatives, logits.device)
    if rows is not None:
        labels = labels[rows]
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    pairs = all_rank_sum((labels != IGNORED).sum()).clamp(min=1)
    return total * world_size() / pairs


def counter_uniforms(
    seed: int, step: int, stream: int, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Draw one number in [0, 1) for each row; it depends on the four arguments alone.

    Source: the finaliser of SplitMix64 (Steele et al. 2014), applied once for each argument.
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


def _draw(logits: Tensor, allowed: Tensor, uniforms: Tensor) -> Tensor:
    """Invert each row's cumulative distribution at its uniform number; (B,) int64."""
    if not logits.shape[0]:
        return torch.zeros(0, dtype=torch.int64, device=logits.device)
    # float64, so that the boundaries between candidates hardly move with the order of sums.
    masked = logits.double().masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(masked, 1).nan_to_num(0.0)
    cumulative = weights.cumsum(1)
    targets = uniforms.to(logits.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    index = index.clamp(max=logits.shape[1] - 1)
    # A parallel cumulative sum may step by a rounding error where the weight is 0: never take
    # such a column.
    forbidden = weights.gather(1, index[:, None])[:, 0] == 0
    return torch.where(forbidden, weights.argmax(1), index)
