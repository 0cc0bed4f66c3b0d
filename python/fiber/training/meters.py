"""Average training metrics between consecutive lines of metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fiber.training.distributed import Processes, mean_over_ranks


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
        gates = [p.detach().abs().mean() for name, p in named if name.endswith("gate")]
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
            "mean_gate": float(torch.stack(gates).mean()) if gates else 0.0,
            # Keyed by multiplier: {"x1": 0.001, "x5": 0.005}.
            "learning_rates": {
                f"x{group['lr_factor']:g}": group["lr"] for group in self.optimizer.param_groups
            },
        }
