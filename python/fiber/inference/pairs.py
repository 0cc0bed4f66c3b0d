"""Run coarse-stage heads on (image, text) pairs, and rank images for a text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fiber.inference.inputs import ArrayInputs
from fiber.models.abilities import Embeds, EmbedsAlone, ScoresPairs
from fiber.models.features import ImagePrefix
from fiber.models.pair_scoring import TextFeatureStore, match_log_odds, ranking_head, run_pairs
from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor

#: Number of pairs per batch in the fused layers.
PAIRS_AT_ONCE = 32


@dataclass(frozen=True)
class Hit:
    """Image search result."""

    #: Index into the searched images.
    index: int
    #: ITM probability; cosine similarity of the ITC or retrieval head without reranking; or for
    #: METER the logit of its ranking head, or else of a match by ITM, which METER ranks by.
    score: float


def score_pairs(
    network: ScoresPairs,
    inputs: ArrayInputs,
    images: Sequence[Any],
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    head: Callable[[Tensor], Tensor],
    *,
    right: Collection[int] = (),
) -> Tensor:
    """Run a head on n (image index, text index) pairs.

    The layers before fusion run once per image and once per text. `head` maps (B, 2 D) pooled pairs
    to (B, K) outputs. `right` are the indices of images that are the right ones of NLVR2's pairs.

    Returns:
        (n, K) float32 on the CPU.
    """
    backbone = network.backbone
    if not pairs:
        none = inputs.empty(network.pooled_width)
        return functions_of(none).cpu(head(none))
    pairs_of: dict[int, list[int]] = {}
    for number, (image, _) in enumerate(pairs):
        pairs_of.setdefault(image, []).append(number)
    words, prefixes = inputs.texts(texts), TextFeatureStore()
    f = functions_of(words.token_ids)
    for start in range(0, len(texts), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        ids, mask = words.token_ids[some], words.text_mask[some]
        prefixes.add(backbone.text_prefix(ids, mask), mask)
    results: list[Any] = [None] * len(pairs)
    for batch in inputs.images(images, in_pairs=bool(right)):
        todo = [(row, n) for row, index in enumerate(batch.indices) for n in pairs_of[index]]
        is_right = np.array([index in right for index in batch.indices], bool)
        found = run_pairs(
            network,
            network.image_prefix(batch.images, f.moved(is_right, batch.images) if right else None),
            prefixes,
            [(row, pairs[number][1]) for row, number in todo],
            head,
            pairs_at_once=PAIRS_AT_ONCE,
        )
        for (_, number), result in zip(todo, found, strict=True):
            results[number] = result
    return f.stack(results)


def rank_images(
    network: EmbedsAlone,
    inputs: ArrayInputs,
    text: str,
    images: Sequence[Any],
    reranked: int = 0,
    pairs: ScoresPairs | None = None,
) -> list[tuple[int, float]]:
    """Rank images for a text by ITC, then rerank the best ones by ITM.

    The image encoder runs once per image, since the features from before fusion are kept for the
    best images. Only the `reranked` best images are returned. If `reranked` is 0, all images are
    returned, ranked by ITC alone. `pairs` is the network as one that reranks.

    Returns:
        (image index, score) pairs, best first. Scores are ITM probabilities, or ITC cosine
        similarities if `reranked` is 0.
    """
    backbone, words = network.backbone, inputs.texts([text])
    prefix = backbone.text_prefix(words.token_ids, words.text_mask)
    completed = backbone.complete_text(prefix, words.text_mask, wanted="pooled")
    f = functions_of(words.token_ids)
    vector = f.as_numpy(f.float32(network.text_vectors(completed)[0]))
    cosines: list[tuple[int, float]] = []
    best: list[tuple[int, float]] = []
    kept: dict[int, Tensor] = {}
    for batch in inputs.images(images):
        features = backbone.image_prefix(batch.images)
        vectors = f.as_numpy(f.float32(network.image_vectors(backbone.complete_image(features))))
        found = list(zip(batch.indices, (vectors @ vector).tolist(), strict=True))
        cosines += found
        best = _best_first([*best, *found])[:reranked]
        rows = {index: row for row, index in enumerate(batch.indices)}
        kept = {
            index: kept[index] if index in kept else f.copy(features.tokens[rows[index]])
            for index, _ in best
        }
    if pairs is None or not kept:
        return _best_first(cosines)
    texts = TextFeatureStore()
    texts.add(prefix, words.text_mask)
    log_odds = run_pairs(
        pairs,
        ImagePrefix(f.stack(list(kept.values()))),
        texts,
        [(row, 0) for row in range(len(kept))],
        match_log_odds(pairs),
        pairs_at_once=PAIRS_AT_ONCE,
    )
    return _by_matching(list(kept), log_odds)


def rank_by_vectors(
    network: Embeds, inputs: ArrayInputs, text: str, images: Sequence[Any]
) -> list[tuple[int, float]]:
    """Rank images for a text by the products of their vectors.

    Returns:
        (image index, score) pairs, best first, with scores from -1 to 1.
    """
    words = inputs.texts([text])
    f = functions_of(words.token_ids)
    vector = f.as_numpy(f.float32(network.embed_texts(words.token_ids, words.text_mask)[0]))
    scored: list[tuple[int, float]] = []
    for batch in inputs.images(images):
        vectors = f.as_numpy(f.float32(network.embed_images(batch.images)))
        scored += zip(batch.indices, (vectors @ vector).tolist(), strict=True)
    # Images of one size are together.
    return _best_first(sorted(scored))


def match_images(
    network: ScoresPairs, inputs: ArrayInputs, text: str, images: Sequence[Any]
) -> list[tuple[int, float]]:
    """Rank images for a text by scoring every pair.

    Images are in the order of `ScoresPairs.ranking_scores`, as in `fiber.evaluate`.

    Returns:
        (image index, score) pairs, best first, with scores as in `Hit`.
    """
    if not images:
        return []
    pairs = [(number, 0) for number in range(len(images))]
    head = ranking_head(network)
    scores = score_pairs(
        network, inputs, images, [text], pairs, lambda pooled: head(pooled)[:, None]
    )
    if network.scores_are_log_odds:
        return _by_matching(range(len(images)), scores[:, 0])
    return _best_first(list(enumerate(scores[:, 0].tolist())))


def _by_matching(indices: Sequence[int], log_odds: Tensor) -> list[tuple[int, float]]:
    """Sort images by (n,) log odds, best first, and convert these to probabilities.

    Probabilities cannot be sorted instead, since rounding may make them equal.
    """
    f = functions_of(log_odds)
    best = _best_first(list(enumerate(log_odds.tolist())))
    return [(indices[row], float(f.sigmoid(log_odds[row : row + 1])[0])) for row, _ in best]


def _best_first(scored: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Stably sort (index, score) pairs by descending score."""
    return sorted(scored, key=lambda entry: -entry[1])
