"""Training recipes: functions that each return a complete `RunConfig`.

A recipe's docstring gives the command, the data, the hardware, and the expected metric with its
source. Each family of recipes is a module, imported on first use. To add a recipe, write the
function and list it in `_FAMILIES`; those of other packages are named "package.module:function".
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from fiber.config_io import nearest
from fiber.messages import shown
from fiber.tasks.lazy import load

#: Recipes by module. `small` recipes train on two CPU cores in minutes; the others use
#: the published model size.
_FAMILIES = {
    "small": (
        "scenes_coarse",
        "scenes_fine",
        "scenes_fine_masks",
        "small_caption",
        "small_detection",
        "small_matching",
        "small_meter",
        "small_nlvr2",
        "small_retrieval",
        "small_vqa",
    ),
    "packaged": ("packaged_absent", "packaged_coarse", "packaged_fine", "packaged_words"),
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
    "meter": (
        "meter_pretrain_published",
        "meter_vqav2_published",
        "meter_nlvr2_published",
        "meter_snli_ve_published",
        "meter_retrieval_coco_published",
        "meter_retrieval_flickr30k_published",
    ),
    "segmentation": ("coco_panoptic", "refcocog_masks", "scenes_pixel"),
    "detection": (
        "coco_detection",
        "lvis_detection",
        "odinw_full",
        "odinw_few_shot",
        "own_detection",
    ),
}


def families() -> dict[str, tuple[str, ...]]:
    """Return the recipe names of each family (a module of this package)."""
    return dict(_FAMILIES)


def names() -> list[str]:
    """List the recipe names accepted by `fiber train RECIPE`."""
    return sorted(name for family in _FAMILIES.values() for name in family)


def get(name: str) -> Callable[[], Any]:
    """Look up a recipe, which is a function that returns a `RunConfig`.

    Args:
        name: one of `names`, or a function of another package as "package.module:function".

    Raises:
        ValueError: if there is no such recipe; the message suggests the nearest names.
    """
    if ":" in name:
        try:
            found = load(name)
        except (ImportError, ValueError) as error:
            raise ValueError(f"recipe {shown(name)} does not exist: {error}") from error
        if not callable(found):
            raise ValueError(f"recipe {shown(name)}: expected a function, got {shown(found)}")
        return found
    for family, recipes in _FAMILIES.items():
        if name in recipes:
            return getattr(importlib.import_module(f"fiber.recipes.{family}"), name)
    raise ValueError(f"recipe {shown(name)} does not exist; {nearest(name, names())}")


def describe(name: str) -> str:
    """Return a recipe's docstring.

    Raises:
        ValueError: if there is no such recipe; the message suggests the nearest names.
    """
    return inspect.getdoc(get(name)) or ""
