"""Functions of numpy arrays with the names and arguments of those of `torch_functions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

sqrt = np.sqrt
exp = np.exp
minimum = np.minimum
maximum = np.maximum
concat = np.concatenate
stack = np.stack
broadcast_to = np.broadcast_to
searchsorted = np.searchsorted


def sigmoid(array: np.ndarray) -> np.ndarray:
    """Compute the logistic function."""
    # Of negative numbers only: exp does not overflow.
    small = np.exp(-np.abs(array))
    return np.where(array >= 0, 1, small).astype(array.dtype) / (1 + small)


def full_precision(like: np.ndarray) -> AbstractContextManager[None]:
    """Return a context that changes nothing."""
    return nullcontext()


def without_gradients() -> AbstractContextManager[None]:
    """Return a context that changes nothing."""
    return nullcontext()


def for_module(array: np.ndarray, module: Any) -> np.ndarray:
    """Return the array; graphs compute in float32."""
    return array


def log_softmax(array: np.ndarray) -> np.ndarray:
    """Compute the logarithm of the softmax over the last axis."""
    array = array - array.max(-1, keepdims=True)
    return array - np.log(np.exp(array).sum(-1, keepdims=True))


def softmax(array: np.ndarray) -> np.ndarray:
    """Compute the softmax over the last axis."""
    powers = np.exp(array - array.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def where(condition: np.ndarray, chosen: Any, other: Any) -> np.ndarray:
    """Choose by a condition. A number takes the dtype of the array."""
    if not isinstance(other, np.ndarray):
        other = np.asarray(other, chosen.dtype)
    return np.where(condition, chosen, other)


def clip(array: np.ndarray, least: float | None = None, most: float | None = None) -> np.ndarray:
    """Limit values to a range."""
    return np.clip(array, least, most)


def smallest(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the minima along an axis."""
    return array.min(axis)


def best(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the maxima along an axis and their indices, of equal ones the first."""
    found = array.argmax(axis)
    return np.take_along_axis(array, np.expand_dims(found, axis), axis).squeeze(axis), found


def unique(array: np.ndarray) -> np.ndarray:
    """Return the distinct values in order."""
    return np.unique(array)


def einsum(equation: str, *arrays: np.ndarray) -> np.ndarray:
    """Sum products of arrays."""
    return np.einsum(equation, *arrays, optimize=True)


def largest(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the maxima along an axis."""
    return array.max(axis)


def topk(array: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest values along the last axis, largest first, and their indices."""
    size = array.shape[-1]
    if count > size:
        raise ValueError(f"topk: expected at most {size} values, got {count}")
    if 0 < count < size:
        some = np.argpartition(array, size - count, -1)[..., size - count :]
    else:
        some = np.broadcast_to(np.arange(count), (*array.shape[:-1], count))
    values = np.take_along_axis(array, some, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(some, order, -1)


def argsort(array: np.ndarray, *, descending: bool = False) -> np.ndarray:
    """Return the indices that sort stably along the last axis."""
    return np.argsort(-array if descending else array, axis=-1, kind="stable")


def take(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Select along the first axis."""
    return array[indices]


def take_along(array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    """Select along an axis by indices that have as many axes as the array."""
    return np.take_along_axis(array, indices, axis)


def array(values: Any, like: np.ndarray) -> np.ndarray:
    """Make an array of the dtype of `like` from numbers."""
    return np.asarray(values, like.dtype)


def zeros(shape: Sequence[int], like: np.ndarray) -> np.ndarray:
    """Make an array of zeros of the dtype of `like`."""
    return np.zeros(tuple(shape), like.dtype)


def arange(count: int, like: np.ndarray) -> np.ndarray:
    """Make an int64 array of 0, 1, ..., `count` - 1."""
    return np.arange(count)


def moved(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return the values; there is one device."""
    return values


def indices(values: Sequence[int], like: np.ndarray) -> np.ndarray:
    """Make an int64 array from integers."""
    return np.array(values, np.int64)


def float32(array: np.ndarray) -> np.ndarray:
    """Convert to float32."""
    return array.astype(np.float32, copy=False)


def at_least_float32(array: np.ndarray) -> np.ndarray:
    """Convert to float32, unless it is float64."""
    return array if array.dtype == np.float64 else float32(array)


def cpu(array: np.ndarray) -> np.ndarray:
    """Return the array; there is one device."""
    return array


def as_numpy(array: np.ndarray) -> np.ndarray:
    """Return the array."""
    return array


def copy(array: np.ndarray) -> np.ndarray:
    """Copy an array."""
    return array.copy()


def pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays that differ in the size of their first axis, padded with zeros."""
    longest = max(map(len, rows))
    padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded
