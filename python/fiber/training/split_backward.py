"""Several losses on top of shared tensors, each run backward before the next one is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Runs the weighted sum of some named losses backward.
Backward = Callable[[dict[str, Tensor]], None]


class Branches:
    """Collects the losses of one pass.

    What a loss keeps for its backward pass is gone before the next one is computed, so that the
    peak of memory is that of the largest branch and not of all of them. Shared tensors are cut from
    the graph; what the branches give them as gradient is summed and runs on at the end, once.
    """

    def __init__(self, backward: Backward | None) -> None:
        """Args: what runs losses backward; None leaves the graph whole and that to the caller."""
        self._backward = backward
        self._cuts: list[tuple[Tensor, Tensor]] = []
        self._losses: dict[str, Tensor] = {}

    def share(self, tensor: Tensor) -> Tensor:
        """Cut a tensor that several losses use from what it was computed of."""
        if self._backward is None or not tensor.requires_grad:
            return tensor
        cut = tensor.detach().requires_grad_()
        self._cuts.append((tensor, cut))
        return cut

    def add(self, name: str, loss: Tensor) -> None:
        """Take in a loss, and run it backward to the shared tensors."""
        if self._backward is not None:
            self._backward({name: loss})
            loss = loss.detach()
        self._losses[name] = loss

    def close(self) -> dict[str, Tensor]:
        """Run the shared tensors' gradients on; gives all losses, detached if they ran backward."""
        reached = [(tensor, cut.grad) for tensor, cut in self._cuts if cut.grad is not None]
        if reached:
            tensors, gradients = zip(*reached, strict=True)
            torch.autograd.backward(tensors, gradients)
        return self._losses
