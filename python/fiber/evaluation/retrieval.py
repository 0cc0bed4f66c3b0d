"""Retrieval: ITC ranks all candidates, ITM re-ranks the best of them.

Dimension letters: P images, T texts, D width, k candidates of a query.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber.config import FiberConfig
from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import EvalContext, EvalResult, by_image
from fiber.metrics.retrieval import recall_of_ranks, reranked, wrong_before
from fiber.models.fiber.pair_scoring import TextFeatureStore, match_log_odds, run_pairs
from fiber.models.heads import need_head

#: Images that a prediction file lists for each text.
LISTED = 10
#: Default number of candidates that ITM re-ranks.
RERANKED = 32
#: Queries of a block that is compared with all candidates.
QUERIES_AT_ONCE = 256


class RankingHeads(NamedTuple):
    """Heads that rank images and texts."""

    #: ("itc",), ("itm",), or ("itc", "itm") to re-rank the best by ITC with ITM.
    heads: tuple[str, ...]
    #: Candidates of each query to re-rank; 0 if one head ranks alone.
    candidates: int


class Ranking(NamedTuple):
    """Candidates of each query, ranked by ITC."""

    #: (n, k) int32, the best candidates, best first.
    best: NDArray[np.int32]
    #: (n,) wrong candidates ranked above the best right one, among all candidates.
    ranks: NDArray[np.int64]


def retrieval(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate image-to-text and text-to-image retrieval among all images and captions.

    Vectors are compared block by block. The best `context.candidates` of each query are re-ranked,
    an image at a time: text features are kept, image features are not, and each candidate pair
    takes 24 bytes. A model without the ITC head matches every pair and gives the re-ranked metrics
    only.

    Raises:
        ValueError: for candidates without the ITM head, or fewer than all without the ITC head.
    """
    heads = context.image_text.config.image_text.heads
    if context.candidates and "itm" not in heads:
        raise ValueError(
            f"{context.candidates} candidates need the head 'itm' to be re-ranked; the model has"
            f" {', '.join(heads)}"
        )
    groups = by_image(records)
    images = [shown[0] for shown in groups.values()]
    texts = [records[i] for i in range(len(records))]
    places = {image_id: place for place, image_id in enumerate(groups)}
    owners, numbers = np.array([places[r.image_id] for r in texts]), np.arange(len(images))
    metrics: dict[str, float] = {}
    if "itc" in heads:
        image_vectors = _image_vectors(context, images)
        text_vectors, features = _text_vectors(context, texts)
        listed = max(LISTED, context.candidates)
        of_images = rank(image_vectors, text_vectors, numbers, owners, listed)
        of_texts = rank(text_vectors, image_vectors, owners, numbers, listed)
        metrics |= recall_of_ranks(of_images.ranks, of_texts.ranks)
    else:
        if context.candidates < max(len(images), len(texts)):
            raise ValueError(
                f"{context.candidates} candidates, but the model has no head 'itc' to choose them"
                f" by; expected all of {len(images)} images and {len(texts)} texts"
            )
        features = TextFeatureStore()
        for prefix, mask in _text_prefixes(context, texts):
            features.add(prefix, mask)
        of_images = _everything(len(images), len(texts))
        of_texts = _everything(len(texts), len(images))
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
        metrics |= {f"reranked/{name}": value for name, value in again.items()}
        best = best.copy()
        order = np.argsort(-text_scores, axis=1, kind="stable")
        best[:, : context.candidates] = np.take_along_axis(text_best, order, 1)
    ids = list(groups)
    predictions = [
        {"key": record.key, "image_ids": [ids[place] for place in row]}
        for record, row in zip(texts, best[:, :LISTED].tolist(), strict=True)
    ]
    return EvalResult(metrics, predictions)


def rank(
    queries: Tensor,
    candidates: Tensor,
    query_owners: NDArray[np.int64],
    candidate_owners: NDArray[np.int64],
    listed: int,
) -> Ranking:
    """Rank all candidates of each query by the dot product of their vectors.

    Args:
        queries: (n, D).
        candidates: (m, D).
        query_owners: (n,) image that each query is or belongs to.
        candidate_owners: (m,) the same of the candidates; a pair with equal numbers is right.
        listed: candidates to list for each query.
    """
    best, ranks = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        # In float32 whatever the model runs in: rounded products would tie.
        with torch.autocast(queries.device.type, enabled=False):
            scores = (queries[block].float() @ candidates.float().T).cpu().numpy()
        ranks.append(wrong_before(scores, query_owners[block, None] == candidate_owners))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :listed]
        best.append(order.astype(np.int32))
    return Ranking(np.concatenate(best), np.concatenate(ranks))


def _everything(queries: int, candidates: int) -> Ranking:
    """List all candidates for each query, unranked."""
    order = np.arange(candidates, dtype=np.int32)
    return Ranking(np.tile(order, (queries, 1)), np.zeros(queries, dtype=np.int64))


