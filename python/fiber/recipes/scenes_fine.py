"""Fine stage on grounded scenes: boxes for expressions, phrases and class names.

Command: fiber train scenes_fine --data runs/scenes --init runs/coarse --output runs/fine
Data: rendered scenes with referring expressions, captions with phrases, and detection prompts.
Hardware: two CPU cores, minutes.
Expected: see the table that `fiber demo` prints; it runs this recipe after `scenes_coarse`.
"""

from fiber.config import preset
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import GroundingTask, TasksConfig
from fiber.training.config.transforms import TransformConfig


def recipe() -> RunConfig:
    """The whole run."""
    model = preset("small", stage="fine")
    return RunConfig(
        model=model,
        # Eight classes, which are asked for in the file's order in every picture, as in measuring.
        tasks=TasksConfig(grounding=GroundingTask(share=1, shuffle_classes=False)),
        data=DataConfig(
            batch_size=16,
            transform=TransformConfig(
                kind="shorter_side",
                shorter_sides=(model.detector.shorter_side,),
                max_size=model.detector.max_size,
            ),
        ),
        optim=OptimConfig(
            lr=5e-4, head_lr_multiplier=2.0, cross_modal_lr_multiplier=1.0, clip_norm=1.0
        ),
        train=TrainConfig(steps=1080, log_every=20, checkpoint_every=180),
    )
