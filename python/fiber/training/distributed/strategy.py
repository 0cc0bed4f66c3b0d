"""Strategies of data parallelism: placement of weights and optimizer state, mean of gradients.

Every rank computes the losses of its slice of each batch. Losses are normalized by counts over all
ranks, so the mean of the ranks' gradients is the gradient of the whole batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from fiber.config_io import require
from fiber.models.registry import Network
from fiber.training.config.run import TrainConfig
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.replicate import Replicate
from fiber.training.distributed.shard import Shard, group_size
from fiber.training.objectives.step import TrainStep


class Strategy(Protocol):
    """Distribution of a training step over the ranks.

        strategy.prepare(step)                  # once, before the optimizer is created
        strategy.begin_step(task)
        for each backward pass of the step:
            strategy.begin_backward(is_last=...)
            loss.backward()
        strategy.reduce_gradients()
        clip_gradients(parameters, limit)
        optimizer.step()

    All ranks must make the same calls.
    """

    def prepare(self, step: TrainStep) -> None:
        """Distribute the model, whose weights are the same on all ranks, in place."""
        ...

    def begin_step(self, task: str) -> None:
        """Begin an optimizer step on batches of a task."""
        ...

    def begin_backward(self, *, is_last: bool) -> None:
        """Announce a backward pass; `is_last` if no other pass of the step adds gradients."""
        ...

    def reduce_gradients(self) -> None:
        """Finish averaging: `grad` of each parameter is the mean over the ranks.

        A gradient that is None on every rank stays None, so the optimizer skips the parameter, as
        on a single process.
        """
        ...

    def full_weights(
        self, weights: Mapping[str, Tensor], *, keep: bool = True
    ) -> dict[str, Tensor]:
        """Gather tensors by name of the model's state dict, with the shapes they have in files.

        With `keep` False, this rank takes part, but what it gets may be empty.
        """
        ...

    def whole_model(
        self, model: Network, weights: Mapping[str, Tensor]
    ) -> AbstractContextManager[Network]:
        """Context manager of a model that is whole on this rank, with the given weights.

        Each rank may use it on its own. `weights` are by name of the model's state dict, and may be
        sharded. The model itself has its own weights again on exit.
        """
        ...


def choose_strategy(config: TrainConfig, processes: Processes) -> Strategy:
    """Create the strategy of a run. On one process it is `Replicate`, with a warning for others.

    Raises:
        ValueError: if the number of ranks does not fit `train.shard_size`.
    """
    if config.strategy == "replicate":
        return Replicate(processes, config.reduce_precision)
    if processes.world_size == 1:
        warnings.warn(
            f"train.strategy {config.strategy!r} has no effect on one process",
            RuntimeWarning,
            stacklevel=2,
        )
        return Replicate(processes, config.reduce_precision)
    if config.strategy == "shard":
        return Shard(processes, config, group_size(processes.world_size))
    return Shard(processes, config, shard_size(config, processes))


def shard_size(config: TrainConfig, processes: Processes) -> int:
    """Return the number of ranks that share one copy of the state with the strategy "hybrid".

    Raises:
        ValueError: if it is unknown, 1, or does not divide the world size.
    """
    size, name = config.shard_size, "train.shard_size"
    if size == 0:
        name = "LOCAL_WORLD_SIZE"
        local = os.environ.get(name, "")
        require(
            local.isdecimal(),
            "train.strategy 'hybrid' shards over the ranks of a node, but LOCAL_WORLD_SIZE, which"
            f" torchrun sets, is {local!r}; set train.shard_size",
        )
        size = int(local)
    world_size = processes.world_size
    require(
        size > 1 and world_size % size == 0,
        f"train.strategy 'hybrid': {name} must be a divisor of the {world_size} ranks and more than"
        f" 1, got {size}",
    )
    return size
