"""Split the backward pass to free each branch's activations before the next branch runs.

Branches are losses on top of shared tensors (the prefixes of the two encoders). With one graph, the
activations of all branches are alive at once. Here the shared tensors are cut from the graph: each
branch runs backward down to the cuts, where gradients accumulate; the rest of the graph then runs
backward once. Peak memory is that of the largest branch.

    split = SplitGraph()
    for losses in step.branches(task, batch, draw, split):
        sum(losses.values()).backward()
    split.backward()

A generator keeps every `backward` in the training loop, where readers, profilers and wrappers
(gradient scaling, reduction between branches) look for it, and `TrainStep.forward` an ordinary
forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SplitGraph:
    """Tensors shared by several losses, cut from the graph that computed them."""

    def __init__(self) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a new leaf; unchanged if it needs no gradient."""
        if not tensor.requires_grad:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._cuts.append((tensor, leaf))
        return leaf

    def backward(self) -> None:
        """Backpropagate the leaves' gradients through the rest of the graph."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self._cuts if leaf.grad is not None]
        self._cuts.clear()
        if reached:
            tensors, gradients = zip(*reached, strict=True)
            torch.autograd.backward(tensors, gradients)
