"""Published fine-tuning on NLVR2: whether a statement is true of two photographs.

Command: torchrun --nproc-per-node 8 -m fiber.cli train nlvr2 --data DIR --init PRETRAINED
Data: DIR/train.json as its authors give it (or DIR/nlvr2_train.jsonl), and the pictures below
    DIR/images. The step that is best on "dev" is kept, as published (`--set validation.split=val`
    for files of that name); test1 is test-P. Runs in bfloat16, `nlvr2_published` in 32 bit.
Hardware: published on 8 GPUs with 8 pairs a pass.
Expected: accuracy 85.52 on test-P (FIBER's README).
"""

import dataclasses

from fiber.recipes import vqav2
from fiber.training.config.run import RunConfig, ValidationConfig
from fiber.training.config.tasks import ReasoningTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run; five epochs of 86,373 statements."""
    base = vqav2.recipe()
    return dataclasses.replace(
        base,
        model=vqav2.model_for(("nlvr2",), image_size=384),
        tasks=TasksConfig(reasoning=ReasoningTask(share=1)),
        data=dataclasses.replace(base.data, batch_size=256),
        train=dataclasses.replace(base.train, steps=1687, accumulation=4, checkpoint_every=200),
        validation=ValidationConfig(task="nlvr2", split="dev"),
    )
