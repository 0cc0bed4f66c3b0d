"""Length of the demo: all counts, and the recipe fields that it changes.

Steps and images are fixed numbers instead of a time budget, so that the same seed gives the same
result on a slow machine too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fiber.config_io import nearest, replace_fields
from fiber.training.config.run import RunConfig, load_recipe


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes and lengths of one kind of demo."""

    #: Images of the training split.
    train_images: int
    #: Images of each of the splits val and novel.
    held_out_images: int = 500
    #: Recipe of the coarse stage, and the fields that the demo changes.
    coarse_recipe: str = "scenes_coarse"
    coarse: Mapping[str, Any]
    #: The same for the fine stage.
    fine_recipe: str = "scenes_fine"
    fine: Mapping[str, Any]
    #: Maximum records of a split for each task; a record is a caption, a question, an expression or
    #: (coco) an image with all classes.
    records: Mapping[str, int]
    #: Splits also evaluated without fusion.
    unfused_splits: tuple[str, ...] = ("val", "novel")
    #: Maximum training captions for the blind MLM baseline.
    counted_captions: int = 20_000
    #: Seconds of each stage on two cores, to estimate the remaining time.
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> dict[str, int]:
        """Training images and steps of each stage, on which recorded numbers depend."""
        return {
            "train_images": self.train_images,
            "coarse_steps": self.coarse["train.steps"],
            "fine_steps": self.fine["train.steps"],
        }

    def coarse_config(self, seed: int, **changes: Any) -> RunConfig:
        """Configure the coarse run; `changes` override the plan, __ for dots in names."""
        return _config(self.coarse_recipe, self.coarse, seed, changes)

    def fine_config(self, seed: int, **changes: Any) -> RunConfig:
        """Configure the fine run; `changes` as in `coarse_config`."""
        return _config(self.fine_recipe, self.fine, seed, changes)


def _config(recipe: str, own: Mapping[str, Any], seed: int, changes: Mapping[str, Any]) -> Any:
    more = {name.replace("__", "."): value for name, value in changes.items()}
    return replace_fields(load_recipe(recipe), {**own, "train.seed": seed, **more})


_MANY_RECORDS = {
    "retrieval": 1000,
    "matching": 300,
    "masked_words": 400,
    # All records: in minutes a model improves on the priors by a few hundredths only.
    "vqa": 1500,
    "refcoco": 400,
    "flickr": 250,
    "coco": 150,
}
_FEW_RECORDS = {
    "retrieval": 500,
    "matching": 100,
    "masked_words": 100,
    "vqa": 150,
    "refcoco": 150,
    "flickr": 100,
    "coco": 80,
}

#: ITM is off: it needs a well-trained ITC first, which this length does not give. The other changes
#: let ITC improve sooner, with a lower final result.
_FAST_COARSE = {
    "train.steps": 204,
    "train.checkpoint_every": 68,
    "data.batch_size": 24,
    "optim.lr": 7e-4,
    "optim.warmup_fraction": 0.2,
    "model.image_text.temperature": 0.03,
    "tasks.image_text.itm": 0.0,
    "tasks.image_text.share": 4,
}
_FAST_FINE = {"train.steps": 190, "train.checkpoint_every": 95, "optim.warmup_fraction": 0.15}

#: Stamps have hundreds of nouns, which are also answers. Only a few fit into one text as classes.
_STAMPS_COARSE = {"model.image_text.num_answers": 512}
_STAMPS_FINE = {"tasks.grounding.max_classes": 6, "tasks.grounding.shuffle_classes": True}

#: By kind of data and mode.
PLANS: dict[tuple[str, str], Plan] = {
    ("scenes", "default"): Plan(
        train_images=24_000,
        coarse={"train.steps": 440, "train.checkpoint_every": 110},
        fine={"train.steps": 1080, "train.checkpoint_every": 180},
        records=_MANY_RECORDS,
        seconds={
            "data": 15,
            "coarse": 255,
            "fine": 256,
            "evaluation": 60,
            "ablations": 750,
            "page": 5,
        },
    ),
    ("scenes", "fast"): Plan(
        train_images=5000,
        coarse=_FAST_COARSE,
        fine=_FAST_FINE,
        records=_FEW_RECORDS,
        unfused_splits=("val",),
        seconds={
            "data": 4,
            "coarse": 44,
            "fine": 44,
            "evaluation": 18,
            "ablations": 130,
            "page": 3,
        },
    ),
    ("stamps", "default"): Plan(
        train_images=10_000,
        coarse={**_STAMPS_COARSE, "train.steps": 400, "train.checkpoint_every": 50},
        fine={**_STAMPS_FINE, "train.steps": 1100, "train.checkpoint_every": 200},
        # Hundreds of classes need many texts, and each image is evaluated with every text.
        records=_MANY_RECORDS | {"coco": 25},
        seconds={
            "data": 45,
            "coarse": 230,
            "fine": 245,
            "evaluation": 60,
            "ablations": 750,
            "page": 5,
        },
    ),
    ("stamps", "fast"): Plan(
        train_images=2500,
        coarse={**_FAST_COARSE, **_STAMPS_COARSE},
        fine={**_FAST_FINE, **_STAMPS_FINE},
        records=_FEW_RECORDS | {"coco": 10},
        unfused_splits=("val",),
        seconds={
            "data": 11,
            "coarse": 44,
            "fine": 44,
            "evaluation": 18,
            "ablations": 130,
            "page": 3,
        },
    ),
}


def find_plan(data: str, mode: str) -> Plan:
    """Return the plan of a kind of data and mode.

    Raises:
        ValueError: if there is none.
    """
    if (data, mode) not in PLANS:
        raise ValueError(f"demo data {data!r}: {nearest(data, sorted({d for d, _ in PLANS}))}")
    return PLANS[data, mode]
