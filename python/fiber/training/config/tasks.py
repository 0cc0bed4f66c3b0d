"""Tasks of a training run: sources, losses and loss weights.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import nearest, require
from fiber.data.prompts.rules import ClassRule, PromptRules
from fiber.messages import shown

#: Sources with boxes.
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
#: Valid sources of a task (see `fiber.data.open_source`): kinds of content or caption dataset
#: names.
SOURCES = (
    "captions",
    "questions",
    "reasoning",
    "entailment",
    *BOX_SOURCES,
    "coco_karpathy",
    "flickr30k_karpathy",
    "visual_genome",
    "sbu",
    "conceptual_captions",
)
#: Sources whose records have class names, some of which are sampled for each prompt.
CLASS_SOURCES = ("detection", "objects365")
#: Loss names. A task has a weight field for each of its losses.
LOSSES = (
    *("itc", "itm", "mlm", "vqa", "nlvr2", "snli", "rank", "caption"),
    *("alignment", "box", "centerness"),
)


#: Suffix of a task's name in `first_part`.
_FIRST = " first"


def first_part(task: str) -> str:
    """Name the records of the first steps of a task, see `TaskConfig.first_sources`."""
    return task + _FIRST


def task_of(name: str) -> str:
    """Return the task that a name of records belongs to: itself, or one with a `first_part`."""
    return name.removesuffix(_FIRST)


def split_source(source: str) -> tuple[str, str]:
    """Split an entry of `TaskConfig.sources` into the source and the group, "" for all records."""
    name, _, group = source.partition(":")
    return name, group


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Fields common to all tasks. Other float fields named in `LOSSES` are loss weights."""

    #: Number of steps of this task in each rotation of tasks; 0 disables the task.
    share: int = 0
    #: Entries of `SOURCES` to concatenate; a repeated name counts twice. "referring:relation" takes
    #: the records of a source whose `Record.group` is "relation".
    sources: tuple[str, ...] = ()
    #: Sources of the first `first_steps` steps of the task, in place of `sources`: a curriculum. In
    #: a run with no more steps of the task, `sources` are not read.
    first_sources: tuple[str, ...] = ()
    first_steps: int = 0

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by name."""
        return {name: getattr(self, name) for name in LOSSES if hasattr(self, name)}


@dataclass(frozen=True, kw_only=True)
class ImageTextTask(TaskConfig):
    """ITC, ITM and MLM on captions, in shared forward passes. A loss with weight 0 is skipped."""

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


@dataclass(frozen=True, kw_only=True)
class QuestionTask(TaskConfig):
    """Questions about images (VQA)."""

    sources: tuple[str, ...] = ("questions",)
    vqa: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ReasoningTask(TaskConfig):
    """Statements about two images (NLVR2)."""

    sources: tuple[str, ...] = ("reasoning",)
    nlvr2: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EntailmentTask(TaskConfig):
    """Hypotheses that an image entails or contradicts (SNLI-VE); for METER."""

    sources: tuple[str, ...] = ("entailment",)
    snli: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RankingTask(TaskConfig):
    """Retrieval by a ranking head; for METER.

    Every image ranks its caption among captions of other images. ITM, with random images of the
    batch as negatives, is trained in shared forward passes unless its weight is 0. In the published
    fine-tuning, `optim.frozen` has "itm_head", so that ITM only trains the layers below.
    """

    sources: tuple[str, ...] = ("captions",)
    #: Number of false captions of each image.
    false_texts: int = 15
    rank: float = 1.0
    itm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CaptionTask(TaskConfig):
    """Autoregressive captioning."""

    sources: tuple[str, ...] = ("captions",)
    #: "likelihood": maximum likelihood of the next token; "gold": tokens weighted by a frozen copy
    #: of the model (off-policy fine-tuning after likelihood, as in the published recipe); "cider":
    #: likelihood plus self-critical training on sampled captions, with CIDEr-D against the image's
    #: captions as the reward (after gold, as in the published recipe). References do not change
    #: when an image is flipped.
    objective: Literal["likelihood", "gold", "cider"] = "likelihood"
    #: Divisor of a caption's summed "gold" loss: the number of its target "tokens", or of its
    #: positions without a target ("padding", as in the published code).
    gold_divisor: Literal["tokens", "padding"] = "tokens"
    #: Steps between updates of the frozen copy for "gold".
    gold_copy_every: int = 1000
    #: Self-critical fraction of the "cider" loss, in [0, 1]; the rest is likelihood.
    cider_share: float = 0.7
    #: Captions sampled per image for "cider".
    cider_samples: int = 5
    #: Baseline subtracted from a sample's CIDEr-D: "constant" is 1.0, as in the published code;
    #: "others" is the mean of the image's other samples (no gradient if all samples score the
    #: same).
    cider_baseline: Literal["constant", "others"] = "constant"
    #: File of document frequencies for "cider" (`metrics.cider.DocumentFrequencies.read`); None
    #: computes them from the training captions.
    cider_frequencies: str | None = None
    caption: float = 1.0

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by name, with 0 for values that are only logged."""
        if self.objective != "cider":
            return super().weights()
        return {
            "caption": self.caption * (1 - self.cider_share),
            "self_critical": self.caption * self.cider_share,
            "cider_d": 0.0,
        }


