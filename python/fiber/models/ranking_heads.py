"""Choose the heads that rank images for a text and texts for an image."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fiber.models.heads import EMBEDDING_HEADS, HintsAtHeads, need_head

if TYPE_CHECKING:
    from fiber.models.model_config import ModelConfig

#: Default number of candidates that ITM reranks.
RERANKED = 32


class RankingHeads(NamedTuple):
    """Heads that rank images and texts."""

    #: One of `EMBEDDING_HEADS`, "itm" or "rank"; or ("itc", "itm") to rerank the best ITC
    #: candidates with ITM.
    heads: tuple[str, ...]
    #: Number of candidates per query to rerank; 0 if only one head ranks.
    candidates: int


def choose_ranking_heads(
    config: ModelConfig,
    rerank: bool | None,
    candidates: int | None,
    caller: str,
    *,
    stacklevel: int = 3,
) -> RankingHeads:
    """Choose the heads that rank images and texts.

    Warns if ITM ranks alone, or if requested reranking is not possible.

    Args:
        config: model configuration.
        rerank: rerank the best ITC candidates with ITM. None means True if the model has both
            heads.
        candidates: number of candidates per query to rerank, at least 1. None means `RERANKED`.
        caller: name of the method or task, for messages.
        stacklevel: stack level of the warnings.

    Raises:
        MissingHeadError: if the model has neither head, or no ITC head while `rerank` is False.
        TypeError: if `rerank` is neither bool nor None.
        ValueError: if `candidates` is below 1.
    """
    if rerank is not None and not isinstance(rerank, (bool, np.bool_)):
        raise TypeError(
            f"{caller}: rerank is {rerank!r}; expected True, False or None (use `candidates` to set"
            " the number of candidates to rerank)"
        )
    if candidates is not None and candidates < 1:
        raise ValueError(f"{caller}: candidates is {candidates}; expected 1 or more")
    wanted = rerank is None or bool(rerank)
    alone = next((head for head in EMBEDDING_HEADS if head in config.heads), "itc")
    if wanted and isinstance(config, HintsAtHeads):
        # Families without ITC; METER scores every pair.
        need_head(config, config.pair_heads, caller)
        best = next(head for head in config.pair_heads if head in config.heads)
        return RankingHeads((best,), 0)
    if not wanted or "itm" not in config.heads:
        need_head(config, alone, caller)
        if wanted and not (rerank is None and candidates is None):
            warnings.warn(
                f"{caller}: the model has no head 'itm' to rerank candidates; ranking with"
                f" {alone!r} only",
                stacklevel=stacklevel,
            )
        return RankingHeads((alone,), 0)
    if "itc" not in config.heads:
        warnings.warn(
            f"{caller}: the model has no head 'itc' to select candidates; ranking with 'itm' only,"
            " by scoring every pair",
            stacklevel=stacklevel,
        )
        return RankingHeads(("itm",), 0)
    return RankingHeads(("itc", "itm"), RERANKED if candidates is None else candidates)
