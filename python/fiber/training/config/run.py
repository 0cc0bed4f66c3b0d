"""Configuration of a training run: model, data, tasks, optimizer and length.

Does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fiber.config import FiberConfig
from fiber.config_io import nearest, require, to_dict
from fiber.training.config.tasks import TasksConfig
from fiber.training.config.transforms import TransformConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data loading."""

    #: Training split; "+" joins several, as in "train+val".
    split: str = "train"
    #: Images of each class from the source "detection", chosen as published for few-shot training;
    #: 0: all.
    shots: int = 0
    #: Samples of one optimizer step, over all ranks and accumulated micro-batches.
    batch_size: int = 64
    #: Probability that a token is picked for the MLM loss.
    mlm_probability: float = 0.15
    #: Whether single "token"s are picked, as published, or whole "word"s.
    mlm_unit: Literal["token", "word"] = "token"
    transform: TransformConfig = field(default_factory=TransformConfig)
    #: Whether to train a tokenizer on the texts of a model from scratch if neither the data nor the
    #: user has one; otherwise that is an error.
    train_tokenizer: bool = False
    #: Handling of a broken record: "raise" stops the run, "skip" counts and drops it, "resample"
    #: counts it and draws another one in its place.
    on_error: Literal["raise", "skip", "resample"] = "raise"
    #: Whether to accept truncated images, filled in as by libjpeg.
    accept_truncated: bool = False
    #: Whether training decodes JPEGs at reduced size if both sides have at least twice the needed
    #: pixels; evaluation never does.
    scaled_decoding: bool = True

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"data.batch_size must be 1 or more, got {self.batch_size}")
        require(self.shots >= 0, f"data.shots must be 0 or more, got {self.shots}")
        require(
            0 <= self.mlm_probability <= 1,
            f"data.mlm_probability must be in [0, 1], got {self.mlm_probability}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its parameter groups and the learning rate schedule."""

    #: Peak learning rate of the towers.
    lr: float = 1e-5
    #: Decoupled weight decay.
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    #: Learning rate factors. A parameter's factors multiply: cross-attention of the text tower has
    #: `cross_modal` times `text`, its biases also `bias`.
    head_lr_multiplier: float = 5.0
    cross_modal_lr_multiplier: float = 5.0
    text_lr_multiplier: float = 1.0
    bias_lr_multiplier: float = 1.0
    gate_lr_multiplier: float = 1.0
    #: Frozen parameters, and modules with everything in them, by name, as in
    #: "backbone.image.stages.0" or "backbone.text"; * matches anything.
    frozen: tuple[str, ...] = ()
    #: Whether norm weights, gates and other vectors are decayed too; biases and bias tables never
    #: are.
    decay_vectors: bool = False
    #: Groups and arithmetic of the published coarse code: gates, the temperature, and the norms of
    #: image-to-text queries and of classifiers are decayed too; eps is added before the bias
    #: correction, and the decay comes after the update.
    published_coarse: bool = False
    #: Fraction of the steps with linear warmup, in [0, 1).
    warmup_fraction: float = 0.1
    #: Learning rate of the first step as a fraction of the peak.
    warmup_start: float = 0.0
    #: "linear" decays to 0 at the last step; "multistep" multiplies by 0.1 at each milestone;
    #: "plateau" by 0.1 whenever more than `plateau_patience` evaluations in a row
    #: (`validation.task`) are no better than the best one.
    schedule: Literal["linear", "multistep", "plateau"] = "linear"
    #: Fractions of the run at which "multistep" decays.
    milestones: tuple[float, ...] = (0.67, 0.89)
    plateau_patience: int = 3
    #: Minimum learning rate of "plateau".
    plateau_least_lr: float = 1e-6
    #: Maximum L2 norm of the whole gradient; 0 disables clipping.
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps", "plateau_least_lr", "plateau_patience"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optim.{name} must be 0 or more, got {value}")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be in [0, 1), got {self.betas}",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optim.warmup_fraction must be in [0, 1), got {self.warmup_fraction}",
        )
        require(self.clip_norm >= 0, f"optim.clip_norm must be 0 or more, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision, logging and checkpoints of a run."""

    #: Maximum optimizer steps.
    steps: int = 1000
    #: Maximum epochs over the records of the run's one task: the run ends after these or after
    #: `steps`, whichever comes first; 0: after `steps`.
    epochs: float = 0.0
    #: Micro-batches whose gradients are averaged into one step.
    accumulation: int = 1
    #: Precision of forward and backward; weights, losses and optimizer stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    #: Recompute blocks in the backward pass instead of storing their activations.
    gradient_checkpointing: bool = False
    #: Decay of the weights' moving average, which becomes the finished model; 0 disables.
    ema_decay: float = 0.0
    #: Steps between lines of metrics; checkpoints write one too.
    log_every: int = 20
    #: Steps between checkpoints; 0 writes only the finished model.
    checkpoint_every: int = 500
    #: Epochs between checkpoints, in place of `checkpoint_every`; 0 disables.
    checkpoint_epochs: float = 0.0
    #: Number of newest checkpoints to keep.
    keep_checkpoints: int = 2
    #: Seed of the initialization, the data order and every random draw.
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "log_every", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name} must be 1 or more, got {value}")
        require(
            self.checkpoint_every >= 0,
            f"train.checkpoint_every must be 0 or more, got {self.checkpoint_every}",
        )
        for name in ("epochs", "checkpoint_epochs"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"train.{name} must be 0 or more, got {value}")
        require(0 <= self.ema_decay < 1, f"train.ema_decay must be in [0, 1), got {self.ema_decay}")


