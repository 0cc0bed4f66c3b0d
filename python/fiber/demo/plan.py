"""Plan of the demo: dataset sizes, and the recipe fields that it overrides.

The numbers of steps and images are fixed, rather than set by a time budget, so that a run does the
same work on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fiber.config_io import nearest, replace_fields, to_dict
from fiber.training.config.run import RunConfig, load_recipe

#: Recipes of the runs, in the order of training.
RECIPES = {"fine": "scenes_fine", "coarse": "scenes_coarse"}
STAGES = tuple(RECIPES)
#: Processes that train a model. Two with a thread each are faster than two threads of one process,
#: which wait for each other in every operation, most of all beside other work
#: (benches/bench_demo_pace.py).
PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Dataset sizes, runs and their recipe overrides, for one kind of demo."""

    #: Number of training images.
    train_images: int
    #: Number of images in each of val and novel.
    held_out_images: int = 500
    #: Recipe fields to override in each run, in the order of training. A run starts with the
    #: weights of the previous one.
    runs: Mapping[str, Mapping[str, Any]]
    #: Maximum number of records per split, by task. A record is a caption, a question, an
    #: expression or (coco) an image with all classes.
    records: Mapping[str, int]
    #: Maximum number of training captions for the blind MLM baseline.
    counted_captions: int = 20_000
    #: Duration of each part in seconds on two cores, used to estimate the remaining time.
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def training(self) -> dict[str, Any]:
        """What a run's metrics depend on, as in a JSON file: training images and overrides."""
        parts = {"train_images": self.train_images, **self.runs}
        return json.loads(json.dumps(parts, default=to_dict))

    def config(self, run: str, seed: int) -> RunConfig:
        """Return the config of a run, which is a key of `runs`."""
        return replace_fields(load_recipe(RECIPES[run]), self._changes(run, seed))

    def _changes(self, run: str, seed: int) -> dict[str, Any]:
        """Return the recipe fields of a run that a demo with this seed overrides."""
        return {**self.runs[run], "train.seed": seed}

    def train_command(self, run: str, seed: int, folder: Path) -> list[str]:
        """Return the arguments of `fiber` for a run in the demo's folder."""
        command = ["train", RECIPES[run], "--data", f"{folder}/data"]
        command += ["--output", f"{folder}/{run}"]
        order = list(self.runs)
        if run != order[0]:
            command += ["--init", f"{folder}/{order[order.index(run) - 1]}"]
        command += ["--device", "cpu", "--processes", f"{PROCESSES}"]
        for name, value in self._changes(run, seed).items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            command += ["--set", f"{name}={text}"]
        return command


#: Maximum number of records per task in the default and the fast demo.
_RECORDS = {
    "retrieval": (1000, 500),
    "matching": (300, 100),
    "masked_words": (400, 100),
    # Many, since accuracy is also reported by kind of word, and a few minutes of training beat
    # the priors of some kinds by only a few hundredths.
    "vqa": (1500, 150),
    "refcoco": (1600, 150),
    "flickr": (250, 100),
    "coco": (150, 80),
}
_MANY_RECORDS = {task: many for task, (many, _) in _RECORDS.items()}
_FEW_RECORDS = {task: few for task, (_, few) in _RECORDS.items()}

#: Parts of the image encoder before the fusion, which the coarse stage leaves as boxes have taught
#: them. Steps take less time, and more questions are answered (benches/starts.py).
FIRST_STAGES = (
    "backbone.image.patch_embedding",
    "backbone.image.stages.0",
    "backbone.image.stages.1",
)
#: Only ITC is trained on captions, since the others learn little in half a minute.
_FAST_COARSE = {
    "train.steps": 80,
    "train.checkpoint_every": 40,
    "tasks.image_text.itm": 0.0,
    "tasks.image_text.mlm": 0.0,
    "tasks.image_text.share": 2,
    "tasks.question.share": 1,
    "optim.cross_modal_lr_multiplier": 1.0,
    "optim.frozen": FIRST_STAGES,
}
#: A minute is too short for relations, so expressions are not repeated. Captions are: each teaches
#: all objects of a picture.
_FAST_FINE = {
    "train.steps": 250,
    "train.checkpoint_every": 125,
    "data.batch_size": 28,
    "optim.lr": 0.002,
    "tasks.grounding.sources": ("referring", *("phrases",) * 3, "detection"),
}

