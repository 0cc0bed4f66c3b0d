"""`TaskTraining`: what a run asks of a task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.data import Tokenizer
from fiber.data.fake_batch import fake_batch
from fiber.data.loader_config import BatchType
from fiber.data.record import RecordSet
from fiber.models.abilities import need_ability
from fiber.tasks import find_task
from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Task
from fiber.training.config.run import RunConfig
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.training_data import TrainingData

#: Size of an image in pixels, (height, width).
ImageSize = tuple[int, int]


class Traffic(NamedTuple):
    """Bytes of a step of one task through each GPU."""

    #: Embeddings of ITC, or the pairs that ranks add to its queue.
    contrast: float = 0.0
    #: Negatives of ITM that other ranks encoded and their gradients, or images of the queue.
    negatives: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return self.contrast + self.negatives


class TaskTraining:
    """A task in a run: its records, losses and cost. Each task has a subclass in its folder.

    A task whose losses are means over separate samples defines `losses`; any other `branches`.
    Everything else has a default. State of a run, such as a queue, is kept in attributes.
    """

    #: What a model must be able to do: protocols of `fiber.models.abilities`, or of the package of
    #: the task; heads are those of `TaskConfig.heads`.
    abilities: ClassVar[tuple[type, ...]] = ()
    #: Usual cause of a loss that stays at its prior value, by loss.
    causes: ClassVar[Mapping[str, str]] = {}
    #: Losses of a random model that soon fall, if only because it learns which tokens are frequent.
    fall_soon: ClassVar[tuple[str, ...]] = ()

    def __init__(self, task: Task, options: Any) -> None:
        """Keep the entry of the task and its options in the run, a `TaskConfig`."""
        self.task, self.options = task, options

    def check_model(self, model: Any) -> None:
        """Check that a model can be trained on the task.

        Raises:
            MissingHeadError: if it lacks a head or a method; the message names what is missing and
                a recipe that trains it.
        """
        for ability in self.needed_abilities():
            need_ability(model, ability, f"tasks.{self.task.name}")

    def needed_abilities(self) -> Sequence[type]:
        """Return the abilities that the options need."""
        return self.abilities

    # Records

    def check_records(self, name: str, records: RecordSet) -> None:
        """Check records before anything is read in whole; `name` is used in messages.

        Raises:
            ValueError: if the task cannot be trained on them.
        """

    def choose_answers(
        self,
        records: RecordSet,
        config: RunConfig,
        fixed: tuple[str, ...] | None,
        known: Vocabulary | None,
    ) -> tuple[str, ...] | None:
        """Choose the answers of the VQA head; None if the task does not train one.

        Args:
            records: records of the task.
            config: configuration of the run.
            fixed: answers that the caller gives.
            known: vocabulary of the initial model or of the resumed run.
        """
        return None

    def usable_records(
        self, records: RecordSet, answers: Sequence[str]
    ) -> tuple[RecordSet, str | None]:
        """Return the records that can be trained with the answers, and what to say of others."""
        return records, None

    def classes(self, records: RecordSet) -> tuple[str, ...]:
        """Return the names of classes in the records, which `Model.detect` then finds."""
        return ()

    def sampled_records(
        self, records: RecordSet, sources: Sequence[str], config: RunConfig, tokenizer: Tokenizer
    ) -> RecordSet:
        """Return records of a data folder whose texts are resampled every epoch."""
        return records

    def completion(
        self, records: RecordSet, config: RunConfig, tokenizer: Tokenizer
    ) -> Callable[[Any], Any] | None:
        """Return a function of a batch of the loader that adds what its layout has not.

        Raises:
            ValueError: if the records do not suffice.
        """
        return None

    def labels(self, answers: Sequence[str]) -> Sequence[str]:
        """Return the classes that `targets` of the layout "question" number."""
        return answers

    @property
    def layout(self) -> BatchType:
        """Layout of the loader's batches: that of the task, or one with more fields."""
        return self.task.layout

    # Start

    def prepare(self, config: RunConfig, data: TrainingData) -> None:
        """Compute what losses need of the data, before the run has a folder.

        Raises:
            ValueError: if the data does not suffice.
        """

    def start(self, config: RunConfig, device: torch.device) -> None:
        """Allocate the state of the task; weights are copied by `begin_step`."""

    def init_from_data(
        self,
        model: Any,
        new: Collection[str],
        data: TrainingData,
        first_batch: Callable[[], Any],
    ) -> None:
        """Initialize heads of a model with `weight_start` "fan_in" from the data.

        Args:
            model: network whose weights are all initialized otherwise.
            new: names of the tensors that are not copied from another model; others are kept.
            data: records of the run.
            first_batch: reads the first batch of the task, on the device of the model.
        """

    # Steps

    def begin_step(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Update state before a step; `weights` returns the state dict of the model."""

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors to save in a checkpoint, by part. Names of parts are unique."""
        return {}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore the parts of a state returned by `state_dict`."""

    def losses(self, model: Any, batch: Any, whole: Tensor | None) -> dict[str, Tensor]:
        """Compute losses that are means over samples.

        Args:
            model: network of the run.
            batch: all samples of this rank's micro-batch, or some.
            whole: number of samples in the micro-batch of all ranks, by which to divide sums; None
                if `batch` has all of this rank's.

        Returns:
            Unweighted scalars by name, of which the mean over the ranks is that of all samples.
        """
        raise NotImplementedError

    def branches(
        self,
        model: Any,
        batch: Any,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses one branch at a time; see `TrainStep.branches`."""
        whole = passes.whole_rows(batch.token_ids)
        rows = passes.parts(draw.rows(batch))
        for part, (own_rows,) in zip(passes.batches(batch), rows, strict=True):
            # Samples of several images are consecutive: all first ones come first.
            with draw.dropout(Place.PAIR, own_rows, is_repeated=True):
                losses = self.losses(model, part, whole)
            yield losses

    def num_branches(self, passes: ForwardPasses = ONE_PASS) -> int:
        """Return the number of branches that `branches` yields."""
        return passes.count

    # Reports

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        """Return the loss of the best constant prediction for each loss that has one."""
        return {}

    # Cost

    def is_counted(self, config: RunConfig) -> bool:
        """Return False if FLOPs depend on values; then `cost_note` says why."""
        return config.transform(self.task.name).kind != "shorter_side"

    #: What a plan says of FLOPs that are not counted.
    cost_note: ClassVar[str] = "images differ in size; all are counted at the largest one"

    def cost_passes(
        self,
        model: nn.Module,
        config: RunConfig,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        split: SplitGraph,
    ) -> Iterator[Tensor]:
        """Yield a scalar for each branch, computed by the same layers as in `branches`.

        Tensors are fake: they have shapes, but no values. See `fiber.training.plan.step_cost`. The
        default runs `branches` on the batch of `fake_batch`. A task whose branches depend on values
        or on its state, such as a number of masked tokens or a queue, has passes of its own.

        Args:
            model: network of the run.
            config: configuration of the run.
            images: (B, 3, H, W), or (B, n, 3, H, W) with n images of a sample.
            ids: (B, L) int64 tokens.
            mask: (B, L) bool, all True.
            split: as for `branches`.
        """
        batch = self.fake_batch(config, images, ids, mask)
        for losses in self.branches(model, batch, Draw(seed=0, number=0), split):
            yield torch.stack(list(losses.values())).sum()

    def fake_batch(self, config: RunConfig, images: Tensor, ids: Tensor, mask: Tensor) -> Any:
        """Make a batch of the task's layout from fake tensors; arguments as for `cost_passes`.

        A task with a `completion` adds its fields.
        """
        samples, sizes = len(ids), torch.tensor(images.shape[-2:]).repeat(len(ids), 1)
        common = {
            "keys": tuple(map(str, range(samples))),
            "images": images,
            "image_sizes": sizes,
            "original_sizes": sizes,
            "token_ids": ids,
            "text_mask": mask,
        }
        labels = len(self.labels([""] * config.model.num_answers))
        return fake_batch(self.layout, common, labels)

    def traffic(self, config: RunConfig, gpus: int, tokens: int, image_size: ImageSize) -> Traffic:
        """Return the bytes that the losses of a step exchange among two or more GPUs."""
        return Traffic()

    def state_bytes(self, config: RunConfig, parameters: int, gpus: int) -> int:
        """Return the bytes of the state on each GPU."""
        return 0


def trainings_of(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskTraining]:
    """Create the `TaskTraining` of each of some tasks, such as `TasksConfig.active()`."""
    return {name: find_task(name).trained(options) for name, options in tasks.items()}