#: Tasks of `fiber eval`, and the metrics whose sum selects the better model.
CHOSEN_BY: dict[str, tuple[str, ...]] = {
    "retrieval": ("text_to_image_recall_at_1", "image_to_text_recall_at_1"),
    "matching": ("accuracy",),
    "masked_words": ("accuracy",),
    "caption": ("cider_d",),
    "vqa": ("accuracy",),
    "nlvr2": ("accuracy",),
    "winoground": ("group",),
    "refcoco": ("accuracy_at_1",),
    "flickr": ("any_recall_at_1",),
    "coco": ("ap",),
    "lvis": ("ap",),
}


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Selection of the final weights: the best on a validation task, or the last ones."""

    #: Task to evaluate at every checkpoint and at the end, a key of `CHOSEN_BY`; ties keep the
    #: later step. None: no evaluation, keep the last weights.
    task: str | None = None
    #: Split to evaluate; it must not be trained on.
    split: str = "val"
    #: Maximum images to evaluate, with all of their texts, drawn once; 0: all.
    pictures: int = 0
    #: Stop after this many evaluations in a row below the best one; 0: never.
    stop_after: int = 0

    def __post_init__(self) -> None:
        require(
            self.task is None or self.task in CHOSEN_BY,
            f"validation.task {self.task!r} does not exist; {nearest(str(self.task), CHOSEN_BY)}",
        )
        for name in ("pictures", "stop_after"):
            value = getattr(self, name)
            require(value >= 0, f"validation.{name} must be 0 or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Complete run: the result of a recipe and the content of a run's `config.json`."""

    tasks: TasksConfig
    model: FiberConfig = field(default_factory=FiberConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        stage = self.model.stage
        for name in self.tasks.active():
            require(
                (name == "grounding") == ("grounding" in self.model.heads),
                f"tasks.{name} cannot train a {stage} model; grounding needs stage fine,"
                " every other task stage coarse",
            )
        missing = [head for head in self.needed_heads() if head not in self.model.image_text.heads]
        require(
            "grounding" in self.model.heads or not missing,
            f"model.image_text.heads lacks {', '.join(missing)}, which the tasks train;"
            f" it has {', '.join(self.model.image_text.heads)}",
        )
        task = self.tasks.image_text
        if task.share > 0 and task.has_contrast and task.itc_form == "queue":
            require(
                self.data.transform.kind != "shorter_side",
                "tasks.image_text.itc_form 'queue' keeps pictures of one size;"
                " data.transform.kind must be squash or crop, got shorter_side",
            )
            require(
                self.data.batch_size // self.train.accumulation <= task.queue_length,
                f"tasks.image_text.queue_length {task.queue_length} is less than the"
                f" {self.data.batch_size // self.train.accumulation} pairs of a pass",
            )
        moving = self.data.transform.rand_augment.moving()
        require(
            not (moving and "grounding" in self.tasks.active()),
            "data.transform.rand_augment.operations: boxes do not follow"
            f" {', '.join(moving)}; tasks.grounding allows the others",
        )
        seen = set(self.data.split.split("+")) & set(self.validation.split.split("+"))
        require(
            self.validation.task is None or not seen,
            f"validation.split {self.validation.split!r} is trained on (data.split"
            f" {self.data.split!r}); expected a split that is held out",
        )
        require(
            not (self.optim.published_coarse and "grounding" in self.model.heads),
            "optim.published_coarse is a rule of the coarse stage; the model is fine",
        )
        require(
            self.data.batch_size % self.train.accumulation == 0,
            f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulation"
            f" {self.train.accumulation}",
        )
        self._check_length()
        pairs = self.data.batch_size // self.train.accumulation
        require(
            pairs > 1
            or task.share == 0
            or (task.itc == 0 and task.itm == 0)
            # The queue provides negatives.
            or (task.itc_form == "queue" and task.itm_negatives != "random"),
            f"data.batch_size {self.data.batch_size} in {self.train.accumulation} passes"
            " (train.accumulation) leaves one pair a pass; tasks.image_text.itc and itm need 2 or"
            " more, since the other pairs are the negatives",
        )

    def _check_length(self) -> None:
        """Check the fields that count epochs or evaluations."""
        measured = self.validation.task is not None
        saved = self.train.checkpoint_every > 0 or self.train.checkpoint_epochs > 0
        for name, asked in (
            ("optim.schedule 'plateau'", self.optim.schedule == "plateau"),
            ("validation.stop_after", self.validation.stop_after > 0),
        ):
            require(
                not asked or (measured and saved),
                f"{name} goes by what is measured at checkpoints; set validation.task, and"
                " train.checkpoint_every or train.checkpoint_epochs",
            )
        counted = self.train.epochs > 0 or self.train.checkpoint_epochs > 0
        require(
            not counted or len(self.tasks.active()) == 1,
            "train.epochs and train.checkpoint_epochs count passes over the records of one task;"
            f" the run has {', '.join(self.tasks.active())}",
        )

    def with_length(self, records: int) -> RunConfig:
        """Convert `epochs` and `checkpoint_epochs` to steps for this number of records."""
        train = self.train
        steps_of_epoch = records / self.data.batch_size
        steps, every = train.steps, train.checkpoint_every
        if train.epochs > 0:
            steps = min(steps, max(1, math.ceil(train.epochs * steps_of_epoch)))
        if train.checkpoint_epochs > 0:
            every = max(1, round(train.checkpoint_epochs * steps_of_epoch))
        return dataclasses.replace(
            self, train=dataclasses.replace(train, steps=steps, checkpoint_every=every)
        )

    def needed_heads(self) -> tuple[str, ...]:
        """Heads of the coarse model that the active tasks train."""
        active = self.tasks.active()
        heads = []
        if "image_text" in active:
            task = self.tasks.image_text
            # Hard negatives are drawn by ITC similarity, so ITM needs that head too.
            heads += ["itc"] if task.has_contrast else []
            heads += [name for name in ("itm", "mlm") if getattr(task, name) > 0]
        heads += ["vqa"] if "question" in active else []
        heads += ["nlvr2"] if "reasoning" in active else []
        heads += ["caption"] if "caption" in active else []
        return tuple(heads)


def load_recipe(name: str) -> RunConfig:
    """Build the configuration of a recipe of `fiber.recipes`.

    Raises:
        ValueError: if there is no such recipe, with the nearest names.
    """
    # Imported by name, because recipes import this package.
    return importlib.import_module("fiber.recipes").get(name)()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List the fields in which two configurations differ, one line each."""
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
