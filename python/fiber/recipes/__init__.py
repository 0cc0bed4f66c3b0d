"""Training recipes: each is a function of its name that returns a whole `RunConfig`.

The docstring has the command, the data, the hardware, the expected metric and its source. A family
of recipes is a module, imported on first use. To add a recipe, write the function and name it in
`_FAMILIES`.
"""

from __future__ import annotations

import importlib
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

from fiber.config_io import nearest

#: Module -> the recipes that it defines. `small` trains on two CPU cores in minutes; the others are
#: of the published size.
_FAMILIES = {
    "small": (
        "scenes_coarse",
        "scenes_fine",
        "small_caption",
        "small_detection",
        "small_matching",
        "small_nlvr2",
        "small_retrieval",
        "small_vqa",
    ),
    "pretrain": ("pretrain", "pretrain_published"),
    "vqa": ("vqav2", "vqav2_published"),
    "nlvr2": ("nlvr2", "nlvr2_published"),
    "retrieval": (
        "retrieval_coco",
        "retrieval_coco_published",
        "retrieval_coco_itm",
        "retrieval_coco_itm_published",
        "retrieval_flickr30k",
        "retrieval_flickr30k_published",
        "retrieval_flickr30k_itm",
        "retrieval_flickr30k_itm_published",
    ),
    "caption": (
        "caption_coco",
        "caption_coco_published",
        "caption_coco_gold",
        "caption_coco_gold_published",
        "caption_coco_cider",
        "caption_coco_cider_published",
    ),
    "grounding": ("grounding", "refcoco", "refcocoplus", "refcocog"),
    "detection": (
        "coco_detection",
        "lvis_detection",
        "odinw_full",
        "odinw_few_shot",
        "own_detection",
    ),
}


def families() -> dict[str, tuple[str, ...]]:
    """Map each family, a module of this package, to its recipes."""
    return dict(_FAMILIES)


def names() -> list[str]:
    """List the recipes by name, as `fiber train RECIPE` takes them."""
    return sorted(name for family in _FAMILIES.values() for name in family)


def get(name: str) -> Callable[[], Any]:
    """Look up the function of a recipe, which returns a `RunConfig`.

    Raises:
        ValueError: if there is no such recipe, with the nearest names.
    """
    for family, recipes in _FAMILIES.items():
        if name in recipes:
            return getattr(importlib.import_module(f"fiber.recipes.{family}"), name)
    raise ValueError(f"recipe {name!r} does not exist; {nearest(name, names())}")


def describe(name: str) -> str:
    """Return a recipe's docstring.

    Raises:
        ValueError: if there is no such recipe, with the nearest names.
    """
    return inspect.getdoc(get(name)) or ""


def __getattr__(name: str) -> Any:
    """Serve the deprecated modules `fiber.recipes.<name>` of one recipe each."""
    if name.startswith("_") or name not in names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"fiber.recipes.{name} is deprecated; use fiber.recipes.get({name!r}), or `fiber recipes"
        f" {name}` for its description",
        DeprecationWarning,
        stacklevel=2,
    )
    module = types.ModuleType(f"{__name__}.{name}", describe(name))
    module.__dict__["recipe"] = get(name)
    return module
