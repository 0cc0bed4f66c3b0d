"""Data loaders of a run's tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fiber import DecodeError
from fiber.data import ColorJitter, DataLoader, ImageTransform, RandAugment
from fiber.data.loader_config import MlmOptions
from fiber.data.prompts.sampling import dropped_boxes
from fiber.data.skip_report import counted, skip_lines
from fiber.data.text_lengths import text_counts
from fiber.messages import shown
from fiber.models.registry import ModelConfig, architecture_of
from fiber.tasks.fields import first_part, task_of
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import RunConfig
from fiber.training.distributed.processes import Processes
from fiber.training.task_training import trainings_of
from fiber.training.training_data import TrainingData

_SKIP = "--set data.on_error=skip skips and counts such records"


def training_transform(model: ModelConfig, transform: TransformConfig) -> ImageTransform:
    """Build the image transform of a training run."""
    common: dict[str, Any] = {
        "color_jitter": ColorJitter(**vars(transform.color_jitter)),
        "rand_augment": RandAugment(**vars(transform.rand_augment)),
        "channel_order": model.channel_order,
        **architecture_of(model).image_options(model),
    }
    if transform.kind == "shorter_side":
        return ImageTransform.shorter_side(
            list(transform.shorter_sides),
            transform.max_size,
            crop_probability=transform.crop_probability,
            crop_scale=transform.crop_scale,
            flip_probability=transform.flip_probability,
            **common,
        )
    if transform.kind == "scale_jitter":
        return ImageTransform.scale_jitter(
            model.image_size,
            scale=transform.jitter_scale,
            flip_probability=transform.flip_probability,
            **common,
        )
    if transform.kind == "center_crop":
        return ImageTransform.center_crop(model.image_size, **common)
    if transform.kind == "crop":
        return ImageTransform.random_resized_crop(
            model.image_size,
            scale=transform.crop_scale,
            flip_probability=transform.flip_probability,
            **common,
        )
    return ImageTransform.squash(model.image_size, **common)


def mlm_options(config: RunConfig, name: str) -> MlmOptions:
    """Return how a task's loader masks; tasks without MLM do not use masked texts."""
    has_mlm = "mlm" in config.tasks.active()[task_of(name)].losses
    unit = config.data.mlm_unit if has_mlm else "token"
    # Masking by token has the seed of the loader.
    return {"mlm_unit": unit, "mlm_seed": None if unit == "token" else config.train.seed}


class TaskLoaders:
    """Infinite stream of batches for each task.

    Each step takes `RunConfig.batch_size` samples of a task over all ranks, split into
    `train.accumulation` micro-batches. The ranks split each of them as evenly as possible.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        processes: Processes,
        *,
        consumed: Mapping[str, int],
        threads: int,
    ) -> None:
        """Start each task's stream after the `consumed` samples, counted over all ranks.

        Raises:
            ValueError: if there are fewer samples in a micro-batch than ranks.
        """
        #: Samples of a micro-batch of each task, over all ranks.
        self.micro_batch_sizes = {
            name: config.micro_batch_size(name) for name in config.tasks.active()
        }
        for name, size in self.micro_batch_sizes.items():
            if size < processes.world_size:
                raise ValueError(
                    f"{config.batch_size_field(name)} in {config.train.accumulation} micro-batches"
                    f" (train.accumulation) leaves {size} samples for {processes.world_size}"
                    " processes; expected one or more for each"
                )
        #: Samples that each task takes from the records of its first steps.
        self._first_samples = {
            name: task.first_steps * config.batch_size(name)
            for name, task in config.tasks.active().items()
        }
        #: Consumed samples of each task, and of the records of its first steps, over all ranks.
        self.consumed = {name: consumed.get(name, 0) for name in data.records}
        tasks = trainings_of(config.tasks.active())
        tokenizer, max_tokens = data.vocabulary.tokenizer, config.model.max_tokens
        self._records = data.records
        self._loaders = {
            name: DataLoader(
                records,
                tasks[task_of(name)].layout,
                tokenizer=tokenizer,
                transform=training_transform(config.model, config.transform(task_of(name))),
                batch_size=self.micro_batch_sizes[task_of(name)],
                split_batches=True,
                max_tokens=max_tokens,
                answers=tasks[task_of(name)].labels(data.vocabulary.answers),
                shuffle=True,
                order=config.data.order,
                # Tasks that share records must not visit them in the same order.
                seed=config.train.seed * 31 + tasks[task_of(name)].task.stream,
                mlm_probability=config.data.mlm_probability,
                **mlm_options(config, name),
                threads=threads,
                rank=processes.rank,
                world_size=processes.world_size,
                on_error=config.data.on_error,
                accept_truncated=config.data.accept_truncated,
                scaled_decoding=config.data.scaled_decoding,
                max_pixels=config.data.max_pixels,
                max_decode_bytes=config.data.max_decode_bytes,
                pin_memory=processes.device.type == "cuda",
            )
            for name, records in self._records.items()
        }
        self._iterators: dict[str, Iterator[Any]] = {}
        self._completions = data.completions

    def skipped(self) -> list[str]:
        """Describe the data that this rank skipped or truncated, one line per task and kind."""
        lines = []
        for name, loader in self._loaders.items():
            records = self._records[name]
            if loader.skipped:
                key, _, reason = loader.skipped[0]
                broken = _skipped(len(loader.skipped), "broken records")
                lines.append(f"{name}: {broken}, first {shown(key)}: {reason}")
            for count, reason in (
                (
                    loader.truncated_boxes,
                    "no token names them (the text is truncated at model.max_tokens, or the record"
                    " has no span)",
                ),
                (dropped_boxes(records), "the sampled prompt does not contain their class"),
                (loader.cropped_boxes, "the crop keeps too little of them"),
            ):
                if count:
                    lines.append(f"{name}: {_skipped(count, 'boxes')}, since {reason}")
            late = skip_lines(records, while_reading=True)
            lines += [f"{name}: {line}" for line in late]
        for name, loader in self._loaders.items():
            lines += [f"{name}: {line}" for line in text_counts(loader)]
        return lines

    def next_batch(self, task: str) -> Any:
        """Return the next batch of a task.

        Raises:
            DecodeError, FileNotFoundError: if an image is broken or missing and data.on_error is
                "raise"; the message names the record.
        """
        name = task
        if self.consumed.get(first_part(task), math.inf) < self._first_samples[task]:
            name = first_part(task)
        if name not in self._iterators:
            self._iterators[name] = iter(self._loaders[name].stream(start=self.consumed[name]))
        try:
            batch = next(self._iterators[name])
        except DecodeError as error:
            hinted = DecodeError(f"{error}; {_SKIP}")
            hinted.status = error.status
            raise hinted from None
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.strerror}: {error.filename!r}; {_SKIP}") from None
        if name in self._completions:
            batch = self._completions[name](batch)
        self.consumed[name] += self.micro_batch_sizes[task]
        return batch


def _skipped(count: int, what: str) -> str:
    return f"{counted(count, what)} {'was' if count == 1 else 'were'} skipped"
