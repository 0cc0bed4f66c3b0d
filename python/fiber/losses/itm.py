"""Image-text matching (ITM): which pairs are scored, and the loss over them.

With hard negatives (pre-training) there are 3B pairs, in this order: B true ones, B pictures with
another text, B texts with another picture. For fine-tuning without contrast half of the B texts
keep their picture and half get a random other one. Letters: B pairs of this rank, G pairs of the
whole batch (all ranks), L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiber.losses.distributed import (
    all_rank_max,
    all_rank_sum,
    fetch_rows,
    gather_rows,
    rank,
    row_counts,
    wide,
    world_size,
)
from fiber.losses.itc import Similarities

#: Label of a pair that the loss leaves out.
IGNORED = -100


@dataclass(frozen=True)
class HardNegatives:
    """For each of this rank's rows, a text and a picture that do not belong to it.

    Numbers are those of the similarities' candidates: rows of the whole batch, or, in the queue
    form, this rank's rows and then the queue's.
    """

    #: (B,) int64: candidate whose text goes with this picture.
    text_index: Tensor
    #: (B,) int64: candidate whose picture goes with this text.
    image_index: Tensor
    #: (B,) bool: False where no candidate is a negative (then both indices are the row's own, and
    #: the two pairs take no part in the loss).
    exists: Tensor
    #: Rows of each rank.
    counts: tuple[int, ...]


@dataclass(frozen=True)
class HalfPairs:
    """The texts of this rank, each with its own or with another picture."""

    #: (B,) int64: row of the whole batch whose picture goes with this text.
    image_index: Tensor
    #: (B,) int64: 1 where it is the text's own, 0 where it is another one, -100 where it should be
    #: another one but the whole batch holds none (such a pair takes no part in the loss).
    labels: Tensor
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
        similarities: from `contrastive.itc_loss` or `queue.queue_itc_loss`.
        seed: of the run.
        step: number of this batch in the run; micro-batches of one step need numbers of their own.

    Source: ALBEF (Li et al. 2021) 3.2; candidates from all ranks as in VLMo, which FIBER's paper
    follows (the published code adds 1e-9 to every weight, the true pair's too; here a true pair
    cannot be drawn).
    """
    first, rows = similarities.first_row, similarities.is_negative.shape[0]
    numbers = np.arange(first, first + rows)
    exists = similarities.is_negative.any(1)
    own = torch.arange(rows, device=exists.device) + similarities.first_candidate
    drawn = []
    for stream, logits in enumerate((similarities.image_to_text, similarities.text_to_image)):
        uniforms = counter_uniforms(seed, step, stream, numbers)
        index = _draw(logits, similarities.is_negative, torch.from_numpy(uniforms))
        drawn.append(torch.where(exists, index, own))
    return HardNegatives(
        text_index=drawn[0], image_index=drawn[1], exists=exists, counts=similarities.counts
    )


def half_pairs(image_ids: Tensor, *, seed: int, step: int) -> HalfPairs:
    """Keep the picture of half of the texts and give the others one that is not theirs.

    Of the G texts of the whole batch G // 2, drawn at random, are true pairs. Every other one gets
    a picture drawn evenly from the rows that show another. Draws depend on (seed, step, number of
    the row in the whole batch) alone.

    Args:
        image_ids: (B,) int64, equal numbers mean the same picture.
        seed: of the run.
        step: number of this batch in the run.

    Raises:
        ValueError: if the whole batch is a single pair.

    Source: fine-tuning by matching in the published code of FIBER, which takes the false picture
        from the whole data set and may so draw the text's own.
    """
    counts = row_counts(image_ids)
    whole, rows = sum(counts), len(image_ids)
    if whole < 2:
        raise ValueError(
            f"matching with random pictures got a whole batch of {whole} pairs over"
            f" {world_size()} ranks; expected at least 2, since the other pictures are the false"
            " ones"
        )
    first = sum(counts[: rank()])
    order = counter_uniforms(seed, step, 2, np.arange(whole)).argsort(kind="stable")
    is_true = torch.zeros(whole, dtype=torch.bool)
    is_true[torch.from_numpy(order[: whole // 2])] = True
    is_true = is_true[first : first + rows].to(image_ids.device)
    is_other = image_ids[:, None] != gather_rows(image_ids, counts)[None]
    uniforms = counter_uniforms(seed, step, 3, np.arange(first, first + rows))
    others = _draw(
        torch.zeros_like(is_other, dtype=torch.float32), is_other, torch.tensor(uniforms)
    )
    exists = is_other.any(1)
    own = torch.arange(rows, device=image_ids.device) + first
    return HalfPairs(
        image_index=torch.where(is_true | ~exists, own, others),
        labels=is_true.long().masked_fill(~is_true & ~exists, IGNORED),
        counts=counts,
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
    text_rows, text_mask = _pad_texts(text_rows, text_mask, longest)
    counts = negatives.counts
    return join_pairs(
        (image_rows, text_rows, text_mask),
        (
            fetch_rows(image_rows, negatives.image_index, counts),
            fetch_rows(text_rows, negatives.text_index, counts),
            fetch_rows(text_mask, negatives.text_index, counts),
        ),
    )


def join_pairs(
    true: tuple[Tensor, Tensor, Tensor], wrong: tuple[Tensor, Tensor, Tensor]
) -> MatchingPairs:
    """Lay out the 3B pairs where the negatives' rows are at hand.

    Args:
        true: (B, ...) pictures, (B, L, ...) texts and (B, L) their mask.
        wrong: the same of the negatives; the shorter texts of the two are padded with zeros.
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
    return pair_loss(logits, labels if rows is None else labels[rows])


def pair_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of "these belong together" over the labelled pairs of all ranks.

    Args:
        logits: (n, 2) float; column 1 is "match".
        labels: (n,) int64: 1, 0, or -100 where a pair is left out.

    Returns:
        The loss of this rank; the mean over ranks is the mean over all pairs of all ranks.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"matching logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)};"
            " expected (n, 2) and (n,)"
        )
    total = F.cross_entropy(wide(logits), labels, ignore_index=IGNORED, reduction="sum")
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
