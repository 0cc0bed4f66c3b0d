"""Options of the task "segmentation"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from fiber.config_io import require
from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class SegmentationTask(TaskConfig):
    """Masks of classes, and of phrases or, where an image has none, of class names."""

    losses: ClassVar[tuple[str, ...]] = (
        *("mask_class", "mask_bce", "mask_dice"),
        *("phrase_bce", "phrase_dice", "phrase_alignment"),
    )
    #: Points at which a mask is compared, in matching and in losses; published: 12544.
    num_points: int = 12544
    #: Number of last layers with losses of phrases; masks and classes have those of all layers.
    phrase_layers: int = 6
    #: Maximum number of phrases of an image in a step. As published, their number is drawn from 1
    #: to this one.
    max_phrases: int = 4
    #: Maximum number of classes whose names stand in for the phrases of an image without any.
    max_class_names: int = 4
    #: Weights. With weights of 0 for all losses of phrases, phrases are not read.
    mask_class: float = 2.0
    mask_bce: float = 5.0
    mask_dice: float = 5.0
    phrase_bce: float = 1.0
    phrase_dice: float = 1.0
    phrase_alignment: float = 0.4

    @property
    def has_phrases(self) -> bool:
        """True if losses of phrases count."""
        weights = self.weights()
        return any(weights[name] for name in weights if name.startswith("phrase_"))

    def heads(self) -> tuple[str, ...]:
        return ("mask",)

    def check(self, where: str) -> None:
        super().check(where)
        for name in ("num_points", "phrase_layers", "max_phrases", "max_class_names"):
            value = getattr(self, name)
            require(value >= 1, f"{where}.{name} must be 1 or more, got {value}")

    def check_run(self, where: str, run: Any) -> None:
        require(
            run.train.samples_per_pass == 0,
            f"train.samples_per_pass must be 0 to train {where}, whose losses are means over the"
            f" masks of all samples, got {run.train.samples_per_pass}",
        )
        moving = run.transform(TASK.name).rand_augment.moving_operations
        require(
            not moving,
            f"{run.transform_field(TASK.name)}.rand_augment.operations: {', '.join(moving)} would"
            f" move pixels but not masks; remove these operations to train {where}",
        )
        require(
            not run.train.compile,
            f"train.compile must be False to train {where}, whose images have many sizes",
        )


_of_masks = partial(
    Evaluation,
    heads=("mask",),
    # Texts of records are not asked about.
    reads_texts=False,
    split_hint="Pass the folder instead of the file",
)

TASK = Task(
    name="segmentation",
    config=SegmentationTask,
    layout="segmentation",
    stream=7,
    training="fiber.tasks.segmentation.train:SegmentationTraining",
    evaluations={
        "panoptic": _of_masks(
            source="panoptic",
            chosen_by=("pq",),
            run="fiber.tasks.segmentation.evaluate:panoptic",
        ),
        "semantic": _of_masks(
            source="panoptic",
            chosen_by=("miou",),
            run="fiber.tasks.segmentation.evaluate:semantic",
        ),
        "instance": _of_masks(
            source="instances",
            chosen_by=("ap",),
            run="fiber.tasks.segmentation.evaluate:instance",
        ),
        "refseg": _of_masks(
            heads=("mask", "grounding_mask"),
            source="expression_masks",
            chosen_by=("ciou",),
            run="fiber.tasks.segmentation.evaluate:refseg",
        ),
    },
)
