"""Bytes moved between memory and the chip, of launches and of everything that PyTorch runs.

A launch's bytes are those of its compiled kernel (`ttir`); an operation of PyTorch reads its inputs
and writes its outputs, views apart. No cache is assumed, but for the expanded bias: it is smaller
than any second cache and is read by every window, so that its elements count once in a launch and
what is read of it again stands apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiber.kernels.runtime.launch import Launch
from tests.kernels.compiled.compile import Chip, compile_launch
from tests.kernels.compiled.ttir import accesses

#: Parameters of our kernels that are the expanded bias or its gradient.
BIAS = frozenset({"bias", "grad_bias"})


@dataclass(frozen=True)
class LaunchBytes:
    """What a launch moves."""

    moved: int
    #: Bytes of the bias or its gradient beyond the first time.
    bias_again: int


def launch_bytes(launch: Launch, chip: Chip, loaded: int | None = None) -> LaunchBytes:
    """Count the bytes of one launch; see `ttir.accesses`."""
    moved: Counter[tuple[str, str]] = Counter()
    for access in accesses(compile_launch(launch, chip), loaded):
        moved[access.argument, access.kind] += access.moved_bytes
    again = 0
    for (argument, kind), count in moved.items():
        tensor = launch.arguments[argument]
        if argument in BIAS and isinstance(tensor, Tensor):
            # An atomic change reads and writes.
            once = tensor.numel() * tensor.element_size() * (2 if kind == "atomic" else 1)
            again += max(0, count - once)
    return LaunchBytes(moved.total() - again, again)


def sum_bytes(launches: Iterable[Launch], chip: Chip) -> LaunchBytes:
    """Count the bytes of several launches."""
    each = [launch_bytes(launch, chip) for launch in launches]
    return LaunchBytes(sum(one.moved for one in each), sum(one.bias_again for one in each))


#: Operations that only make room, or whose schema does not say that they are views.
_FREE = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
)
#: Operations that write without reading.
_WRITE_ONLY = frozenset(
    {"zero_", "fill_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full"}
)


class OperationBytes(TorchDispatchMode):
    """Counts the bytes of every operation of PyTorch in the block; meta tensors will do."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.operations = 0

    @property
    def moved(self) -> int:
        """Bytes of all operations."""
        return self.by_name.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        returned = [each.alias_info for each in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if is_view or name in _FREE:
            return out
        read = [] if name in _WRITE_ONLY else tree_leaves((args, kwargs))
        self.operations += 1
        self.by_name[name] += sum(
            _tensor_bytes(each) for each in [*read, *tree_leaves(out)] if isinstance(each, Tensor)
        )
        return out


def _tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor stands on: an expanded side is read once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(side for side, stride in sides if stride) * tensor.element_size()


class SavedBytes:
    """Counts what autograd keeps for the backward pass, each storage once."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = {each.untyped_storage()._cdata for each in parameters}
        self._kept: dict[int, Tensor] = {}

    def hooks(self) -> Any:
        """Give the context to run the forward pass in."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._parameters:
            # The tensor is held so that its storage's address is not given to another.
            self._kept[key] = tensor
        return tensor

    @property
    def total(self) -> int:
        """Bytes kept, parameters apart."""
        return sum(each.untyped_storage().nbytes() for each in self._kept.values())
