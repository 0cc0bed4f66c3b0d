"""Exponential moving average (EMA) of the weights."""

# pyright: reportPrivateImportUsage=false
# The functions on lists of tensors, as used by torch.optim, are not exported.

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiber.training.distributed.full_tensor import local_rows


class MovingAverage:
    """Exponential moving average of the trainable parameters.

    The decay ramps up with the number of updates, so that the initial weights do not dominate the
    average of a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the current parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [local_rows(p) for p in model.parameters() if p.requires_grad]
        torch._foreach_lerp_([local_rows(each) for each in self._averages], now, 1 - decay)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's state dict with the averaged parameters."""
        return model.state_dict() | dict(zip(self._names, self._averages, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint."""
        averages = dict(zip(self._names, self._averages, strict=True))
        return averages | {"updates": torch.tensor(self.updates)}
