"""What a training run may train: each task, its sources, its losses and their weights.

Nothing here imports torch, so that recipes can be listed and checked in a moment.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest, require
from fiber.data.prompts.rules import ClassRule, PromptRules

#: Sources that hold boxes.
BOX_SOURCES = (
    "phrases",
    "referring",
    "detection",
    "mixed",
    "objects365",
    "refcoco",
    "refcocoplus",
    "refcocog",
)
#: What a task may name as a source of records (`fiber.data.open_source`): by content, or a set of
#: captions by its name.
SOURCES = (
    "captions",
    "questions",
    "reasoning",
    *BOX_SOURCES,
    "coco_karpathy",
    "flickr30k_karpathy",
    "visual_genome",
    "sbu",
    "conceptual_captions",
)
#: Sources whose records name classes, of which every text of a run draws some.
CLASS_SOURCES = ("detection", "objects365")


@dataclass(frozen=True, kw_only=True)
class ImageTextTask:
    """Captions: contrastive (ITC), matching (ITM) and masked words (MLM) from shared passes."""

    #: Turns in the rotation of tasks; 0 leaves the task out.
    share: int = 0
    #: Of `SOURCES`, those whose records are joined; a repeated name counts twice.
    sources: tuple[str, ...] = ("captions",)
    #: Weight of each loss; a loss of weight 0 is not computed.
    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 1.0
    #: "gather": contrast with the current batch of all ranks; "queue": with this rank's batch and
    #: the newest `queue_length` pairs of all ranks, whose pictures are kept (as published).
    itc_form: Literal["gather", "queue"] = "gather"
    #: Pairs that the form "queue" keeps.
    queue_length: int = 4096
    #: "both": a similar text and a similar picture for every pair (2B negatives, as in published
    #: pre-training); "half": texts for the even pairs, pictures for the odd ones (B negatives);
    #: "random": half of the texts keep their picture, the others get any other one (as in published
    #: fine-tuning by matching alone).
    itm_negatives: Literal["both", "half", "random"] = "both"

    @property
    def has_contrast(self) -> bool:
        """Whether similarities are computed: for contrast itself, or to find negatives."""
        return self.itc > 0 or (self.itm > 0 and self.itm_negatives != "random")

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {"itc": self.itc, "itm": self.itm, "mlm": self.mlm}


@dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """Questions about pictures (VQA)."""

    #: Turns in the rotation of tasks; 0 leaves the task out.
    share: int = 0
    #: Of `SOURCES`, those whose records are joined; a repeated name counts twice.
    sources: tuple[str, ...] = ("questions",)
    #: Weight of the loss.
    vqa: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {"vqa": self.vqa}


@dataclass(frozen=True, kw_only=True)
class ReasoningTask:
    """Statements about two pictures (NLVR2)."""

    #: Turns in the rotation of tasks; 0 leaves the task out.
    share: int = 0
    #: Of `SOURCES`, those whose records are joined; a repeated name counts twice.
    sources: tuple[str, ...] = ("reasoning",)
    #: Weight of the loss.
    nlvr2: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {"nlvr2": self.nlvr2}


@dataclass(frozen=True, kw_only=True)
class CaptionTask:
    """Captions written word by word."""

    #: Turns in the rotation of tasks; 0 leaves the task out.
    share: int = 0
    #: Of `SOURCES`, those whose records are joined; a repeated name counts twice.
    sources: tuple[str, ...] = ("captions",)
    #: "likelihood" of each next token; "gold": its tokens weighed by a frozen copy of the model
    #: (off-policy fine-tuning after likelihood, as published); "cider": beside likelihood, captions
    #: that the model samples become likelier by how well they agree with those of their picture
    #: (self-critical fine-tuning after gold, as published). Captions of a mirrored picture are
    #: compared with as they were written.
    objective: Literal["likelihood", "gold", "cider"] = "likelihood"
    #: What "gold" divides a caption's sum by: its "tokens", or its "padding" as published.
    gold_divisor: Literal["tokens", "padding"] = "tokens"
    #: Steps from one frozen copy of "gold" to the next.
    gold_copy_every: int = 1000
    #: Part of the loss of "cider" that is self-critical, in [0, 1]; the rest is likelihood.
    cider_share: float = 0.7
    #: Captions that "cider" samples of each picture.
    cider_samples: int = 5
    #: What the CIDEr-D of a sample is compared with: "constant" 1.0 as published; "others": the
    #: mean of the picture's other samples, with which samples that are all as good teach nothing.
    cider_baseline: Literal["constant", "others"] = "constant"
    #: File of document frequencies for "cider" (`metrics.cider.DocumentFrequencies.read`); None:
    #: they are counted from the training captions.
    cider_frequencies: str | None = None
    #: Weight of the loss.
    caption: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name; that of a number that is only watched is 0."""
        if self.objective != "cider":
            return {"caption": self.caption}
        return {
            "caption": self.caption * (1 - self.cider_share),
            "self_critical": self.caption * self.cider_share,
            "cider_d": 0.0,
        }


