"""Which heads each method of a model needs, and methods that run on the stage with the head."""

from __future__ import annotations

import functools
from typing import Any

from fiber.inference.boxes import BoxMethods

#: Heads of which each method needs one, the preferred one first.
METHOD_HEADS = {
    "ground": ("grounding",),
    "detect": ("grounding",),
    "answer": ("vqa",),
    "caption": ("caption",),
    "match": ("itm",),
    "reason": ("nlvr2",),
    "entail": ("snli",),
    "embed_images": ("itc",),
    "embed_texts": ("itc",),
    "search": ("itc", "rank", "itm"),
}
#: Head that decides which stage an attribute belongs to.
OWNERS = {"answers": "vqa", "classes": "grounding", "passes": "grounding"}


def by_head(method: str) -> Any:
    """Return a method that runs on the first stage with one of the heads that it needs.

    It calls `self.with_head(head, method)`, which returns the model of that stage.
    """
    heads = METHOD_HEADS[method]

    @functools.wraps(getattr(BoxMethods, method))
    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        head = next((head for head in heads if head in self.heads), heads[0])
        return getattr(self.with_head(head, method), method)(*arguments, **options)

    return run
