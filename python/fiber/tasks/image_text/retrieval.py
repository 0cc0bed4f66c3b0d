"""Evaluate retrieval: ITC ranks all candidates, then ITM reranks the best ones.

Dimension letters: P images, T texts, D embed dim, k candidates per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, by_image
from fiber.evaluation.processes import EvalProcesses
from fiber.metrics.retrieval import recall_of_ranks, reranked, wrong_before
from fiber.models.abilities import EmbedsAlone, ScoresPairs
from fiber.models.pair_scoring import TextFeatureStore, ranking_head, run_pairs

#: Name in messages.
TASK = "task 'retrieval'"
#: Number of images listed per text in a prediction file.
LISTED = 10
#: Number of queries to compare with all candidates at once.
QUERIES_AT_ONCE = 256


class Ranking(NamedTuple):
    """Candidates for n queries, ranked by ITC."""

    #: (n, k) int32, indices of the best candidates, best first.
    best: NDArray[np.int32]
    #: (n,) number of wrong candidates ranked above the best correct one, among all candidates.
    ranks: NDArray[np.int64]


def retrieval(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate image-to-text and text-to-image retrieval among all images and captions.

    The best `context.candidates` candidates of each query are reranked one image at a time. Only
    text features and 24 bytes per candidate pair are kept in memory. A model without an ITC head
    scores every pair instead, and returns the metrics of these scores alone.

    Raises:
        ValueError: if `context.candidates` is nonzero but the model has no ITM head, or if the
            model has no ITC head and `context.candidates` does not cover all images and texts.
    """
    heads = context.network.config.heads
    if context.candidates and not {"itm", "rank"}.intersection(heads):
        raise ValueError(
            f"reranking {context.candidates} candidates requires the head 'itm'; this model has"
            f" {', '.join(heads)}"
        )
    groups = by_image(records)
    images = [shown[0] for shown in groups.values()]
    if "itc" not in heads and context.candidates < max(len(images), len(records)):
        raise ValueError(
            f"candidates is {context.candidates}, but the model has no head 'itc' to select"
            f" candidates; expected at least {max(len(images), len(records))}, to score every pair"
        )
    places = {image_id: place for place, image_id in enumerate(groups)}
    owners, numbers = np.array([places[r.image_id] for r in records]), np.arange(len(images))
    features, text_vectors = _encode_texts(context, records)
    metrics: dict[str, float] = {}
    if text_vectors is not None:
        image_vectors = _embed_images(context, images)
        listed = max(LISTED, context.candidates)
        processes = context.processes
        of_images = rank(image_vectors, text_vectors, numbers, owners, listed, processes)
        of_texts = rank(text_vectors, image_vectors, owners, numbers, listed, processes)
        metrics |= recall_of_ranks(of_images.ranks, of_texts.ranks)
    else:
        of_images = _everything(len(images), len(records))
        of_texts = _everything(len(records), len(images))
    best = of_texts.best
    if context.candidates:
        image_best, text_best = (one.best[:, : context.candidates] for one in (of_images, of_texts))
        image_scores, text_scores = match_candidates(
            context, images, features, image_best, text_best
        )
        again = recall_of_ranks(
            reranked(of_images.ranks, image_scores, owners[image_best] == numbers[:, None]),
            reranked(of_texts.ranks, text_scores, text_best == owners[:, None]),
        )
        prefix = "reranked/" if metrics else ""
        metrics |= {f"{prefix}{name}": value for name, value in again.items()}
        best = best.copy()
        order = np.argsort(-text_scores, axis=1, kind="stable")
        best[:, : context.candidates] = np.take_along_axis(text_best, order, 1)
    ids = list(groups)
    predictions = [
        {"key": record.key, "image_ids": [ids[place] for place in row]}
        for record, row in zip(records, best[:, :LISTED].tolist(), strict=True)
    ]
    return EvalResult(metrics, predictions)


