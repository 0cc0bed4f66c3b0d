"""Initialization of a run's model: from other weights, from its data, and what stays random."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.init_from import initialize, initialize_as_base
from fiber.checkpoints.model_dir import StoredModel
from fiber.models.registry import Network
from fiber.training.config.run import RunConfig
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders
from fiber.training.task_training import trainings_of
from fiber.training.training_data import TrainingData


def initialize_model(
    model: Network,
    init: StoredModel | EncoderStates | None,
    config: RunConfig,
    data: TrainingData,
    processes: Processes,
) -> tuple[Collection[str], str]:
    """Copy the initial weights, if any, and start other parts from the data.

    Returns:
        Names of tensors that are not copied, and a report of all, which is "" without `init`.
    """
    new, report = model.state_dict().keys(), None
    if init is not None:
        answers = data.vocabulary.answers
        if config.lora is not None and isinstance(init, StoredModel):
            report = initialize_as_base(model, init, answers)
        else:
            report = initialize(model, init, answers)
        new = report.created
    init_from_data(model, new, config, data, processes)
    return new, "" if init is None else f"weights from {init.path}:\n{report}"


def init_from_data(
    model: Network,
    new: Collection[str],
    config: RunConfig,
    data: TrainingData,
    processes: Processes,
) -> None:
    """Start heads of a model with `weight_start` "fan_in" from the data.

    Answers of the VQA head start at their frequencies, and embeddings for ITC are centered.

    Args:
        model: model whose weights are all initialized otherwise.
        new: names of the tensors that are not copied from another model; others are kept.
        config: configuration of the run.
        data: records of the run. The first batch of captions is read.
        processes: the result does not depend on the rank or the world size.
    """
    if config.model.weight_start != "fan_in":
        return
    for name, training in trainings_of(config.tasks.active()).items():
        first = partial(_first_batch, name, config, data, processes)
        training.init_from_data(model, new, data, first)


def _first_batch(task: str, config: RunConfig, data: TrainingData, processes: Processes) -> Any:
    """Read the first batch of a task, the same on all ranks."""
    alone = dataclasses.replace(processes, rank=0, world_size=1)
    loaders = TaskLoaders(config, data, alone, consumed={}, threads=1)
    return loaders.next_batch(task).to(processes.device)


def warn_of_frozen(frozen: Sequence[str], new: Collection[str]) -> None:
    """Warn of frozen parameters that are among `new`, those that no other model has set."""
    names = [name for name in frozen if name in new]
    if names:
        warnings.warn(
            f"optim.frozen: {len(names)} parameters keep their random values, such as {names[0]};"
            " start from a model that has them (--init)",
            RuntimeWarning,
            stacklevel=2,
        )
