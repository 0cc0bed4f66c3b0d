"""Options of the task "grounding"."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fiber.config_io import IS_STORED, require
from fiber.data.prompts.rules import ClassRule, PromptRules
from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class GroundingTask(TaskConfig):
    """Detection of boxes for phrases, expressions or class names (fine stage)."""

    losses: ClassVar[tuple[str, ...]] = (
        *("alignment", "box", "centerness"),
        *("mask_bce", "mask_dice"),
    )
    sources: tuple[str, ...] = ("referring", "phrases", "detection")
    #: How to sample the classes of a prompt from a source that has classes, for every image and
    #: epoch; see `fiber.data.prompts.rules.PromptRules`.
    class_rule: ClassRule = "fitting"
    max_classes: int | None = None
    max_negatives: int | None = None
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    absent_chance: float = 0.0
    #: Probability that a record of `sources` without classes asks for a phrase that is not in its
    #: image; see `fiber.data.prompts.absent`.
    absent_phrase_chance: float = field(default=0.0, metadata={IS_STORED: bool})
    shuffle_classes: bool = True
    alignment: float = 1.0
    box: float = 2.0
    centerness: float = 1.0
    #: Weights of the losses of masks; with 0 for both, masks are not read.
    mask_bce: float = field(default=0.0, metadata={IS_STORED: bool})
    mask_dice: float = field(default=0.0, metadata={IS_STORED: bool})

    def prompt_rules(self) -> PromptRules:
        """Build the rules for sampling a prompt's classes.

        Raises:
            ValueError: if a value is out of range.
        """
        return PromptRules(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(PromptRules)}
        )

    @property
    def reads_masks(self) -> bool:
        """True if losses of masks count."""
        return bool(self.mask_bce or self.mask_dice)

    def heads(self) -> tuple[str, ...]:
        return ("grounding", "grounding_mask") if self.reads_masks else ("grounding",)

    def check(self, where: str) -> None:
        super().check(where)
        require(
            0 <= self.absent_phrase_chance < 1,
            f"{where}.absent_phrase_chance must be at least 0 and below 1, got"
            f" {self.absent_phrase_chance}",
        )
        try:
            self.prompt_rules()
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None

    def check_run(self, where: str, run: Any) -> None:
        moving = run.transform(TASK.name).rand_augment.moving_operations
        require(
            not moving,
            f"{run.transform_field(TASK.name)}.rand_augment.operations: {', '.join(moving)} would"
            f" move pixels but not boxes; remove these operations to train {where}",
        )
        require(
            not run.train.compile,
            "train.compile needs a coarse-stage model, got a fine-stage model, whose images have"
            " many sizes",
        )
        require(
            not run.optim.published_coarse,
            "optim.published_coarse needs a coarse-stage model, got a fine-stage model",
        )


_of_boxes = partial(
    Evaluation,
    heads=("grounding",),
    # The reader reports prompts that do not fit.
    reads_texts=False,
    split_hint="Pass the folder instead of the file",
)

TASK = Task(
    name="grounding",
    config=GroundingTask,
    layout="grounding",
    stream=5,
    training="fiber.tasks.grounding.train:GroundingTraining",
    command="fiber.tasks.grounding.command:add_command",
    evaluations={
        "refcoco": _of_boxes(
            source="referring",
            chosen_by=("accuracy_at_1",),
            run="fiber.tasks.grounding.evaluate:refcoco",
        ),
        "flickr": _of_boxes(
            source="phrases",
            chosen_by=("any_recall_at_1",),
            run="fiber.tasks.grounding.evaluate:flickr",
        ),
        "coco": _of_boxes(
            source="detection",
            chosen_by=("ap",),
            run="fiber.tasks.grounding.detection:coco",
        ),
        "lvis": _of_boxes(
            source="detection",
            chosen_by=("ap",),
            run="fiber.tasks.grounding.detection:lvis",
        ),
    },
)
