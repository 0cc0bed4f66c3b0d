"""How long the demo is: every count and every changed field of a recipe stands here.

Steps and pictures are fixed numbers, never a time budget, so that the same seed gives the same
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

    #: Pictures of the training split.
    train_pictures: int
    #: Pictures of each of the splits val and novel.
    held_out_pictures: int = 500
    #: Recipe of the coarse stage, and its fields that the demo changes.
    coarse_recipe: str = "scenes_coarse"
    coarse: Mapping[str, Any]
    #: The same for the fine stage.
    fine_recipe: str = "scenes_fine"
    fine: Mapping[str, Any]
    #: Records of a split that each task is measured on, at most; a record is a caption, a question,
    #: an expression or (coco) a picture with all classes.
    records: Mapping[str, int]
    #: Splits that are measured with fusion off too.
    unfused_splits: tuple[str, ...] = ("val", "novel")
    #: Training captions in which the blind guess of masked words is counted, at most.
    counted_captions: int = 20_000
    #: Seconds of each stage on two cores, for the estimate of the time left.
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> dict[str, int]:
        """What recorded numbers of this plan depend on: pictures, and steps of each stage."""
        return {
            "train_pictures": self.train_pictures,
            "coarse_steps": self.coarse["train.steps"],
            "fine_steps": self.fine["train.steps"],
        }

    def coarse_config(self, seed: int, **changes: Any) -> RunConfig:
        """The coarse run; `changes` by dotted name with __ for dots, on top of the plan's."""
        return _config(self.coarse_recipe, self.coarse, seed, changes)

    def fine_config(self, seed: int, **changes: Any) -> RunConfig:
        """The fine run; `changes` as for the coarse one."""
        return _config(self.fine_recipe, self.fine, seed, changes)


def _config(recipe: str, own: Mapping[str, Any], seed: int, changes: Mapping[str, Any]) -> Any:
    more = {name.replace("__", "."): value for name, value in changes.items()}
    return replace_fields(load_recipe(recipe), {**own, "train.seed": seed, **more})


_MANY_RECORDS = {
    "retrieval": 1000,
    "matching": 300,
    "masked_words": 400,
    # All of them: what is learned in minutes stands out from the priors by a few hundredths.
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

#: Matching needs good contrast first, which this length does not give: it is left out. What else
#: differs from the recipe lets contrast start sooner and reaches less in the end.
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

#: Stamps have hundreds of nouns, which are answers too. As classes a few of them fit into one text.
_STAMPS_COARSE = {"model.image_text.num_answers": 512}
_STAMPS_FINE = {"tasks.grounding.max_classes": 6, "tasks.grounding.shuffle_classes": True}

#: By kind of data and mode.
PLANS: dict[tuple[str, str], Plan] = {
    ("scenes", "default"): Plan(
        train_pictures=24_000,
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
        train_pictures=5000,
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
        train_pictures=10_000,
        coarse={**_STAMPS_COARSE, "train.steps": 400, "train.checkpoint_every": 50},
        fine={**_STAMPS_FINE, "train.steps": 1100, "train.checkpoint_every": 200},
        # Hundreds of classes are asked for in many texts, each of which is read with each picture.
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
        train_pictures=2500,
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
    """Look a plan up.

    Raises:
        ValueError: if there is none for this kind of data.
    """
    if (data, mode) not in PLANS:
        raise ValueError(f"demo data {data!r}: {nearest(data, sorted({d for d, _ in PLANS}))}")
    return PLANS[data, mode]