def match_candidates(
    context: EvalContext,
    images: list[Record],
    texts: TextFeatureStore,
    image_candidates: NDArray[np.int32],
    text_candidates: NDArray[np.int32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Match each query with its candidates by ITM; a pair of both directions is scored once.

    Args:
        context: context of a model with the ITM head.
        images: a record of each of the P images.
        texts: features of the T texts.
        image_candidates: (P, k) indices of texts.
        text_candidates: (T, k) indices of images.

    Returns:
        (P, k) and (T, k) log odds of a match.
    """
    model, head = context.image_text, match_log_odds(context.image_text)
    image_scores = np.empty(image_candidates.shape, dtype=np.float32)
    text_scores = np.empty(text_candidates.shape, dtype=np.float32)
    # Positions of each image among the candidates of the texts, image by image.
    asked = text_candidates.ravel()
    asked_order = np.argsort(asked, kind="stable")
    starts = np.searchsorted(asked[asked_order], np.arange(len(images) + 1))
    number = 0
    for batch, _ in context.batches(images, "image_text"):
        prefix = model.backbone.image_prefix(batch.images)
        for row in range(len(batch)):
            own = asked_order[starts[number] : starts[number + 1]]
            wanted = np.concatenate((image_candidates[number], own // text_candidates.shape[1]))
            unique, where = np.unique(wanted, return_inverse=True)
            pairs = [(row, text) for text in unique.tolist()]
            scores = run_pairs(
                model, prefix, texts, pairs, head, pairs_at_once=context.batch_size
            ).numpy()[where]
            image_scores[number] = scores[: image_candidates.shape[1]]
            text_scores.ravel()[own] = scores[image_candidates.shape[1] :]
            number += 1
    return image_scores, text_scores


def _image_vectors(context: EvalContext, images: list[Record]) -> Tensor:
    model = context.image_text
    return torch.cat(
        [model.embed_images(batch.images) for batch, _ in context.batches(images, "image_text")]
    )


def _text_vectors(context: EvalContext, texts: list[Record]) -> tuple[Tensor, TextFeatureStore]:
    """Embed texts, and keep their features below the fusion if candidates are re-ranked."""
    model, features, vectors = context.image_text, TextFeatureStore(), []
    for prefix, mask in _text_prefixes(context, texts):
        vectors.append(
            model.text_vectors(model.backbone.complete_text(prefix, mask, wanted="pooled"))
        )
        if context.candidates:
            features.add(prefix, mask)
    return torch.cat(vectors), features


def _text_prefixes(context: EvalContext, texts: list[Record]) -> Iterator[tuple[Tensor, Tensor]]:
    """Run texts up to the first fused layer in batches: (B, L, D) features, (B, L) bool mask."""
    for start in range(0, len(texts), context.batch_size):
        some = texts[start : start + context.batch_size]
        ids, mask = context.texts([record.text for record in some])
        yield context.image_text.backbone.text_prefix(ids, mask), mask


def choose_ranking_heads(
    config: FiberConfig,
    rerank: bool | None,
    candidates: int | None,
    asked: str,
    *,
    stacklevel: int = 3,
) -> RankingHeads:
    """Choose the heads that rank images and texts.

    Warns if ITM has to rank alone, or cannot re-rank although it was asked to.

    Args:
        config: config of the model.
        rerank: re-rank the best by ITC with ITM; None: if the model has both heads.
        candidates: candidates of each query to re-rank, 1 or more; None: `RERANKED`.
        asked: subject of messages, such as a method or a task.
        stacklevel: of the warnings.

    Raises:
        MissingHeadError: if the model has neither head, or no ITC head while `rerank` is False.
        TypeError: if `rerank` is neither bool nor None.
        ValueError: if `candidates` is below 1.
    """
    if rerank is not None and not isinstance(rerank, (bool, np.bool_)):
        raise TypeError(
            f"{asked}: rerank is {rerank!r}; expected True or False (candidates sets how many)"
        )
    if candidates is not None and candidates < 1:
        raise ValueError(f"{asked}: candidates is {candidates}; expected 1 or more")
    wanted = rerank is None or bool(rerank)
    if not wanted or "itm" not in config.heads:
        need_head(config, "itc", asked)
        if wanted and not (rerank is None and candidates is None):
            warnings.warn(
                f"{asked}: the model has no head 'itm' to re-rank the best candidates; 'itc' alone"
                " ranks them",
                stacklevel=stacklevel,
            )
        return RankingHeads(("itc",), 0)
    if "itc" not in config.heads:
        warnings.warn(
            f"{asked}: the model has no head 'itc' to choose candidates by; 'itm' alone ranks, by"
            " matching every pair",
            stacklevel=stacklevel,
        )
        return RankingHeads(("itm",), 0)
    return RankingHeads(("itc", "itm"), RERANKED if candidates is None else candidates)
