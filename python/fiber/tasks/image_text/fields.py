"""Options of the task "image_text"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fiber.config_io import require
from fiber.tasks.fields import TaskConfig, check_pairs
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class ImageTextTask(TaskConfig):
    """ITC, ITM and MLM on captions, in shared forward passes. A loss with weight 0 is skipped."""

    losses: ClassVar[tuple[str, ...]] = ("itc", "itm", "mlm")
    sources: tuple[str, ...] = ("captions",)
    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 1.0
    #: "gather": ITC over the current batch of all ranks; "queue": over this rank's batch and a
    #: queue of the newest `queue_length` pairs of all ranks, including images (as in the published
    #: code).
    itc_form: Literal["gather", "queue"] = "gather"
    #: Number of pairs in the queue, for "queue".
    queue_length: int = 4096
    #: "both": a similar text and a similar image for every pair (2B negatives, as in the published
    #: pre-training); "half": texts for even pairs, images for odd pairs (B negatives); "random":
    #: half of the texts keep their image, the others get a random different image (as in the
    #: published fine-tuning with the ITM loss only).
    itm_negatives: Literal["both", "half", "random"] = "both"

    @property
    def has_contrast(self) -> bool:
        """True if ITC similarities are needed, for the ITC loss or for hard negatives."""
        return self.itc > 0 or (self.itm > 0 and self.itm_negatives != "random")

    def heads(self) -> tuple[str, ...]:
        # Hard negatives are sampled by ITC similarity, so ITM also needs the ITC head.
        own = ("itc",) if self.has_contrast else ()
        return (*own, *(name for name in ("itm", "mlm") if getattr(self, name) > 0))

    def check(self, where: str) -> None:
        super().check(where)
        length = self.queue_length
        require(length >= 1, f"{where}.queue_length must be 1 or more, got {length}")

    def check_run(self, where: str, run: Any) -> None:
        pairs, has_queue = run.micro_batch_size(TASK.name), self.itc_form == "queue"
        if self.has_contrast and has_queue:
            require(
                run.transform(TASK.name).kind != "shorter_side",
                f"{where}.itc_form 'queue' needs images of the same size:"
                f" {run.transform_field(TASK.name)}.kind must be 'squash' or 'crop', got"
                " 'shorter_side'",
            )
            require(
                pairs <= self.queue_length,
                f"{where}.queue_length must be at least {pairs}, the number of pairs in a"
                f" micro-batch, got {self.queue_length}",
            )
        # The queue provides negatives.
        if (self.itc or self.itm) and (not has_queue or self.itm_negatives == "random"):
            check_pairs(TASK.name, "image_text.itc and itm", run)


TASK = Task(
    name="image_text",
    config=ImageTextTask,
    layout="image_text",
    stream=0,
    training="fiber.tasks.image_text.train:ImageTextTraining",
    command="fiber.tasks.image_text.command:add_command",
    evaluations={
        "retrieval": Evaluation(
            heads=("itc", "rank", "itm"),
            source="captions",
            chosen_by=("text_to_image_recall_at_1", "image_to_text_recall_at_1"),
            run="fiber.tasks.image_text.retrieval:retrieval",
        ),
        "matching": Evaluation(
            heads=("itm",),
            source="captions",
            chosen_by=("accuracy",),
            run="fiber.tasks.image_text.evaluate:matching",
        ),
        "masked_words": Evaluation(
            heads=("mlm",),
            source="captions",
            chosen_by=("accuracy",),
            run="fiber.tasks.image_text.evaluate:masked_words",
        ),
        "winoground": Evaluation(
            heads=("itm",),
            source="swapped",
            chosen_by=("group",),
            run="fiber.tasks.image_text.evaluate:winoground",
        ),
    },
)
