"""Detector of your own classes, fine-tuned from a published or own fine model.

Command: fiber train own_detection --data DIR --init GROUNDING --output runs/own
Data: boxes of classes in any form that `fiber.data.coco_folders` knows: an export of COCO format by
    Roboflow, CVAT, Label Studio or FiftyOne, or COCO itself. Without a validation split a fifth of
    the pictures is held out.
Hardware: one GPU of 24 GB or more; `--set train.accumulation=4` passes one picture at a time.
Expected: depends on the data; there is no published number. The published fine-tuning on the
    thirteen sets of ODinW, from which rates and schedule are taken, reaches a mean AP of 65.9.

The run is measured as it goes. It slows down where AP no longer rises and ends after eight
measurements without a better one, so that its length need not be chosen. GROUNDING is a fine model,
with `--tokenizer` where its file holds none; a coarse model will do, but knows no boxes yet.
"""

import dataclasses

from fiber.recipes import odinw_full
from fiber.training.config.run import RunConfig


def recipe() -> RunConfig:
    """The whole run, 20,000 steps at most."""
    base = odinw_full.recipe()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data,
            transform=dataclasses.replace(
                base.data.transform, shorter_sides=(480, 560, 640, 720, 800), flip_probability=0.5
            ),
        ),
        optim=dataclasses.replace(base.optim, warmup_fraction=200 / 20_000),
        train=dataclasses.replace(
            base.train, steps=20_000, epochs=0.0, checkpoint_every=250, checkpoint_epochs=0.0
        ),
        validation=dataclasses.replace(base.validation, pictures=500),
    )
