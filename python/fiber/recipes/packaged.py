"""Recipes of the model in the package, `fiber.load("scenes")`."""

from __future__ import annotations

from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.recipes.small import scenes_coarse, scenes_fine
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask, ImageTextTask, QuestionTask, TasksConfig


def packaged_coarse() -> RunConfig:
    """Coarse stage of the model in the package: captions and questions on varied scenes.

    Command: fiber data scenes --varied --images 100000 --output runs/varied
             fiber train packaged_coarse --data runs/varied --output runs/packaged/coarse
    Data: rendered scenes with varied backgrounds and colors, with captions (ITC, ITM, MLM and
        captioning) and questions (VQA).
    Hardware: one CPU core for an hour.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md.
    """
    tasks = TasksConfig(
        image_text=ImageTextTask(share=2, itm_negatives="random"),
        question=QuestionTask(share=4),
        caption=CaptionTask(share=1),
    )
    changes = {
        "model": preset("tiny"),
        "tasks": tasks,
        "optim.lr": 1e-3,
        "optim.warmup_fraction": 0.05,
        "train.steps": 14_000,
        "train.checkpoint_every": 500,
        "train.ema_decay": 0.999,
    }
    return replace_fields(scenes_coarse(), changes)


def packaged_fine() -> RunConfig:
    """Fine stage of the model in the package: boxes for texts on varied scenes.

    Command: fiber train packaged_fine --data runs/varied --init runs/packaged/coarse
                 --output runs/packaged/fine
    Data: as for `packaged_coarse`, with referring expressions, captions with phrases, and detection
        prompts.
    Hardware: one CPU core for an hour.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md.
    """
    changes = {
        "model": preset("tiny", stage="fine"),
        # Objects of drawings have other sizes than those of scenes.
        "data.transform.shorter_sides": (48, 56, 64, 72, 80),
        "train.steps": 28_000,
        "train.checkpoint_every": 1000,
        "train.ema_decay": 0.999,
    }
    return replace_fields(scenes_fine(), changes)
