"""Gradients of a micro-batch, one backward pass for each branch and part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fiber.training.distributed.strategy import Strategy
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.step import TrainStep


class MicroBatches:
    """Adds gradients of micro-batches to those of the parameters.

    Args:
        step: model and objectives.
        strategy: `begin_backward` is called before every backward pass.
        accumulation: number of micro-batches of a step.
        passes: parts in which to compute a micro-batch.
        autocast: creates a context manager for forward passes (`enabled=False`: for backward ones).
    """

    def __init__(
        self,
        step: TrainStep,
        strategy: Strategy,
        *,
        accumulation: int,
        passes: ForwardPasses,
        autocast: Callable[..., torch.autocast],
    ) -> None:
        self.step, self.strategy = step, strategy
        self.accumulation, self.passes, self._autocast = accumulation, passes, autocast
        #: Tasks and losses that train nothing, of which was warned.
        self._untrained: set[tuple[str, str]] = set()

    def backward(self, task: str, batch: Any, draw: Draw, *, is_last: bool) -> dict[str, Tensor]:
        """Add the gradient of the weighted loss of a micro-batch, divided by their number.

        Args:
            task: name of the task.
            batch: this rank's samples of the micro-batch, on the device.
            draw: key of the random numbers.
            is_last: True for the last micro-batch of a step.

        Returns:
            Unweighted losses by name, detached.
        """
        weights = self.step.tasks.active()[task].weights()
        branches, split = self.step.num_branches(task, self.passes), SplitGraph()
        sums: dict[str, Tensor] = {}
        with self._autocast():
            found = self.step.branches(task, batch, draw, split, self.passes)
            for branch, losses in enumerate(found, start=1):
                total = torch.stack([weights[name] * loss for name, loss in losses.items()])
                ends = is_last and branch == branches and not split.is_cut
                self.strategy.begin_backward(is_last=ends)
                if total.requires_grad:
                    # Backward ops run in the dtypes of the forward ops.
                    with self._autocast(enabled=False):
                        (total.sum() / self.accumulation).backward()
                else:
                    self._warn_of_untrained(task, losses)
                for name, loss in losses.items():
                    loss = loss.detach()
                    sums[name] = sums[name] + loss if name in sums else loss
            if split.is_reached:
                self.strategy.begin_backward(is_last=is_last)
                split.backward()
        return sums

    def _warn_of_untrained(self, task: str, losses: Iterable[str]) -> None:
        """Warn once of losses in which no trained parameter has a part."""
        if new := [name for name in losses if (task, name) not in self._untrained]:
            self._untrained.update((task, name) for name in new)
            warnings.warn(
                f"task {task!r}: {', '.join(new)} is computed from frozen parameters only, so it"
                " trains nothing; see optim.frozen and lora.targets",
                RuntimeWarning,
                stacklevel=2,
            )
