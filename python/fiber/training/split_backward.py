"""Split a backward pass, so that activations of one branch are freed before the next one runs.

Branches are losses on top of shared tensors (the prefixes of the two towers). With one graph, the
activations of all branches are alive at once. Here the shared tensors are cut from the graph: each
branch runs backward as soon as it is computed, down to the cuts, where gradients add up; the rest
of the graph then runs backward once. Peak memory is that of the largest branch.

The training loop makes the cuts, runs every `backward` and so decides the order of all of them:

    split = SplitGraph()
    for losses in step.branches(task, batch, draw, split):
        sum(losses.values()).backward()
    split.backward()

A generator and not a callback or a `backward` inside of `forward`, because the caller's loop is
where a reader, a profiler and a wrapper (gradient scaling, reduction between branches) look for
`backward`, and because `TrainStep.forward` then remains an ordinary forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SplitGraph:
    """Tensors that are shared by several losses, cut from the graph that computed them."""

    def __init__(self) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def cut(self, tensor: Tensor) -> Tensor:
        """Return a leaf with the tensor's values; the tensor itself if it needs no gradient."""
        if not tensor.requires_grad:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._cuts.append((tensor, leaf))
        return leaf

    def backward(self) -> None:
        """Run the gradients of the leaves through the rest of the graph, once."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self._cuts if leaf.grad is not None]
        self._cuts.clear()
        if reached:
            tensors, gradients = zip(*reached, strict=True)
            torch.autograd.backward(tensors, gradients)
