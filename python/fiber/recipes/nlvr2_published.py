"""Published fine-tuning on NLVR2, in 32 bit.

Command: torchrun --nproc-per-node 8 -m fiber.cli train nlvr2_published --data DIR --init PRETRAINED
Data: as for `nlvr2`; the step that is best on "dev" is kept, as published.
Hardware: published on 8 GPUs with 8 pairs a pass.
Expected: accuracy 85.52 on test-P (FIBER's README).
"""

import dataclasses

from fiber.recipes import nlvr2
from fiber.training.config.run import RunConfig


def recipe() -> RunConfig:
    """The whole run; five epochs of 86,373 statements."""
    base = nlvr2.recipe()
    return dataclasses.replace(base, train=dataclasses.replace(base.train, precision="float32"))
