"""Coarse stage on grounded scenes, from nothing, on a CPU: captions and questions.

Command: fiber data scenes --output runs/scenes
         fiber train scenes_coarse --data runs/scenes --output runs/coarse
Data: rendered scenes with captions (ITC, ITM, MLM) and questions (VQA).
Hardware: two CPU cores, minutes.
Expected: see the table that `fiber demo` prints; it runs this recipe.
"""

from fiber.config import preset
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import ImageTextTask, QuestionTask, TasksConfig


def recipe() -> RunConfig:
    """The whole run."""
    return RunConfig(
        model=preset("small"),
        tasks=TasksConfig(
            image_text=ImageTextTask(share=1, itm_negatives="half"),
            question=QuestionTask(share=1),
        ),
        # Captions of a dozen tokens: at 0.15 most of them would lose one word or none.
        data=DataConfig(batch_size=64, mlm_probability=0.3),
        # Everything starts from nothing, so the heads need no higher rate than the towers.
        optim=OptimConfig(
            lr=5e-4,
            head_lr_multiplier=1.0,
            cross_modal_lr_multiplier=1.0,
            warmup_fraction=0.15,
            clip_norm=1.0,
        ),
        train=TrainConfig(steps=440, log_every=20, checkpoint_every=110),
    )