def _encode_texts(
    context: EvalContext, records: Sequence[Record]
) -> tuple[TextFeatureStore, Tensor | None]:
    """Encode the text of each record.

    Returns:
        Features of all texts, empty if there are no candidates to score, and (T, D) ITC vectors,
        None without an ITC head. Features are many times larger than vectors, and every process
        needs all of them, so each process computes them instead of sending them.
    """
    backbone, processes = context.network.backbone, context.processes
    has_itc = "itc" in context.network.config.heads
    model = context.able(EmbedsAlone, TASK) if has_itc else None
    features, vectors = TextFeatureStore(), []
    starts = range(0, len(records), context.batch_size)
    own = starts[processes.own]
    for start in starts if context.candidates else own:
        some = records[start : start + context.batch_size]
        ids, mask = context.texts([record.text for record in some])
        prefix = backbone.text_prefix(ids, mask)
        if context.candidates:
            features.add(prefix, mask)
        if model is not None and start in own:
            pooled = model.backbone.complete_text(prefix, mask, wanted="pooled")
            vectors.append(model.text_vectors(pooled).cpu())
    if not has_itc:
        return features, None
    return features, torch.cat(list(processes.in_order(vectors))).to(context.device)


def _embed_images(context: EvalContext, images: Sequence[Record]) -> Tensor:
    """Compute the (P, D) ITC vectors of images."""
    model = context.able(EmbedsAlone, TASK)

    def embed(batch: Any, shown: list[Record], at: int) -> Tensor:
        return model.embed_images(batch.images).cpu()

    return torch.cat(list(context.run_batches(images, "image_text", embed))).to(context.device)


def rank(
    queries: Tensor,
    candidates: Tensor,
    query_owners: NDArray[np.int64],
    candidate_owners: NDArray[np.int64],
    listed: int,
    processes: EvalProcesses,
) -> Ranking:
    """Rank (m, D) candidates by dot product with (n, D) queries, and list the best ones.

    Owners are (n,) and (m,) image indices. A candidate is correct if the query has the same image
    index.
    """

    def rank_block(start: int) -> Ranking:
        block = slice(start, start + QUERIES_AT_ONCE)
        # Always float32, since lower precision would round scores to ties.
        with torch.autocast(queries.device.type, enabled=False):
            scores = (queries[block].float() @ candidates.float().T).cpu().numpy()
        order = np.argsort(-scores, axis=1, kind="stable")[:, :listed]
        is_right = query_owners[block, None] == candidate_owners
        return Ranking(order.astype(np.int32), wrong_before(scores, is_right))

    blocks = processes.map(rank_block, range(0, len(queries), QUERIES_AT_ONCE))
    best, ranks = zip(*blocks, strict=True)
    return Ranking(np.concatenate(best), np.concatenate(ranks))


def _everything(queries: int, candidates: int) -> Ranking:
    """List all candidates for each query, without ranking them."""
    order = np.arange(candidates, dtype=np.int32)
    return Ranking(np.tile(order, (queries, 1)), np.zeros(queries, dtype=np.int64))


def match_candidates(
    context: EvalContext,
    images: list[Record],
    texts: TextFeatureStore,
    image_candidates: NDArray[np.int32],
    text_candidates: NDArray[np.int32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score the candidates of each image and of each text with ITM or the ranking head.

    `images` has one record per image. `image_candidates` are (P, k) text indices, and
    `text_candidates` are (T, k) image indices. A pair that occurs in both directions is scored
    once.

    Returns:
        Scores of the (P, k) and the (T, k) candidates.
    """
    model = context.able(ScoresPairs, TASK)
    head = ranking_head(model)
    image_scores = np.empty(image_candidates.shape, dtype=np.float32)
    text_scores = np.empty(text_candidates.shape, dtype=np.float32)
    # Positions in `text_candidates`, grouped by image.
    flat = text_candidates.ravel()
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(len(images) + 1))

    def score(batch: Any, shown: list[Record], at: int) -> list[NDArray[np.float32]]:
        prefix, found = model.backbone.image_prefix(batch.images), []
        for row, number in enumerate(range(at, at + len(batch))):
            own = order[starts[number] : starts[number + 1]]
            wanted = np.concatenate((image_candidates[number], own // text_candidates.shape[1]))
            unique, where = np.unique(wanted, return_inverse=True)
            pairs = [(row, text) for text in unique.tolist()]
            scores = run_pairs(model, prefix, texts, pairs, head, pairs_at_once=context.batch_size)
            found.append(scores.numpy()[where])
        return found

    rows = chain.from_iterable(context.run_batches(images, "image_text", score))
    for number, scores in enumerate(rows):
        image_scores[number] = scores[: image_candidates.shape[1]]
        own = order[starts[number] : starts[number + 1]]
        text_scores.ravel()[own] = scores[image_candidates.shape[1] :]
    return image_scores, text_scores
