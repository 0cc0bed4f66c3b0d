"""Recipes of the model in the package, `fiber.load("scenes")`."""

from __future__ import annotations

from fiber.config_io import replace_fields
from fiber.recipes.small import scenes_coarse, scenes_fine
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import CaptionTask, ImageTextTask, QuestionTask, TasksConfig


def packaged_words() -> RunConfig:
    """First part of the fine stage of the model in the package, from scratch: relations.

    Command: fiber data scenes --varied --images 100000 --output runs/varied
             fiber train packaged_words --data runs/varied --output runs/packaged/words
                 --processes 2
    Data: scenes with varied backgrounds and colors; expressions that name a shape, a color or a
        relation.
    Hardware: two CPU cores for minutes; see the card.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md.

    The map of an image of up to 96 pixels fits into one attention window. On larger images,
    objects in different windows do not see each other.
    """
    changes = {
        "tasks.grounding.sources": ("referring:relation", "referring:noun", "referring:color"),
        "data.transform.shorter_sides": (80, 88, 96),
        "train.steps": 4000,
        "train.checkpoint_every": 500,
        "train.ema_decay": 0.999,
    }
    return replace_fields(scenes_fine(), changes)


def packaged_fine() -> RunConfig:
    """Second part of the fine stage of the model in the package: words and prompts of every kind.

    Command: fiber train packaged_fine --data runs/varied --init runs/packaged/words
                 --output runs/packaged/fine --processes 2
    Data: as for `packaged_words`, with all referring expressions, captions with phrases, and
        detection prompts. Some of these name only classes that are not in the image.
    Hardware: two CPU cores for minutes; see the card.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md.
    """
    changes = {
        "tasks.grounding.sources": (
            *("referring", "referring:relation", "referring:relation"),
            *("phrases", "detection"),
        ),
        "tasks.grounding.shuffle_classes": True,
        "tasks.grounding.negative_chances": (0.0, 0.0, 0.5, 0.5),
        "tasks.grounding.absent_chance": 0.3,
        # Objects of drawings have other sizes than those of scenes.
        "data.transform.shorter_sides": (72, 84, 96, 96, 108),
        "train.steps": 5000,
        "train.checkpoint_every": 500,
        "train.ema_decay": 0.999,
    }
    return replace_fields(scenes_fine(), changes)


def packaged_absent() -> RunConfig:
    """Third part of the fine stage of the model in the package: phrases that are not there.

    Command: fiber data scenes --varied --images 12000 --output runs/varied-12000
             fiber train packaged_absent --data runs/varied-12000 --init runs/packaged/fine
                 --output runs/packaged/absent
    Data: the first of the images of `packaged_fine`; of the phrases and expressions, up to three
        of ten are not in the image.
    Hardware: two CPU cores for minutes; see the card.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md, and
        docs/evidence.md.
    """
    changes = {
        "tasks.grounding.absent_phrase_chance": 0.3,
        "optim.lr": 3e-4,
        "train.steps": 400,
        "train.checkpoint_every": 400,
        "train.ema_decay": 0.98,
    }
    return replace_fields(packaged_fine(), changes)


def packaged_coarse() -> RunConfig:
    """Captions and questions on varied scenes: the coarse stage of the model in the package.

    Command: fiber train packaged_coarse --data runs/varied --init runs/packaged/fine
                 --output runs/packaged/coarse --processes 2
    Data: as for `packaged_words`, with captions (ITC, ITM, MLM and captioning) and questions (VQA).
    Hardware: two CPU cores for minutes; see the card.
    Expected: see the card of the model, python/fiber/packaged/scenes/README.md.
    """
    tasks = TasksConfig(
        image_text=ImageTextTask(share=2, itm_negatives="random"),
        question=QuestionTask(share=3),
        caption=CaptionTask(share=1),
    )
    changes = {
        "model.image_text.heads": ("itc", "itm", "mlm", "vqa", "caption"),
        "optim.cross_modal_lr_multiplier": 1.0,
        "tasks": tasks,
        "train.steps": 3000,
        "train.checkpoint_every": 300,
        "train.ema_decay": 0.999,
    }
    return replace_fields(scenes_coarse(), changes)
