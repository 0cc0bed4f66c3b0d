"""Average training metrics between lines of metrics.jsonl, and name losses that do not fall."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fiber.training.config.run import RunConfig
from fiber.training.distributed.collectives import mean_over_ranks
from fiber.training.distributed.full_tensor import full_tensor
from fiber.training.distributed.processes import Processes
from fiber.training.task_training import TaskTraining, trainings_of
from fiber.training.training_data import TrainingData

#: Steps before a loss is compared with its prior value, and the same as a fraction of the run.
FIRST_STEP, FIRST_FRACTION = 200, 0.2
#: A loss counts as stuck above this fraction of its prior value.
STUCK = 0.98


class Meter:
    """Running averages of the training losses.

    Losses stay on the device until a line is logged, since reading them synchronizes. `images` is
    the number of images that all ranks have processed in the run.
    """

    def __init__(
        self,
        processes: Processes,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        images: int,
        seconds: float,
    ) -> None:
        """Create a meter. `images` and `seconds` are the run's totals so far, 0 for a new run."""
        self.processes, self.model, self.optimizer = processes, model, optimizer
        self.images, self._logged = images, (images, seconds)
        self._losses: dict[str, list[Tensor]] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Accumulate the losses of a micro-batch."""
        for name, loss in losses.items():
            self._losses.setdefault(name, []).append(loss.detach())

    def close(self, step: int, seconds: float, gradient_norm: Tensor) -> dict[str, Any]:
        """Return the metrics averaged since the last call, and reset.

        Raises:
            FloatingPointError: if a loss or the gradient norm is not finite.
        """
        names = sorted(self._losses)
        means = [torch.stack(self._losses[name]).mean() for name in names]
        # Losses are normalized by counts over all ranks, so the mean is the whole batch's loss.
        values = mean_over_ranks(torch.stack(means).double(), self.processes).tolist()
        losses = dict(zip(names, values, strict=True))
        norm = float(gradient_norm)
        checked = {**losses, "the gradient norm": norm}
        wrong = [name for name, value in checked.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"non-finite values at or before step {step}: {', '.join(wrong)}; lower optim.lr,"
                " set optim.clip_norm, or train in float32"
            )
        named = self.model.named_parameters()
        gates = [full_tensor(p.detach()) for name, p in named if name.endswith("gate")]
        old_images, old_seconds = self._logged
        speed = (self.images - old_images) / max(seconds - old_seconds, 1e-9)
        self._losses.clear()
        self._logged = self.images, seconds
        return {
            "step": step,
            "seconds": round(seconds, 3),
            "images": self.images,
            "images_per_second": round(speed, 2),
            "losses": losses,
            "gradient_norm": norm,
            # Mean absolute value of the cross-attention gates, which start at 0.
            "mean_gate": float(torch.stack(gates).abs().mean()) if gates else 0.0,
            # Keyed by multiplier: {"x1": 0.001, "x5": 0.005}.
            "learning_rates": {
                f"x{group['lr_factor']:g}": group["lr"] for group in self.optimizer.param_groups
            },
        }


def prior_losses(config: RunConfig, data: TrainingData) -> dict[str, float]:
    """Return the loss of the best constant prediction for each objective that has one."""
    priors: dict[str, float] = {}
    for training in trainings_of(config.tasks.active()).values():
        # Losses of two tasks with one name are averaged; their priors are near.
        priors = training.priors(config, data) | priors
    return priors


class PriorWatch:
    """Names each loss that is still at its prior value, or at its first one, after many steps."""

    def __init__(
        self,
        priors: Mapping[str, float],
        steps: int,
        trainings: Collection[TaskTraining],
        *,
        from_scratch: bool = False,
    ) -> None:
        """Set the prior values of the losses, the number of steps, and whether weights are new.

        Usual causes, and losses that fall soon, are those of the run's tasks, `trainings`.
        """
        self._causes = {name: cause for each in trainings for name, cause in each.causes.items()}
        self.priors = dict(priors)
        self.first_step = max(FIRST_STEP, round(FIRST_FRACTION * steps))
        fall_soon = {name for each in trainings for name in each.fall_soon}
        self._awaited = fall_soon if from_scratch else set()
        self._first: dict[str, tuple[int, float]] = {}

    def messages(self, step: int, losses: Mapping[str, float]) -> list[str]:
        """Return a message for each loss that is stuck. Those of later steps are not repeated."""
        for name in self._awaited & losses.keys():
            self._awaited.remove(name)
            self._first[name] = step, losses[name]
        if step < self.first_step:
            return []
        texts = []
        for name, prior in list(self.priors.items()):
            if losses.get(name, 0.0) >= STUCK * prior:
                del self.priors[name]
                texts.append(
                    f"step {step}: {name} is {losses[name]:.3f}; a model that ignores inputs has"
                    f" {prior:.3f}. Usual cause: {self._cause(name)}"
                )
        for name, (began, first) in list(self._first.items()):
            if step > began and losses.get(name, 0.0) >= STUCK * first:
                del self._first[name]
                texts.append(
                    f"step {step}: {name} is {losses[name]:.3f}; it was {first:.3f} at step"
                    f" {began}. Usual cause: {self._cause(name)}"
                )
        return texts

    def _cause(self, name: str) -> str:
        return self._causes.get(name, "optim.lr is too low, or too few steps")
