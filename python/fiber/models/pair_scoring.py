"""Score many (image, text) pairs, computing unfused features once per image and per text.

Image features are large (1.2 MB in float32 for `base` at 384 pixels), so they are used for all
pairs of the image and then freed. Text features without padding are small (40 KB for 13 tokens), so
all are kept on the CPU. Pairs run through the fused layers in batches, so memory does not grow with
the number of pairs.

Networks compute tensors, exported graphs arrays of numpy; both run here (`fiber.ops.arrays`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fiber.models.abilities import ScoresPairs
from fiber.models.features import ImagePrefix
from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextFeatureStore:
    """Text features computed by the layers before the first fused layer, stored on the CPU."""

    def __init__(self) -> None:
        self._texts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, prefix: Tensor, text_mask: Tensor) -> None:
        """Append the (B, L, D) output of the backbone's `text_prefix` for right-padded texts."""
        # Each text is a view of a single tensor without padding.
        rows = functions_of(prefix).cpu(prefix[text_mask])
        counts = text_mask.sum(1).tolist()
        ends = np.cumsum(counts).tolist()
        self._texts += [rows[end - n : end] for n, end in zip(counts, ends, strict=True)]

    def length(self, number: int) -> int:
        """Return the number of real tokens of a text."""
        return len(self._texts[number])

    def take(self, numbers: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Gather n texts: (n, L, D) features padded to the longest text and an (n, L) bool mask.

        They are on the device of `like`.
        """
        f = functions_of(like)
        lengths = np.array([self.length(number) for number in numbers])
        prefix = f.pad_rows([self._texts[number] for number in numbers])
        mask = np.arange(prefix.shape[1]) < lengths[:, None]
        return f.moved(prefix, like), f.moved(mask, like)


def run_pairs(
    model: ScoresPairs,
    images: ImagePrefix,
    texts: TextFeatureStore,
    pairs: Sequence[tuple[int, int]],
    head: Callable[[Tensor], Tensor],
    *,
    pairs_at_once: int,
) -> Tensor:
    """Run a head on n (image, text) pairs, in batches of `pairs_at_once`.

    Each pair is (row of `images`, index in `texts`). The head maps pooled pairs (B, 2 D) to
    (B, ...). Returns (n, ...) float32 on the CPU.
    """
    like = images.tokens
    f = functions_of(like)
    if not pairs:
        return f.cpu(f.float32(head(f.float32(f.zeros([0, model.pooled_width], like)))))
    # Sort by text length to reduce padding.
    order = sorted(range(len(pairs)), key=lambda number: texts.length(pairs[number][1]))
    found = []
    for start in range(0, len(order), pairs_at_once):
        chosen = [pairs[number] for number in order[start : start + pairs_at_once]]
        rows = f.indices([row for row, _ in chosen], like)
        text, mask = texts.take([number for _, number in chosen], like)
        fused = model.backbone.fuse(images.take(rows), text, mask, wanted="pooled")
        found.append(f.cpu(f.float32(head(model.pooled(fused)))))
    joined = f.concat(found)
    results = f.zeros(joined.shape, joined)
    results[f.indices(order, joined)] = joined
    return results


def match_log_odds(model: ScoresPairs) -> Callable[[Tensor], Tensor]:
    """Return the head that computes the log odds of a match by ITM: (B, 2 D) -> (B,).

    They are computed in at least float32 to avoid ties.
    """
    head = model.scoring_head("itm")
    return partial(_in_float32, head, lambda pooled: _log_odds(model.itm_logits(pooled)))


def ranking_head(model: ScoresPairs) -> Callable[[Tensor], Tensor]:
    """Return the head that ranks pairs for retrieval, like `match_log_odds`.

    This is the ranking head, or what the family uses instead (`ScoresPairs.ranking_scores`).
    """
    head = model.scoring_head("rank" if "rank" in model.config.heads else "itm")
    return partial(_in_float32, head, model.ranking_scores)


def _log_odds(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def _in_float32(head: nn.Module, scores: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
    f = functions_of(pooled)
    with f.full_precision(pooled):
        return scores(f.for_module(pooled, head))
