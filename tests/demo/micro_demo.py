"""A demo that takes seconds: 40 pictures and four steps of each run on the micro model."""

from collections.abc import Mapping
from typing import Any

from fiber.config import preset
from fiber.demo.plan import Plan

TASKS = ("retrieval", "matching", "masked_words", "vqa", "refcoco", "flickr", "coco")
STEPS: Mapping[str, Any] = {
    "data.batch_size": 8,
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
}
FINE: Mapping[str, Any] = {
    "model": preset("micro", stage="fine"),
    "data.transform.shorter_sides": (64,),
    "data.transform.max_size": 96,
    **STEPS,
}

MICRO = Plan(
    train_images=40,
    held_out_images=20,
    runs={"fine": FINE, "coarse": {"model": preset("micro"), **STEPS}},
    records=dict.fromkeys(TASKS, 24),
    counted_captions=50,
    seconds=dict.fromkeys(("data", "fine", "coarse", "evaluation", "page"), 1.0),
)
