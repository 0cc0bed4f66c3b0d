"""What one training run is: the model, its data, its tasks, its optimiser and its length.

Nothing here imports torch, so that recipes can be listed and checked in a moment.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fiber.config import FiberConfig
from fiber.fields import nearest, to_dict
from fiber.training.transform_config import TransformConfig

#: What a task may name as a source of records (`fiber.data.opening`): by what it holds, or a set of
#: captions by its name.
SOURCES = (
    "captions",
    "questions",
    "reasoning",
    "phrases",
    "referring",
    "detection",
    "coco_karpathy",
    "flickr30k_karpathy",
    "visual_genome",
    "sbu",
    "conceptual_captions",
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
    #: Class names in a text of the source "detection", at most: those of the picture's boxes and
    #: others drawn for it. None: every class of the file in each text.
    max_classes: int | None = None
    #: Weight of each loss.
    alignment: float = 1.0
    box: float = 2.0
    centerness: float = 1.0

    def weights(self) -> dict[str, float]:
        """Weight of each loss by name."""
        return {"alignment": self.alignment, "box": self.box, "centerness": self.centerness}


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
            _require(task.share >= 0, f"tasks.{name}.share must be 0 or more, got {task.share}")
            for source in task.sources:
                _require(
                    source in SOURCES,
                    f"tasks.{name}.sources: {source!r} is no source; {nearest(source, SOURCES)}",
                )
        classes = self.grounding.max_classes
        _require(
            classes is None or classes >= 1,
            f"tasks.grounding.max_classes must be 1 or more, got {classes}",
        )
        for name, value in (
            ("image_text.queue_length", self.image_text.queue_length),
            ("caption.gold_copy_every", self.caption.gold_copy_every),
            ("caption.cider_samples", self.caption.cider_samples),
        ):
            _require(value >= 1, f"tasks.{name} must be 1 or more, got {value}")
        caption = self.caption
        _require(
            0 <= caption.cider_share <= 1,
            f"tasks.caption.cider_share must be in [0, 1], got {caption.cider_share}",
        )
        _require(
            caption.cider_baseline == "constant" or caption.cider_samples >= 2,
            "tasks.caption.cider_samples must be 2 or more for cider_baseline 'others', got"
            f" {caption.cider_samples}",
        )
        _require(
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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How the loader reads the records."""

    #: Split of the data that is trained on; "+" joins several, as in "train+val".
    split: str = "train"
    #: Samples of one optimiser step, over all processes and all accumulated passes.
    batch_size: int = 64
    #: Probability that a token is picked for the masked-word loss.
    mlm_probability: float = 0.15
    #: Whether "token"s are picked one by one, as published, or whole "word"s.
    mlm_unit: Literal["token", "word"] = "token"
    transform: TransformConfig = field(default_factory=TransformConfig)
    #: What a broken record does: "raise" stops the run, "skip" counts it and takes the next one.
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"data.batch_size must be 1 or more, got {self.batch_size}")
        _require(
            0 <= self.mlm_probability <= 1,
            f"data.mlm_probability must be in [0, 1], got {self.mlm_probability}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its parameter groups and the learning rate over time."""

    #: Peak learning rate of the towers.
    lr: float = 1e-5
    #: Decoupled weight decay.
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    #: Factors on the learning rate. A parameter's factors multiply: cross-attention of the text
    #: tower has `cross_modal` times `text`, its biases `bias` on top.
    head_lr_multiplier: float = 5.0
    cross_modal_lr_multiplier: float = 5.0
    text_lr_multiplier: float = 1.0
    bias_lr_multiplier: float = 1.0
    gate_lr_multiplier: float = 1.0
    #: Stages of the image tower that are not trained, from the first on, the patches included.
    frozen_image_stages: int = 0
    #: Decay norm weights, gates and other vectors too; biases and bias tables never are.
    decay_vectors: bool = False
    #: Groups and arithmetic of the published coarse code: gates, the temperature, the norms of
    #: image-to-text queries and of classifiers are decayed too; eps is added before the bias
    #: correction, and the decay comes after the update.
    published_coarse: bool = False
    #: Part of the steps in which the learning rate rises linearly, in [0, 1).
    warmup_fraction: float = 0.1
    #: Learning rate of the first step as a part of the peak.
    warmup_start: float = 0.0
    #: "linear" falls to 0 at the last step; "multistep" is multiplied by 0.1 at each milestone.
    schedule: Literal["linear", "multistep"] = "linear"
    #: Parts of the run at which "multistep" falls.
    milestones: tuple[float, ...] = (0.67, 0.89)
    #: Largest L2 norm of the whole gradient; 0 does not clip.
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"optim.{name} must be 0 or more, got {value}")
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be in [0, 1), got {self.betas}",
        )
        _require(
            0 <= self.warmup_fraction < 1,
            f"optim.warmup_fraction must be in [0, 1), got {self.warmup_fraction}",
        )
        _require(
            0 <= self.frozen_image_stages <= 4,
            f"optim.frozen_image_stages must be in 0 to 4, got {self.frozen_image_stages}",
        )
        _require(self.clip_norm >= 0, f"optim.clip_norm must be 0 or more, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision and bookkeeping of a run."""

    #: Optimiser steps.
    steps: int = 1000
    #: Passes whose gradients are averaged into one step.
    accumulation: int = 1
    #: Arithmetic of the passes; weights, losses and optimiser stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    #: Recompute the blocks in the backward pass instead of keeping their activations.
    gradient_checkpointing: bool = False
    #: Decay of the moving average of the weights, which then becomes the finished model; 0 is off.
    ema_decay: float = 0.0
    #: Steps from one line of metrics to the next; checkpoints write one too.
    log_every: int = 20
    #: Steps from one checkpoint to the next; 0 writes none but the finished model.
    checkpoint_every: int = 500
    #: How many of the newest checkpoints are kept.
    keep_checkpoints: int = 2
    #: Seed of the new weights, the order of the data and every random draw.
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "log_every", "keep_checkpoints"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} must be 1 or more, got {value}")
        _require(
            self.checkpoint_every >= 0,
            f"train.checkpoint_every must be 0 or more, got {self.checkpoint_every}",
        )
        _require(
            0 <= self.ema_decay < 1, f"train.ema_decay must be in [0, 1), got {self.ema_decay}"
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: what a recipe returns and what `config.json` of a run's folder holds."""

    tasks: TasksConfig
    model: FiberConfig = field(default_factory=FiberConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        stage = self.model.stage
        for name in self.tasks.active():
            _require(
                (name == "grounding") == (stage == "fine"),
                f"tasks.{name} cannot train a {stage} model; grounding needs stage fine,"
                " every other task stage coarse",
            )
        missing = [head for head in self.needed_heads() if head not in self.model.image_text.heads]
        _require(
            stage == "fine" or not missing,
            f"model.image_text.heads lacks {', '.join(missing)}, which the tasks train;"
            f" it has {', '.join(self.model.image_text.heads)}",
        )
        task = self.tasks.image_text
        if task.share > 0 and task.has_contrast and task.itc_form == "queue":
            _require(
                self.data.transform.kind != "shorter_side",
                "tasks.image_text.itc_form 'queue' keeps pictures of one size;"
                " data.transform.kind must be squash or crop, got shorter_side",
            )
            _require(
                self.data.batch_size // self.train.accumulation <= task.queue_length,
                f"tasks.image_text.queue_length {task.queue_length} is less than the"
                f" {self.data.batch_size // self.train.accumulation} pairs of a pass",
            )
        moving = self.data.transform.rand_augment.moving()
        _require(
            not (moving and "grounding" in self.tasks.active()),
            "data.transform.rand_augment.operations: boxes do not follow"
            f" {', '.join(moving)}; tasks.grounding allows the others",
        )
        _require(
            not (self.optim.published_coarse and stage == "fine"),
            "optim.published_coarse is a rule of the coarse stage; the model is fine",
        )
        _require(
            self.data.batch_size % self.train.accumulation == 0,
            f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulation"
            f" {self.train.accumulation}",
        )
        pairs = self.data.batch_size // self.train.accumulation
        _require(
            pairs > 1
            or task.share == 0
            or (task.itc == 0 and task.itm == 0)
            # A queue has the negatives.
            or (task.itc_form == "queue" and task.itm_negatives != "random"),
            f"data.batch_size {self.data.batch_size} in {self.train.accumulation} passes"
            " (train.accumulation) leaves one pair a pass; tasks.image_text.itc and itm need 2 or"
            " more, since the other pairs are the negatives",
        )

    def needed_heads(self) -> tuple[str, ...]:
        """Heads of the coarse model that the active tasks train."""
        active = self.tasks.active()
        heads = []
        if "image_text" in active:
            task = self.tasks.image_text
            # Hard negatives are drawn by contrastive similarity, so matching needs that head too.
            heads += ["itc"] if task.has_contrast else []
            heads += [name for name in ("itm", "mlm") if getattr(task, name) > 0]
        heads += ["vqa"] if "question" in active else []
        heads += ["nlvr2"] if "reasoning" in active else []
        heads += ["caption"] if "caption" in active else []
        return tuple(heads)


def load_recipe(name: str) -> RunConfig:
    """Get a recipe's configuration by the name of its module in `fiber.recipes`.

    Raises:
        ValueError: if there is no such recipe, with the nearest names.
    """
    # By name, because recipes import this package and not the other way round.
    recipes = importlib.import_module("fiber.recipes")
    known = recipes.names()
    if name not in known:
        raise ValueError(f"recipe {name!r} does not exist; {nearest(name, known)}")
    return importlib.import_module(f"fiber.recipes.{name}").recipe()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List the fields in which two configurations differ, one readable line each."""
    flat_old, flat_new = _flatten(to_dict(old)), _flatten(to_dict(new))
    return [
        f"{name}: {flat_old.get(name)!r} -> {flat_new.get(name)!r}"
        for name in {**flat_old, **flat_new}
        if flat_old.get(name) != flat_new.get(name)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
