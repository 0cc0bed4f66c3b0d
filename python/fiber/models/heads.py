"""Names of heads, the recipes that train them, and the error for a head that a model lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from fiber.config import FiberConfig, preset

#: Recipe that trains each head, by preset; models that match no preset use "base". "meter" are all
#: METER models.
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
        "grounding_mask": "scenes_fine_masks",
    },
    "meter": {
        "itm": "meter_pretrain_published",
        "mlm": "meter_pretrain_published",
        "vqa": "meter_vqav2_published",
        "nlvr2": "meter_nlvr2_published",
        "snli": "meter_snli_ve_published",
        "rank": "meter_retrieval_coco_published",
    },
}

#: Recipes of heads that only small models are trained with.
_SMALL_ONLY = {"grounding_mask": "scenes_fine_masks"}

#: Heads whose vectors of images and texts are compared without fusion, the preferred one first.
EMBEDDING_HEADS = ("itc", "retrieval")


class MissingHeadError(ValueError):
    """Raised if the model lacks the head that a task or method needs."""


class HasHeads(Protocol):
    """Config of any model."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        ...


class HasConfig(Protocol):
    """Network of any family, as `fiber.models.registry.Network`."""

    @property
    def config(self) -> Any:
        """The `ModelConfig`."""
        ...


@runtime_checkable
class HintsAtHeads(HasHeads, Protocol):
    """Config of a family that says where a head is found, and which heads rank pairs."""

    @property
    def pair_heads(self) -> tuple[str, ...]:
        """Heads that rank pairs for retrieval, best first."""
        ...

    def head_hint(self, head: str) -> str:
        """Return a sentence about a head that the model lacks."""
        ...


def need_head(config: HasHeads, head: str | tuple[str, ...], asked: str) -> None:
    """Check that a model has the head, or one of the heads, that a method or task (`asked`) needs.

    Raises:
        MissingHeadError: if it does not; the message lists its heads, and the family's files or a
            recipe with the missing one.
    """
    heads = (head,) if isinstance(head, str) else head
    if set(heads).intersection(config.heads):
        return
    named = " or ".join(map(repr, heads))
    message = f"{asked} needs the head {named}; this model has {', '.join(config.heads)}."
    raise MissingHeadError(message + how_to_get(heads, config))


def how_to_get(heads: Sequence[str], config: object) -> str:
    """Return sentences, each after a space, about where a model gets heads that it lacks."""
    message = ""
    if isinstance(config, HintsAtHeads):
        message += "".join(f" {config.head_hint(head)}" for head in heads)
    if isinstance(config, FiberConfig):
        is_small = config.roberta.width == preset("small").roberta.width
        kind = "small" if is_small else "base"
    else:
        kind = getattr(config, "family", "")
    # Some heads exist in one family only.
    trained = HEAD_RECIPES.get(kind, {})
    if recipes := [f"`fiber train {trained[head]}`" for head in heads if head in trained]:
        message += f" To train this head, run {' or '.join(recipes)} (see also `fiber recipes`)."
    elif small := [f"`fiber train {own}`" for head in heads if (own := _SMALL_ONLY.get(head))]:
        message += f" {' or '.join(small)} trains a small model with this head."
    return message or (
        " Pass a model that has it, such as a released file (docs/photographs.md and"
        " docs/segmentation.md say where they are), or train one (`fiber recipes`)."
    )