@dataclass(frozen=True, kw_only=True)
class GroundingTask(TaskConfig):
    """Detection of boxes for phrases, expressions or class names (fine stage)."""

    sources: tuple[str, ...] = ("referring", "phrases", "detection")
    #: How to sample the classes of a `CLASS_SOURCES` prompt, for every image and epoch; see
    #: `fiber.data.prompts.rules.PromptRules`.
    class_rule: ClassRule = "fitting"
    max_classes: int | None = None
    max_negatives: int | None = None
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    absent_chance: float = 0.0
    shuffle_classes: bool = True
    alignment: float = 1.0
    box: float = 2.0
    centerness: float = 1.0

    def prompt_rules(self) -> PromptRules:
        """Build the rules for sampling a prompt's classes.

        Raises:
            ValueError: if a value is out of range.
        """
        return PromptRules(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(PromptRules)}
        )


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """All tasks. Each step trains one task with a share above 0, in a fixed rotation."""

    image_text: ImageTextTask = field(default_factory=ImageTextTask)
    question: QuestionTask = field(default_factory=QuestionTask)
    reasoning: ReasoningTask = field(default_factory=ReasoningTask)
    entailment: EntailmentTask = field(default_factory=EntailmentTask)
    ranking: RankingTask = field(default_factory=RankingTask)
    caption: CaptionTask = field(default_factory=CaptionTask)
    grounding: GroundingTask = field(default_factory=GroundingTask)

    def __post_init__(self) -> None:
        for name, task in vars(self).items():
            require(task.share >= 0, f"tasks.{name}.share must be 0 or more, got {task.share}")
            require(
                bool(task.sources) or not task.share,
                f"tasks.{name}.sources: expected at least one source, got none",
            )
            for field_name in ("sources", "first_sources"):
                for source in getattr(task, field_name):
                    known, _ = split_source(source)
                    require(
                        known in SOURCES,
                        f"tasks.{name}.{field_name}: unknown source {shown(known)};"
                        f" {nearest(known, SOURCES)}",
                    )
            require(
                task.first_steps > 0 if task.first_sources else task.first_steps == 0,
                f"tasks.{name}.first_steps must be"
                f" {'1 or more with' if task.first_sources else '0 without'} first_sources, got"
                f" {task.first_steps}",
            )
        require(
            not self.ranking.first_sources,
            "tasks.ranking.first_sources: expected none, since false captions are drawn from all"
            f" captions, got {', '.join(self.ranking.first_sources)}",
        )
        try:
            self.grounding.prompt_rules()
        except ValueError as error:
            raise ValueError(f"tasks.grounding.{error}") from None
        caption = self.caption
        for name, value in (
            ("image_text.queue_length", self.image_text.queue_length),
            ("ranking.false_texts", self.ranking.false_texts),
            ("caption.gold_copy_every", caption.gold_copy_every),
            ("caption.cider_samples", caption.cider_samples),
        ):
            require(value >= 1, f"tasks.{name} must be 1 or more, got {value}")
        require(
            0 <= caption.cider_share <= 1,
            f"tasks.caption.cider_share must be in [0, 1], got {caption.cider_share}",
        )
        require(
            caption.cider_baseline == "constant" or caption.cider_samples >= 2,
            "tasks.caption.cider_samples must be 2 or more for cider_baseline 'others', got"
            f" {caption.cider_samples}",
        )
        require(bool(self.active()), "tasks: every share is 0; at least one must be above 0")

    def active(self) -> dict[str, TaskConfig]:
        """Return the tasks with a share above 0, by name."""
        return {name: task for name, task in vars(self).items() if task.share > 0}

    def rotation(self) -> tuple[str, ...]:
        """Return the task of each step in one rotation, with the steps of a task evenly spaced.

        >>> TasksConfig(
        ...     image_text=ImageTextTask(share=2), question=QuestionTask(share=1)
        ... ).rotation()
        ('image_text', 'question', 'image_text')
        """
        shares = {name: task.share for name, task in self.active().items()}
        total = sum(shares.values())
        credit = dict.fromkeys(shares, 0)
        order = []
        for _ in range(total):
            for name in credit:
                credit[name] += shares[name]
            chosen = max(credit, key=lambda name: credit[name])
            credit[chosen] -= total
            order.append(chosen)
        return tuple(order)
