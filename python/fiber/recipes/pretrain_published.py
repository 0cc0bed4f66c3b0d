"""Published coarse pre-training: in 32 bit, and against a queue of older pairs.

Command: torchrun --nproc-per-node 8 -m fiber.cli train pretrain_published --data DIR --init TOWERS
Data: as for `pretrain`.
Hardware: as for `pretrain`. The queue's 4,096 pictures take 7.25 GB on every GPU and in every
    checkpoint, and a pass costs a fourth more than that of `pretrain`, since negatives are older
    pictures that have to run again.
Expected: no metric of its own, as for `pretrain`. Places of the queue that hold no pair yet are
    left out; the published code begins with random vectors in them.
"""

import dataclasses

from fiber.recipes import pretrain
from fiber.training.run_config import RunConfig
from fiber.training.task_config import ImageTextTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = pretrain.recipe()
    task = ImageTextTask(share=1, itc_form="queue", queue_length=4096)
    return dataclasses.replace(
        base,
        tasks=TasksConfig(image_text=task),
        train=dataclasses.replace(base.train, precision="float32"),
    )
