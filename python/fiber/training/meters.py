"""Average the metrics of the steps since the last line of metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fiber.training.distributed import Processes, mean_over_ranks


class Meter:
    """Collect losses on the device; read them once per line, because reading synchronizes."""

    def __init__(self, processes: Processes, *, images: int, seconds: float) -> None:
        """Args: images and seconds of the run before it was resumed."""
        self.processes = processes
        self.images, self.seconds = images, seconds
        self._images_before, self._seconds_before = images, seconds
        self._losses: dict[str, list[Tensor]] = {}

    def count_images(self, images: int) -> None:
        """Count the images of a micro-batch, over all ranks."""
        self.images += images

    def add(self, losses: dict[str, Tensor]) -> None:
        """Collect losses of one micro-batch; they are detached."""
        for name, loss in losses.items():
            self._losses.setdefault(name, []).append(loss.detach())

    def close(
        self,
        *,
        step: int,
        seconds: float,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        gradient_norm: Tensor,
    ) -> dict[str, Any]:
        """Return the line of metrics and reset.

        Raises:
            FloatingPointError: if a loss or the gradient norm is not finite, with its name.
        """
        names = sorted(self._losses)
        means = [torch.stack(self._losses[name]).mean() for name in names]
        # Losses divide by counts over all ranks: their mean is the loss of the whole batch.
        values = mean_over_ranks(torch.stack(means).double(), self.processes).tolist()
        losses = dict(zip(names, values, strict=True))
        norm = float(gradient_norm)
        wrong = [name for name in names if not math.isfinite(losses[name])]
        wrong += [] if math.isfinite(norm) else ["the gradient's norm"]
        if wrong:
            raise FloatingPointError(
                f"not finite by step {step}: {', '.join(wrong)}; lower optim.lr, set"
                " optim.clip_norm, or train in float32"
            )
        gates = [p.detach().abs().mean() for n, p in model.named_parameters() if n.endswith("gate")]
        entry = {
            "step": step,
            "seconds": round(seconds, 3),
            "images": self.images,
            "images_per_second": round(
                (self.images - self._images_before) / max(seconds - self._seconds_before, 1e-9), 2
            ),
            "losses": losses,
            "gradient_norm": norm,
            # Mean absolute value of the cross-attention gates, 0 at the start.
            "mean_gate": float(torch.stack(gates).mean()) if gates else 0.0,
            "learning_rates": learning_rates(optimizer),
        }
        self._losses.clear()
        self._images_before, self._seconds_before = self.images, seconds
        return entry


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """List the distinct learning rates by their factor: {"x1": 0.001, "x5": 0.005}."""
    return {f"x{group['lr_factor']:g}": group["lr"] for group in optimizer.param_groups}
