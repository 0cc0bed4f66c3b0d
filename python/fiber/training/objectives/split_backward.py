"""Split the backward pass to free each branch's activations before the next branch runs.

Branches are losses computed from shared tensors (the prefixes of the two encoders). With a single
graph, the activations of all branches are alive at once. Here, the shared tensors are detached:
each branch's backward pass stops at them and accumulates their gradients, and one final backward
pass covers the rest of the graph. Peak memory is that of the largest branch.

    split = SplitGraph()
    for losses in step.branches(task, batch, draw, split):
        sum(losses.values()).backward()
    split.backward()

Since `branches` is a generator, every `backward` call stays in the training loop, where readers,
profilers and wrappers (gradient scaling, reduction between branches) expect it, and
`TrainStep.forward` remains an ordinary forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SplitGraph:
    """Tensors shared by several losses, detached from the graph that computed them."""

    def __init__(self, *, is_split: bool = True) -> None:
        """If `is_split` is False, keep a single graph: `cut` returns its argument."""
        self._is_split = is_split
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a new leaf, or unchanged if it does not require grad."""
        if not self._is_split or not tensor.requires_grad:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._cuts.append((tensor, leaf))
        return leaf

    def source(self, tensor: Tensor) -> Tensor:
        """Return the tensor of which `cut` returned a leaf, or the argument if it is none.

        A tensor that several parts share can be computed from it and then cut, too: one backward
        pass covers both.
        """
        return next((source for source, leaf in self._cuts if leaf is tensor), tensor)

    @property
    def is_cut(self) -> bool:
        """True if a tensor was detached."""
        return bool(self._cuts)

    @property
    def is_reached(self) -> bool:
        """True if a backward pass reached a detached tensor, so that `backward` runs."""
        return any(leaf.grad is not None for _, leaf in self._cuts)

    def backward(self) -> None:
        """Backpropagate the leaves' gradients through the rest of the graph."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self._cuts if leaf.grad is not None]
        self._cuts.clear()
        if reached:
            tensors, gradients = zip(*reached, strict=True)
            torch.autograd.backward(tensors, gradients)