#: Stamps have hundreds of nouns, which are also answers.
_STAMPS_COARSE = {
    "tasks.question.share": 1,
    "optim.cross_modal_lr_multiplier": 1.0,
    "model.image_text.num_answers": 512,
    "model.image_text.temperature": 0.07,
    "tasks.image_text.itm_negatives": "half",
    "optim.lr": 5e-4,
}
#: Only a few nouns fit into one prompt.
_STAMPS_FINE = {
    "tasks.grounding.sources": ("referring", "phrases", "detection"),
    "model.detector.channels": 96,
    "model.detector.num_blocks": 1,
    "tasks.grounding.max_classes": 6,
    "tasks.grounding.shuffle_classes": True,
    "data.batch_size": 16,
    "optim.lr": 5e-4,
    "optim.head_lr_multiplier": 2.0,
    "optim.warmup_fraction": 0.1,
    "train.ema_decay": 0.0,
}
_STAMPS_FAST_COARSE = {
    **_STAMPS_COARSE,
    "train.steps": 204,
    "train.checkpoint_every": 68,
    "data.batch_size": 24,
    "optim.lr": 7e-4,
    "optim.warmup_fraction": 0.2,
    "model.image_text.temperature": 0.03,
    "tasks.image_text.itm": 0.0,
    "tasks.image_text.share": 4,
}


#: Plans by kind of data and mode.
PLANS: dict[tuple[str, str], Plan] = {
    ("scenes", "default"): Plan(
        train_images=16_000,
        runs={
            "fine": {
                "train.steps": 1200,
                "train.checkpoint_every": 240,
                # A third of the time of a step with 24 images does not depend on their number.
                "data.batch_size": 40,
                "optim.lr": 0.0015,
                # Mixed with captions and class prompts from the start, relations take more steps.
                "tasks.grounding.first_sources": ("referring:relation", "referring"),
                "tasks.grounding.first_steps": 360,
            },
            "coarse": {
                "train.steps": 720,
                "train.checkpoint_every": 144,
                "data.batch_size": 40,
                # With fewer captions, retrieval of new combinations suffers.
                "tasks.question.share": 2,
                # Mixed with others from the start, these take more steps.
                "tasks.question.first_sources": ("questions:color", "questions:shape"),
                "tasks.question.first_steps": 180,
                "optim.frozen": FIRST_STAGES,
            },
        },
        records=_MANY_RECORDS,
        seconds={
            "data": 17,
            "fine": 258,
            "coarse": 160,
            "evaluation": 30,
            "page": 7,
        },
    ),
    ("scenes", "fast"): Plan(
        train_images=4000,
        runs={"fine": _FAST_FINE, "coarse": _FAST_COARSE},
        records=_FEW_RECORDS,
        seconds={"data": 6, "fine": 54, "coarse": 21, "evaluation": 13, "page": 7},
    ),
    ("stamps", "default"): Plan(
        train_images=10_000,
        runs={
            "fine": {**_STAMPS_FINE, "train.steps": 1100, "train.checkpoint_every": 200},
            "coarse": {**_STAMPS_COARSE, "train.steps": 400, "train.checkpoint_every": 50},
        },
        # Hundreds of classes need many prompts, and each image is evaluated with every prompt.
        records=_MANY_RECORDS | {"coco": 25},
        seconds={"data": 45, "fine": 245, "coarse": 230, "evaluation": 55, "page": 8},
    ),
    ("stamps", "fast"): Plan(
        train_images=2500,
        runs={
            "fine": {
                **_STAMPS_FINE,
                "train.steps": 190,
                "train.checkpoint_every": 95,
                "optim.warmup_fraction": 0.15,
            },
            "coarse": _STAMPS_FAST_COARSE,
        },
        records=_FEW_RECORDS | {"coco": 10},
        seconds={"data": 11, "fine": 44, "coarse": 44, "evaluation": 14, "page": 5},
    ),
}


def find_plan(data: str, mode: str) -> Plan:
    """Return the plan for a kind of data and a mode. Raises ValueError if there is none."""
    if (data, mode) not in PLANS:
        raise ValueError(
            f"unknown demo data {data!r}; {nearest(data, sorted({d for d, _ in PLANS}))}"
        )
    return PLANS[data, mode]
