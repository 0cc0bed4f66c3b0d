"""Functions of tensors with the names and arguments of those of `numpy_functions`.

`like` is a tensor that decides about the device, and in `array` and `zeros` about the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

sigmoid = torch.sigmoid
sqrt = torch.sqrt
exp = torch.exp
minimum = torch.minimum
maximum = torch.maximum
where = torch.where
concat = torch.cat
stack = torch.stack
broadcast_to = torch.broadcast_to
searchsorted = torch.searchsorted
einsum = torch.einsum


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context without autocast."""
    return torch.autocast(like.device.type, enabled=False)


def without_gradients() -> torch.no_grad:
    """Return a context without gradients."""
    return torch.no_grad()


def for_module(array: Tensor, module: nn.Module) -> Tensor:
    """Convert to the dtype of a module's weights."""
    return array.to(next(module.parameters()).dtype)


def log_softmax(array: Tensor) -> Tensor:
    """Compute the logarithm of the softmax over the last axis."""
    return array.log_softmax(-1)


def softmax(array: Tensor) -> Tensor:
    """Compute the softmax over the last axis."""
    return array.softmax(-1)


def clip(array: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    """Limit values to a range."""
    return array.clamp(min=least, max=most)


def smallest(array: Tensor, axis: int) -> Tensor:
    """Return the minima along an axis."""
    return array.amin(axis)


def best(array: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the maxima along an axis and their indices, of equal ones the first."""
    return array.max(axis)


def unique(array: Tensor) -> Tensor:
    """Return the distinct values in order."""
    return array.unique()


def largest(array: Tensor, axis: int) -> Tensor:
    """Return the maxima along an axis."""
    return array.amax(axis)


def topk(array: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values along the last axis, largest first, and their indices."""
    return array.topk(count)


def argsort(array: Tensor, *, descending: bool = False) -> Tensor:
    """Return the indices that sort stably along the last axis."""
    return array.argsort(descending=descending, stable=True)


def take(array: Tensor, indices: Tensor) -> Tensor:
    """Select along the first axis."""
    return array.index_select(0, indices)


def take_along(array: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Select along an axis by indices that have as many axes as the array."""
    return array.take_along_dim(indices, axis)


def array(values: Any, like: Tensor) -> Tensor:
    """Make an array of the dtype of `like` from numbers."""
    return like.new_tensor(values)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Make an array of zeros of the dtype of `like`."""
    return like.new_zeros(tuple(shape))


def arange(count: int, like: Tensor) -> Tensor:
    """Make an int64 array of 0, 1, ..., `count` - 1."""
    return torch.arange(count, device=like.device)


def moved(values: np.ndarray | Tensor, like: Tensor) -> Tensor:
    """Return values of numpy, or of a tensor, as a tensor on the device of `like`."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.to(like.device)


def indices(values: Sequence[int], like: Tensor) -> Tensor:
    """Make an int64 array from integers."""
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def float32(array: Tensor) -> Tensor:
    """Convert to float32."""
    return array.float()


def at_least_float32(array: Tensor) -> Tensor:
    """Convert to float32, unless it is float64."""
    return array if array.dtype == torch.float64 else array.float()


def cpu(array: Tensor) -> Tensor:
    """Move to the CPU."""
    return array.cpu()


def as_numpy(array: Tensor) -> np.ndarray:
    """Convert to an array of numpy."""
    return array.cpu().numpy()


def copy(array: Tensor) -> Tensor:
    """Copy an array."""
    return array.clone()


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack arrays that differ in the size of their first axis, padded with zeros."""
    return pad_sequence(list(rows), batch_first=True)
