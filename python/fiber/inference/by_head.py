"""Which heads each method of a model needs, and methods that run on the stage with the head."""

from __future__ import annotations

import functools
from typing import Any

from fiber.inference.masks.segment import MaskMethods
from fiber.inference.suggestions import suggest_keywords_of_methods, unknown_attribute
from fiber.models.heads import EMBEDDING_HEADS, MissingHeadError, how_to_get

#: Heads of which each method needs one, the preferred one first.
METHOD_HEADS = {
    "ground": ("grounding",),
    "detect": ("grounding",),
    "answer": ("vqa",),
    "caption": ("caption",),
    "match": ("itm",),
    "match_pairs": ("itm",),
    "reason": ("nlvr2",),
    "entail": ("snli",),
    "segment": ("mask",),
    "class_vectors": ("mask",),
    "embed_images": EMBEDDING_HEADS,
    "embed_texts": EMBEDDING_HEADS,
    "search": (*EMBEDDING_HEADS, "rank", "itm"),
}
#: Head that decides which stage an attribute belongs to.
OWNERS = {"answers": "vqa", "classes": "grounding", "passes": "grounding", "presence": "grounding"}


def by_head(method: str) -> Any:
    """Return a method that runs on the first stage with one of the heads that it needs.

    It calls `self.with_head(head, method)`, which returns the model of that stage.
    """
    heads = METHOD_HEADS[method]

    @functools.wraps(getattr(MaskMethods, method))
    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        head = next((head for head in heads if head in self.heads), heads[0])
        return getattr(self.with_head(head, method), method)(*arguments, **options)

    return run


@suggest_keywords_of_methods
class Stages:
    """Methods of several models, `stages` by name: each runs on the first with a head for it."""

    stages: dict[str, Any]
    #: What messages call the models.
    _called = "this model has"

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of all stages."""
        return tuple(dict.fromkeys(head for each in self.stages.values() for head in each.heads))

    def with_head(self, head: str, asked: str) -> Any:
        """Return the model of the first stage with a head.

        Raises:
            MissingHeadError: if no stage has it. The message names `asked`, a method or task.
        """
        for model in self.stages.values():
            if head in model.heads:
                return model
        message = f"{asked} needs the head {head!r}; {self._called} {', '.join(self.heads)}."
        config = getattr(next(iter(self.stages.values()), None), "config", None)
        raise MissingHeadError(message + how_to_get((head,), config))

    def need_head(self, head: str, asked: str) -> None:
        """Raise MissingHeadError if no stage has a head; see `with_head`."""
        self.with_head(head, asked)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.stages)}, heads={', '.join(self.heads)})"

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stage that it belongs to."""
        stages = self.__dict__.get("stages", {})
        if name in OWNERS and OWNERS[name] in self.heads:
            return getattr(self.with_head(OWNERS[name], name), name)
        places = [f".stages[{stage!r}].{name}" for stage in stages if hasattr(stages[stage], name)]
        if not places:
            raise unknown_attribute(self, name)
        raise AttributeError(
            f"{name!r} belongs to the model of one stage; use {' or '.join(places)}", name=name
        )

    ground = by_head("ground")
    detect = by_head("detect")
    segment = by_head("segment")
    class_vectors = by_head("class_vectors")
    answer = by_head("answer")
    caption = by_head("caption")
    match = by_head("match")
    match_pairs = by_head("match_pairs")
    reason = by_head("reason")
    entail = by_head("entail")
    embed_images = by_head("embed_images")
    embed_texts = by_head("embed_texts")
    search = by_head("search")
