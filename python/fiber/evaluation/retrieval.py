"""Measuring retrieval: contrast ranks all candidates, matching orders the best of them again.

Letters: P pictures, T texts, D width, k candidates of a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import Measured, Subject, by_picture
from fiber.metrics.retrieval import recall_of_ranks, reranked, wrong_before
from fiber.models.fiber.pair_scoring import TextPrefixes, match_log_odds, run_pairs

#: Pictures that a prediction file lists for each text.
LISTED = 10
#: Best candidates that are looked at a second time, unless told otherwise.
RERANKED = 32
#: Queries that are held against all candidates at once.
QUERIES_AT_ONCE = 256


class Ranking(NamedTuple):
    """What the vectors say of each query."""

    #: (n, k) int32, the best candidates, best first.
    best: NDArray[np.int32]
    #: (n,) wrong candidates before the best right one, among all candidates.
    ranks: NDArray[np.int64]


def retrieval(subject: Subject, records: RecordSet) -> Measured:
    """Retrieval both ways among all different pictures and all captions.

    Vectors are compared block by block. So many of the best of each query as `subject.candidates`
    says are matched, a picture at a time: features of pictures are not kept, those of texts
    are, and of each candidate pair some numbers (24 bytes). A model without contrast must match
    every pair, and has the metrics of matching alone.

    Raises:
        ValueError: if a model without contrast shall match less than every pair.
    """
    groups = by_picture(records)
    pictures = [shown[0] for shown in groups.values()]
    texts = [records[i] for i in range(len(records))]
    places = {image_id: place for place, image_id in enumerate(groups)}
    owners, numbers = np.array([places[r.image_id] for r in texts]), np.arange(len(pictures))
    metrics: dict[str, float] = {}
    if "itc" in subject.image_text.config.image_text.heads:
        images = _image_vectors(subject, pictures)
        vectors, prefixes = _text_vectors(subject, texts)
        listed = max(LISTED, subject.candidates)
        of_images = rank(images, vectors, numbers, owners, listed)
        of_texts = rank(vectors, images, owners, numbers, listed)
        metrics |= recall_of_ranks(of_images.ranks, of_texts.ranks)
    else:
        if subject.candidates < max(len(pictures), len(texts)):
            raise ValueError(
                f"{subject.candidates} candidates, but the model has no head 'itc' to choose them"
                f" by; expected every one of {len(pictures)} pictures and {len(texts)} texts (all)"
            )
        prefixes = TextPrefixes()
        for prefix, mask in _text_prefixes(subject, texts):
            prefixes.add(prefix, mask)
        of_images = _everything(len(pictures), len(texts))
        of_texts = _everything(len(texts), len(pictures))
    best = of_texts.best
    if subject.candidates:
        image_best, text_best = (one.best[:, : subject.candidates] for one in (of_images, of_texts))
        image_scores, text_scores = match_candidates(
            subject, pictures, prefixes, image_best, text_best
        )
        again = recall_of_ranks(
            reranked(of_images.ranks, image_scores, owners[image_best] == numbers[:, None]),
            reranked(of_texts.ranks, text_scores, text_best == owners[:, None]),
        )
        metrics |= {f"reranked/{name}": value for name, value in again.items()}
        best = best.copy()
        order = np.argsort(-text_scores, axis=1, kind="stable")
        best[:, : subject.candidates] = np.take_along_axis(text_best, order, 1)
    ids = list(groups)
    predictions = [
        {"key": record.key, "image_ids": [ids[place] for place in row]}
        for record, row in zip(texts, best[:, :LISTED].tolist(), strict=True)
    ]
    return Measured(metrics, predictions)


def rank(
    queries: Tensor,
    candidates: Tensor,
    query_owners: NDArray[np.int64],
    candidate_owners: NDArray[np.int64],
    listed: int,
) -> Ranking:
    """Rank all candidates of each query by the product of their vectors.

    Args:
        queries: (n, D).
        candidates: (m, D).
        query_owners: (n,) the picture that each query is or belongs to.
        candidate_owners: (m,) the same of the candidates; equal numbers are right.
        listed: candidates that are named for each query.
    """
    best, ranks = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        # In float32 whatever the models run in: rounded products would tie.
        with torch.autocast(queries.device.type, enabled=False):
            scores = (queries[block].float() @ candidates.float().T).cpu().numpy()
        ranks.append(wrong_before(scores, query_owners[block, None] == candidate_owners))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :listed]
        best.append(order.astype(np.int32))
    return Ranking(np.concatenate(best), np.concatenate(ranks))


def _everything(queries: int, candidates: int) -> Ranking:
    """Candidates that nothing has ranked: all of them for each query, in their order."""
    order = np.arange(candidates, dtype=np.int32)
    return Ranking(np.tile(order, (queries, 1)), np.zeros(queries, dtype=np.int64))


def match_candidates(
    subject: Subject,
    pictures: list[Record],
    texts: TextPrefixes,
    image_candidates: NDArray[np.int32],
    text_candidates: NDArray[np.int32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Match each query with its candidates; a pair that both sides ask for is scored once.

    Args:
        subject: a model with the matching head.
        pictures: a record that shows each of the P pictures.
        texts: T of them.
        image_candidates: (P, k) numbers of texts.
        text_candidates: (T, k) numbers of pictures.

    Returns:
        (P, k) and (T, k) log odds that the pair belongs together.
    """
    model, head = subject.image_text, match_log_odds(subject.image_text)
    image_scores = np.empty(image_candidates.shape, dtype=np.float32)
    text_scores = np.empty(text_candidates.shape, dtype=np.float32)
    # Where each picture stands among the candidates of the texts, picture by picture.
    asked = text_candidates.ravel()
    asked_order = np.argsort(asked, kind="stable")
    starts = np.searchsorted(asked[asked_order], np.arange(len(pictures) + 1))
    number = 0
    for batch, _ in subject.batches(pictures, "image_text"):
        images = model.backbone.image_prefix(batch.images)
        for row in range(len(batch)):
            own = asked_order[starts[number] : starts[number + 1]]
            wanted = np.concatenate((image_candidates[number], own // text_candidates.shape[1]))
            unique, where = np.unique(wanted, return_inverse=True)
            pairs = [(row, text) for text in unique.tolist()]
            scores = run_pairs(
                model, images, texts, pairs, head, pairs_at_once=subject.batch_size
            ).numpy()[where]
            image_scores[number] = scores[: image_candidates.shape[1]]
            text_scores.ravel()[own] = scores[image_candidates.shape[1] :]
            number += 1
    return image_scores, text_scores


def _image_vectors(subject: Subject, pictures: list[Record]) -> Tensor:
    model = subject.image_text
    return torch.cat(
        [model.embed_images(batch.images) for batch, _ in subject.batches(pictures, "image_text")]
    )


def _text_vectors(subject: Subject, texts: list[Record]) -> tuple[Tensor, TextPrefixes]:
    """Embed texts; what lies below the fusion is kept where it is needed again."""
    model, prefixes, vectors = subject.image_text, TextPrefixes(), []
    for prefix, mask in _text_prefixes(subject, texts):
        vectors.append(
            model.text_vectors(model.backbone.complete_text(prefix, mask, wanted="pooled"))
        )
        if subject.candidates:
            prefixes.add(prefix, mask)
    return torch.cat(vectors), prefixes


def _text_prefixes(subject: Subject, texts: list[Record]) -> Iterator[tuple[Tensor, Tensor]]:
    """Run texts up to the first fused layer: (B, L, D) and their (B, L) mask, batch by batch."""
    for start in range(0, len(texts), subject.batch_size):
        some = texts[start : start + subject.batch_size]
        ids, mask = subject.texts([record.text for record in some])
        yield subject.image_text.backbone.text_prefix(ids, mask), mask
