"""Published fine-tuning on a set of ODinW, with one picture of each class.

Command: torchrun --nproc-per-node 4 -m fiber.cli train odinw_few_shot --data DIR --init GROUNDING
    For 3, 5 and 10 pictures of each class, as published, add
    --set data.shots=3 --set train.epochs=800 --set train.checkpoint_epochs=4
    --set data.shots=5 --set train.epochs=400 --set train.checkpoint_epochs=2
    --set data.shots=10 --set train.epochs=200 --set train.checkpoint_epochs=1
Data: as for `odinw_full`. Pictures are chosen by ascending id, as published; the seed of the
    published command has no effect on them, so that several draws need files of their own.
Hardware: published on 4 GPUs, one picture each.
Expected: FIBER's README has no number for it.

A published pass goes over eight copies of the pictures, which are eight passes here.
"""

import dataclasses

from fiber.recipes import odinw_full
from fiber.training.config.run import RunConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = odinw_full.recipe()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, shots=1),
        train=dataclasses.replace(base.train, epochs=1600, checkpoint_epochs=8),
    )
