"""Configuration of a training run: model, data, tasks, optimizer and length.

This module does not import torch, so that recipes can be listed and checked quickly.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from fiber.config import FiberConfig
from fiber.config_io import IS_STORED, READ, field_names, nearest, require
from fiber.messages import shown
from fiber.models.model_config import ModelConfig
from fiber.models.registry import read_config
from fiber.tasks import all_evaluations
from fiber.tasks.transform import TransformConfig
from fiber.training.config.lora import LoraConfig
from fiber.training.config.tasks import TasksConfig, read_tasks

#: Default of `DataConfig.keep_share`.
KEEP_SHARE = 0.25


def _is_own_share(value: float) -> bool:
    return value != KEEP_SHARE


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data loading options."""

    #: Training split; "+" joins splits, as in "train+val".
    split: str = "train"
    #: Images per class for the source "detection", chosen as in the published few-shot training; 0
    #: uses all images.
    shots: int = 0
    #: Share of old samples beside new ones, in [0, 1), if a run keeps old data (`--keep`); 0 only
    #: measures what is left of what the initial model knew.
    keep_share: float = field(default=KEEP_SHARE, metadata={IS_STORED: _is_own_share})
    #: Samples per optimizer step, over all ranks and accumulated micro-batches.
    batch_size: int = 64
    #: Order of the samples in an epoch, for any number of ranks: "uniform" is a random permutation;
    #: "shards" shuffles the records of 16 shards at a time, and needs a packed folder. It reads
    #: large or remote data sequentially.
    order: Literal["uniform", "shards"] = "uniform"
    #: Probability that a token is selected for the MLM loss.
    mlm_probability: float = 0.15
    #: Unit of MLM masking: "token" (as in FIBER's published code), "word" (whole words) or
    #: "position" (a fixed number of positions per padded text, of which those of words count, as in
    #: METER's published code); see `fiber.data.loader_config.CollatorConfig`.
    mlm_unit: Literal["token", "word", "position"] = "token"
    #: Preprocessing of images, where `tasks.TASK.transform` has no other.
    transform: TransformConfig = field(default_factory=TransformConfig)
    #: Train a tokenizer on the texts if neither the data nor the user provides one and the model
    #: starts from scratch; otherwise a missing tokenizer is an error.
    train_tokenizer: bool = False
    #: Handling of broken records: "raise" an error, or "skip" or "resample" and count them.
    on_error: Literal["raise", "skip", "resample"] = "raise"
    #: Accept truncated images, with missing pixels filled in as by libjpeg.
    accept_truncated: bool = False
    #: Maximum number of pixels of an image file. A larger one is a broken record.
    max_pixels: int = 178_956_970
    #: Maximum memory in bytes for decoding one image; None means no limit. A larger one is a broken
    #: record.
    max_decode_bytes: int | None = None
    #: In training, decode JPEGs at reduced size if both sides have at least twice the needed
    #: pixels; evaluation always decodes at full size.
    scaled_decoding: bool = True

    def __post_init__(self) -> None:
        _check_range(self, "data", ["batch_size", "max_pixels"], 1)
        require(
            self.max_decode_bytes is None or self.max_decode_bytes >= 1,
            f"data.max_decode_bytes must be None or 1 or more, got {self.max_decode_bytes}",
        )
        _check_range(self, "data", ["shots"], 0)
        _check_range(self, "data", ["keep_share"], 0, below=1)
        require(
            0 <= self.mlm_probability <= 1,
            f"data.mlm_probability must be in [0, 1], got {self.mlm_probability}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (or Muon), its parameter groups and the learning rate schedule."""

    #: Peak learning rate of the encoders.
    lr: float = 1e-5
    #: Decoupled weight decay.
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    #: Learning rate multipliers. Several can apply to one parameter: a bias of the text encoder's
    #: cross-attention uses `cross_modal` times `text` times `bias`.
    head_lr_multiplier: float = 5.0
    cross_modal_lr_multiplier: float = 5.0
    text_lr_multiplier: float = 1.0
    bias_lr_multiplier: float = 1.0
    gate_lr_multiplier: float = 1.0
    #: Update the matrices of encoders and fusion by Muon, with this multiplier of their learning
    #: rate; 0 updates everything by AdamW. Small models from scratch learn faster by Muon.
    muon_lr_multiplier: float = 0.0
    #: Names of frozen parameters and modules, as in "backbone.image.stages.0"; * matches anything.
    frozen: tuple[str, ...] = ()
    #: Also decay norm weights, gates and other vectors; biases and bias tables are never decayed.
    decay_vectors: bool = False
    #: Use the parameter groups and AdamW variant of the published coarse-stage code: also decay
    #: gates, the temperature, and the norms of image-to-text queries and classifiers; add eps
    #: before the bias correction, and apply weight decay after the update.
    published_coarse: bool = False
    #: Decay what the published code of the model's family decays (`Network.published_decay`).
    #: `published_coarse` includes it.
    published_decay: bool = field(default=False, metadata={IS_STORED: bool})
    #: Fraction of the steps used for linear warmup, in [0, 1).
    warmup_fraction: float = 0.1
    #: Learning rate of the first step as a fraction of the peak.
    warmup_start: float = 0.0
    #: "linear" decays to 0 at the last step; "multistep" multiplies by 0.1 at each milestone;
    #: "plateau" multiplies by 0.1 after more than `plateau_patience` evaluations of
    #: `validation.task` in a row without a new best.
    schedule: Literal["linear", "multistep", "plateau"] = "linear"
    #: Milestones of "multistep", as fractions of the run.
    milestones: tuple[float, ...] = (0.67, 0.89)
    plateau_patience: int = 3
    #: Minimum learning rate of "plateau".
    plateau_least_lr: float = 1e-6
    #: Maximum L2 norm of the gradient; 0 disables gradient clipping.
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        names = ["lr", "weight_decay", "eps", "plateau_least_lr", "plateau_patience"]
        _check_range(self, "optim", [*names, "muon_lr_multiplier"], 0)
        _check_range(self, "optim", ["warmup_fraction"], 0, below=1)
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be in [0, 1), got {self.betas}",
        )
        require(self.clip_norm >= 0, f"optim.clip_norm must be 0 or more, got {self.clip_norm}")
        require(
            self.muon_lr_multiplier == 0 or not self.published_coarse,
            "optim.muon_lr_multiplier: expected 0 with optim.published_coarse, got"
            f" {self.muon_lr_multiplier}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision, logging and checkpoints of a run."""

    #: Maximum number of optimizer steps.
    steps: int = 1000
    #: Maximum number of epochs, for a run with one task: it ends after `epochs` or `steps`,
    #: whichever comes first. 0 means no limit.
    epochs: float = 0.0
    #: Number of micro-batches per step; their gradients are averaged. Contrast, hard negatives and
    #: the means of losses are over one micro-batch of all ranks.
    accumulation: int = 1
    #: Precision of forward and backward passes; weights, losses and optimizer state stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    #: Recompute blocks in the backward pass instead of storing their activations.
    gradient_checkpointing: bool = False
    #: Weights, gradients and optimizer state: "replicate" keeps all of them on every rank, "shard"
    #: divides them among up to 64 ranks (FSDP2), "hybrid" among the ranks of a node.
    strategy: Literal["replicate", "shard", "hybrid"] = "replicate"
    #: Ranks that share one copy with the strategy "hybrid"; 0 means those of a node, by torchrun's
    #: LOCAL_WORLD_SIZE.
    shard_size: int = 0
    #: Precision in which gradients are summed over ranks.
    reduce_precision: Literal["float32", "bfloat16"] = "float32"
    #: Samples of a forward pass on each rank; 0 means all of a micro-batch. Losses are the same for
    #: any number: means, contrast and hard negatives are over the whole micro-batch.
    samples_per_pass: int = 0
    #: Compile forward and backward passes of the backbone with torch.compile; first steps are slow.
    compile: bool = False
    #: Decay of the exponential moving average (EMA) of the weights; the EMA then becomes the
    #: finished model. 0 disables the EMA.
    ema_decay: float = 0.0
    #: Steps between log lines; a line is also logged at every checkpoint.
    log_every: int = 20
    #: Steps between checkpoints; 0 writes only the finished model.
    checkpoint_every: int = 500
    #: Epochs between checkpoints; overrides `checkpoint_every` unless 0.
    checkpoint_epochs: float = 0.0
    #: Minutes after which a checkpoint is written besides those; 0 writes no others.
    checkpoint_minutes: float = 0.0
    #: Number of newest checkpoints to keep.
    keep_checkpoints: int = 2
    #: Random numbers of dropout and stochastic depth: "rank" draws from the generator of each rank,
    #: so they depend on the number of ranks and passes; "row" draws by (seed, step, layer, sample).
    draws: Literal["rank", "row"] = "rank"
    #: Seed of the initialization, the data order and all random numbers.
    seed: int = 0
    #: Longest time in seconds that a rank waits for the others before it calls them dead. No step
    #: may take longer; validation may. May change on resume.
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        names = ("steps", "accumulation", "log_every", "keep_checkpoints")
        _check_range(self, "train", names, 1)
        _check_range(self, "train", ("checkpoint_every", "epochs", "checkpoint_epochs"), 0)
        _check_range(self, "train", ["ema_decay"], 0, below=1)
        _check_range(self, "train", ["timeout_seconds"], 1)
        _check_range(self, "train", ["checkpoint_minutes"], 0)
        _check_range(self, "train", ["shard_size", "samples_per_pass"], 0)
        require(
            self.shard_size == 0 or self.strategy == "hybrid",
            f"train.shard_size {self.shard_size} is for train.strategy 'hybrid', got"
            f" {shown(self.strategy)}",
        )
        require(
            not self.compile or self.draws == "rank",
            f"train.compile is for train.draws 'rank', got {shown(self.draws)}",
        )
        require(
            not self.compile or self.strategy == "replicate",
            f"train.compile is for train.strategy 'replicate', got {shown(self.strategy)}",
        )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Selection of the finished model: the best checkpoint on a task, or the last one."""

    #: Task to evaluate at every checkpoint and at the end, one of `fiber.tasks.all_evaluations`;
    #: ties keep the later step. None keeps the last weights.
    task: str | None = None
    #: Split to evaluate; must not be a training split.
    split: str = "val"
    #: Maximum number of images to evaluate, sampled once, with all of their texts; 0 means all.
    pictures: int = 0
    #: Stop after this many evaluations in a row below the best one; 0 disables early stopping.
    stop_after: int = 0

    def __post_init__(self) -> None:
        require(
            self.task is None or self.task in all_evaluations(),
            f"validation.task: unknown task {shown(self.task)};"
            f" {nearest(str(self.task), all_evaluations())}",
        )
        _check_range(self, "validation", ("pictures", "stop_after"), 0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Complete configuration of a run, as returned by a recipe and stored in `config.json`."""

    tasks: TasksConfig = field(metadata={READ: read_tasks})
    #: The config of a model of any family.
    model: ModelConfig = field(default_factory=FiberConfig, metadata={READ: read_config})
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    #: Train low-rank adapters of the initial model; None trains its weights.
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        for name, task in self.tasks.active().items():
            missing = [head for head in task.heads() if head not in self.model.heads]
            stage = getattr(self.model, "stage", None)
            require(
                not missing,
                f"tasks.{name}: the {f'{stage}-stage ' if stage else ''}model lacks"
                f" {', '.join(missing)}; its heads{self._heads_field} are"
                f" {', '.join(self.model.heads)}"
                + ("; boxes need model.stage 'fine', other tasks 'coarse'" if stage else ""),
            )
            task.check_run(f"tasks.{name}", self)
        units = self.model.mlm_units
        require(
            # Models without a masked language model have no units.
            not units or self.data.mlm_unit in units,
            f"data.mlm_unit {shown(self.data.mlm_unit)} is for byte-level BPEs; the text encoder"
            f" {getattr(self.model, 'text_encoder', '')!r} needs"
            f" {' or '.join(map(repr, units))}",
        )
        seen = set(self.data.split.split("+")) & set(self.validation.split.split("+"))
        require(
            self.validation.task is None or not seen,
            f"validation.split {shown(self.validation.split)} is used for training (data.split"
            f" {shown(self.data.split)}); expected a held-out split",
        )
        if self.optim.published_coarse:
            self.model.check_published("model.")
        require(
            self.train.draws == "rank" or self.model.has_row_draws,
            "train.draws 'row' is not for merged attention (model.cross.kind), whose attention"
            " weights have other places in texts of other lengths",
        )
        require(
            self.lora is None or self.lora.dropout == 0 or self.train.draws == "rank",
            "lora.dropout is for train.draws 'rank', got 'row'",
        )
        accumulation = self.train.accumulation
        for name in self.tasks.active():
            require(
                self.batch_size(name) % accumulation == 0,
                f"{self.batch_size_field(name)} is not a multiple of train.accumulation"
                f" {accumulation}",
            )
        self._check_length()

    @property
    def _heads_field(self) -> str:
        """Name of the field that lists the heads, for messages."""
        return " (model.image_text.heads)" if hasattr(self.model, "image_text") else ""

    def batch_size(self, task: str) -> int:
        """Return the samples of a step of a task, over all ranks and micro-batches."""
        return getattr(self.tasks, task).batch_size or self.data.batch_size

    def micro_batch_size(self, task: str) -> int:
        """Return the samples of a micro-batch of a task, over all ranks."""
        return self.batch_size(task) // self.train.accumulation

    def transform(self, task: str) -> TransformConfig:
        """Return the preprocessing of a task's images."""
        return getattr(self.tasks, task).transform or self.data.transform

    def transform_field(self, task: str) -> str:
        """Return the field that sets the preprocessing of a task's images."""
        own = getattr(self.tasks, task).transform
        return "data.transform" if own is None else f"tasks.{task}.transform"

    def batch_size_field(self, task: str) -> str:
        """Return the field that sets the samples of a step of a task, and its value."""
        own = getattr(self.tasks, task).batch_size
        return (
            f"tasks.{task}.batch_size {own}" if own else f"data.batch_size {self.data.batch_size}"
        )

    def _check_length(self) -> None:
        """Check the fields that depend on epochs or evaluations."""
        train = self.train
        is_validated = self.validation.task is not None and (
            train.checkpoint_every > 0 or train.checkpoint_epochs > 0
        )
        for name, is_set in (
            ("optim.schedule 'plateau'", self.optim.schedule == "plateau"),
            ("validation.stop_after", self.validation.stop_after > 0),
        ):
            require(
                not is_set or is_validated,
                f"{name} needs validation at checkpoints; set validation.task, and"
                " train.checkpoint_every or train.checkpoint_epochs",
            )
        require(
            (train.epochs == 0 and train.checkpoint_epochs == 0) or len(self.tasks.active()) == 1,
            "train.epochs and train.checkpoint_epochs need a run with exactly one task, got"
            f" {', '.join(self.tasks.active())}",
        )

    def with_length(self, records: int) -> RunConfig:
        """Convert `epochs` and `checkpoint_epochs` to steps for the given number of records."""
        train = self.train
        # Epochs are of a run's only task.
        steps_of_epoch = records / self.batch_size(next(iter(self.tasks.active())))
        steps, every = train.steps, train.checkpoint_every
        if train.epochs > 0:
            steps = min(steps, max(1, math.ceil(train.epochs * steps_of_epoch)))
        if train.checkpoint_epochs > 0:
            every = max(1, round(train.checkpoint_epochs * steps_of_epoch))
        return dataclasses.replace(
            self, train=dataclasses.replace(train, steps=steps, checkpoint_every=every)
        )

    def needed_heads(self) -> tuple[str, ...]:
        """Return the heads of the model that the active tasks need."""
        tasks = self.tasks.active().values()
        return tuple(dict.fromkeys(head for task in tasks for head in task.heads()))


def load_recipe(name: str) -> RunConfig:
    """Build the configuration of a recipe in `fiber.recipes`, or of another package.

    Raises:
        ValueError: if there is no such recipe; the message suggests the nearest names.
    """
    # Imported lazily, because recipes import this package.
    config = importlib.import_module("fiber.recipes").get(name)()
    require(
        isinstance(config, RunConfig),
        f"recipe {shown(name)}: expected a function that returns a RunConfig, got {shown(config)}",
    )
    return config


#: Fields that say how a run is trained, not what, so a resumed run may change them.
HOW = (
    *("train.strategy", "train.shard_size", "train.reduce_precision", "train.compile"),
    *("train.gradient_checkpointing", "train.samples_per_pass", "train.timeout_seconds"),
    *("train.log_every", "train.keep_checkpoints", "train.checkpoint_minutes"),
)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List the fields in which two configurations differ, one line each, except those of `HOW`.

    Without validation, `train.checkpoint_every` is one of them, too.
    """
    lines, how = [], HOW
    if old.validation.task is None and new.validation.task is None:
        how = (*HOW, "train.checkpoint_every")
    if type(old.model) is not type(new.model):
        kinds = [type(config.model).__name__ for config in (old, new)]
        return [f"model: {' -> '.join(kinds)}"]
    stored = (field_names(config, only_stored=True) for config in (old, new))
    for name in [name for name in dict.fromkeys(chain(*stored)) if name not in how]:
        before, after = (_value(config, name) for config in (old, new))
        # A section is shown field by field.
        is_section = any(map(dataclasses.is_dataclass, (before, after)))
        if before != after and not is_section:
            lines.append(f"{name}: {shown(before)} -> {shown(after)}")
    return lines


def _value(config: Any, name: str) -> Any:
    """Return a field by dotted name, or None in a section that is None."""
    for part in name.split("."):
        config = None if config is None else getattr(config, part)
    return config


def _check_range(
    config: Any, section: str, names: Sequence[str], least: float, below: float = math.inf
) -> None:
    """Check that fields of a section are in [least, below)."""
    expected = f"{least} or more" if below == math.inf else f"in [{least}, {below})"
    for name in names:
        value = getattr(config, name)
        require(least <= value < below, f"{section}.{name} must be {expected}, got {value}")