@dataclass(frozen=True, kw_only=True)
class GroundingTask:
    """Boxes for phrases, expressions or class names (the fine stage)."""

    #: Turns in the rotation of tasks; 0 leaves the task out.
    share: int = 0
    #: Of `SOURCES`, those whose records are joined; a repeated name counts twice.
    sources: tuple[str, ...] = ("referring", "phrases", "detection")
    #: Which classes the texts of the source "detection" ask for, drawn for every picture and epoch:
    #: see `fiber.data.prompts.rules.PromptRules`.
    class_rule: ClassRule = "fitting"
    max_classes: int | None = None
    max_negatives: int | None = None
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    shuffle_classes: bool = True
    #: Weight of each loss.
    alignment: float = 1.0
    box: float = 2.0
    centerness: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {"alignment": self.alignment, "box": self.box, "centerness": self.centerness}

    def prompt_rules(self) -> PromptRules:
        """Which classes a text asks for.

        Raises:
            ValueError: for a value out of its range.
        """
        return PromptRules(
            class_rule=self.class_rule,
            max_classes=self.max_classes,
            max_negatives=self.max_negatives,
            negative_chances=self.negative_chances,
            shuffle_classes=self.shuffle_classes,
        )


TaskConfig = ImageTextTask | QuestionTask | ReasoningTask | CaptionTask | GroundingTask


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """All tasks; every step trains one of those with a share, in a fixed rotation."""

    image_text: ImageTextTask = field(default_factory=ImageTextTask)
    question: QuestionTask = field(default_factory=QuestionTask)
    reasoning: ReasoningTask = field(default_factory=ReasoningTask)
    caption: CaptionTask = field(default_factory=CaptionTask)
    grounding: GroundingTask = field(default_factory=GroundingTask)

    def __post_init__(self) -> None:
        for name, task in self._all().items():
            require(task.share >= 0, f"tasks.{name}.share must be 0 or more, got {task.share}")
            for source in task.sources:
                require(
                    source in SOURCES,
                    f"tasks.{name}.sources: {source!r} is no source; {nearest(source, SOURCES)}",
                )
        try:
            self.grounding.prompt_rules()
        except ValueError as problem:
            raise ValueError(f"tasks.grounding.{problem}") from None
        for name, value in (
            ("image_text.queue_length", self.image_text.queue_length),
            ("caption.gold_copy_every", self.caption.gold_copy_every),
            ("caption.cider_samples", self.caption.cider_samples),
        ):
            require(value >= 1, f"tasks.{name} must be 1 or more, got {value}")
        caption = self.caption
        require(
            0 <= caption.cider_share <= 1,
            f"tasks.caption.cider_share must be in [0, 1], got {caption.cider_share}",
        )
        require(
            caption.cider_baseline == "constant" or caption.cider_samples >= 2,
            "tasks.caption.cider_samples must be 2 or more for cider_baseline 'others', got"
            f" {caption.cider_samples}",
        )
        require(
            bool(self.active()), "tasks: every share is 0; give at least one task a share above 0"
        )

    def _all(self) -> dict[str, TaskConfig]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def active(self) -> dict[str, TaskConfig]:
        """The tasks that have a share, by name."""
        return {name: task for name, task in self._all().items() if task.share > 0}

    def rotation(self) -> tuple[str, ...]:
        """Names of the tasks in the order of their turns, spread evenly; repeats for ever.

        >>> TasksConfig(
        ...     image_text=ImageTextTask(share=2), question=QuestionTask(share=1)
        ... ).rotation()
        ('image_text', 'question', 'image_text')
        """
        shares = {name: task.share for name, task in self.active().items()}
        total = sum(shares.values())
        credit = dict.fromkeys(shares, 0)
        turns = []
        for _ in range(total):
            for name in credit:
                credit[name] += shares[name]
            chosen = max(credit, key=lambda name: credit[name])
            credit[chosen] -= total
            turns.append(chosen)
        return tuple(turns)
