"""What a model can be asked for, by the heads that it has."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from fiber.config import FiberConfig, preset
from fiber.evaluation.retrieval import RERANKED

#: Recipe that trains each head, by preset; models of any other width get those of "base".
HEAD_RECIPES: dict[str, dict[str, str]] = {
    "base": {
        "itc": "retrieval_coco",
        "itm": "retrieval_coco_itm",
        "mlm": "pretrain",
        "vqa": "vqav2",
        "nlvr2": "nlvr2",
        "caption": "caption_coco",
        "grounding": "grounding",
    },
    "small": {
        "itc": "small_retrieval",
        "itm": "small_matching",
        "mlm": "scenes_coarse",
        "vqa": "small_vqa",
        "nlvr2": "small_nlvr2",
        "caption": "small_caption",
        "grounding": "scenes_fine",
    },
}


class MissingHeadError(ValueError):
    """The model was asked for something that it has no head for."""


class Ranking(NamedTuple):
    """What orders pictures and texts by one another."""

    #: ITC, ITM, or ITM on the best by ITC.
    heads: tuple[str, ...]
    #: How many of the best by ITC are ordered again; 0 where one head orders all.
    candidates: int


def need_head(config: FiberConfig, head: str, asked: str) -> None:
    """Check that the model has a head.

    Raises:
        MissingHeadError: if not; it names the heads there are and the recipe that trains it.
    """
    if head not in config.heads:
        raise MissingHeadError(
            f"{asked} needs the head {head!r}; this model has {', '.join(config.heads)}."
            f" `fiber train {_recipe_for(head, config)}` trains it;"
            " `fiber recipes` lists all recipes."
        )


def choose_ranking(
    config: FiberConfig, rerank: bool | None, candidates: int | None, asked: str
) -> Ranking:
    """Choose the heads that order pictures and texts by one another.

    A warning tells where ITM has to order alone, or cannot order again as it was asked to.

    Args:
        config: of the model.
        rerank: whether ITM shall order again what ITC has ordered; None: if the model can.
        candidates: how many of the best, 1 or more; None: `RERANKED`.
        asked: by what, for messages.

    Raises:
        MissingHeadError: if the model has neither head, or no ITC while `rerank` is False.
        TypeError: if `rerank` is neither bool nor None.
        ValueError: if `candidates` is below 1.
    """
    if rerank is not None and not isinstance(rerank, (bool, np.bool_)):
        raise TypeError(
            f"{asked}: rerank is {rerank!r}; expected True or False (candidates says how many)"
        )
    if candidates is not None and candidates < 1:
        raise ValueError(f"{asked}: candidates is {candidates}; expected 1 or more")
    wanted = rerank is None or bool(rerank)
    if not wanted or "itm" not in config.heads:
        need_head(config, "itc", asked)
        if wanted and not (rerank is None and candidates is None):
            warnings.warn(
                f"{asked}: the model has no head 'itm' to order the best again by matching;"
                " 'itc' alone orders them",
                stacklevel=3,
            )
        return Ranking(("itc",), 0)
    if "itc" not in config.heads:
        warnings.warn(
            f"{asked}: the model has no head 'itc' to choose candidates by; 'itm' alone orders,"
            " by matching every pair",
            stacklevel=3,
        )
        return Ranking(("itm",), 0)
    return Ranking(("itc", "itm"), RERANKED if candidates is None else candidates)


def _recipe_for(head: str, config: FiberConfig) -> str:
    """Name the recipe that trains a head of a model of this width."""
    is_small = config.roberta.width == preset("small").roberta.width
    return HEAD_RECIPES["small" if is_small else "base"][head]
