"""Published coarse pre-training: in 32 bit, against a queue, on two splits of COCO.

Command: torchrun --nproc-per-node 8 -m fiber.cli train pretrain_published --data DIR --init TOWERS
Data: as for `pretrain`, and DIR/captions_val.json with the captions of COCO's val. Trains on
    Karpathy's "train" and "val" of COCO together and leaves "restval" out, as published. Visual
    Genome and SBU have a training split alone, which is all that is read of them; of Conceptual
    Captions the validation file is read too if it is in DIR, which the published run left out.
Hardware: as for `pretrain`. The queue's 4,096 pictures take 7.25 GB on every GPU and in every
    checkpoint, and a pass costs a fourth more than that of `pretrain`, since negatives are older
    pictures that have to run again.
Expected: no metric of its own, as for `pretrain`. Places of the queue that hold no pair yet are
    left out; the published code begins with random vectors in them.
"""

import dataclasses

from fiber.recipes import pretrain
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import ImageTextTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    base = pretrain.recipe()
    task = ImageTextTask(share=1, itc_form="queue", queue_length=4096)
    return dataclasses.replace(
        base,
        tasks=TasksConfig(image_text=task),
        data=dataclasses.replace(base.data, split="train+val"),
        train=dataclasses.replace(base.train, precision="float32"),
    )
