"""Dropout, whose random numbers may belong to samples instead of to the rank.

By default, layers draw from the generator of their device, as in PyTorch: what a sample gets
depends on its place in the batch. Within `by_row`, a random number depends only on the key, the
sample, the layer and the place in the sample, so that any split of a batch over ranks and passes
draws the same. Attention weights are then computed as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BITS = 24


@dataclass
class _Rows:
    """Samples of the batch that is being computed."""

    #: Hash of the key.
    key: int
    #: (B,) int64 number of each sample.
    rows: Tensor
    #: Order of n B rows: the n of a sample one after the other, or the whole batch n times.
    is_repeated: bool
    #: Draws so far. All samples pass through the same layers.
    draws: int = 0


#: For the whole process: the backward pass may compute layers again in another thread.
_active: _Rows | None = None


@contextmanager
def by_row(key: Sequence[int], rows: Tensor, *, is_repeated: bool = False) -> Iterator[None]:
    """Draw by sample within this context.

    Args:
        key: non-negative integers, such as seed, step and the place of the context in a step. The
            same key gives the same numbers.
        rows: (B,) int64, what numbers the samples of a batch. Layers may get n B rows: the n rows
            of a sample one after the other, or, if `is_repeated`, the batch n times.
        is_repeated: see `rows`.
    """
    hashed = 0
    for word in key:
        hashed = _mix_number(hashed ^ _mix_number(word))
    with _Entered(_Rows(hashed, rows, is_repeated)):
        yield


def is_by_row() -> bool:
    """Return whether this is within `by_row`."""
    return _active is not None


@contextmanager
def of_rows(indices: Tensor) -> Iterator[None]:
    """Compute layers on some of the samples; what they draw does not depend on the others.

    Within `by_row`, the order of layers of these samples starts at the same place for each choice
    of `indices`; otherwise this does nothing.
    """
    if _active is None:
        yield
        return
    with _Entered(replace(_active, rows=_active.rows[indices])):
        yield


def checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, and compute it again in the backward pass, where it draws the same numbers.

    See `torch.utils.checkpoint.checkpoint`, which keeps the state of the generators.
    """
    if _active is None:
        return checkpoint(function, *arguments, use_reentrant=False)
    # As of now, since later layers draw, too.
    rows = replace(_active)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _Entered(rows)

    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def dropout(inputs: Tensor, p: float, *, training: bool = True) -> Tensor:
    """Zero elements with probability `p`, and divide the others by 1 - p."""
    if not training or p == 0.0 or _active is None:
        return F.dropout(inputs, p, training)
    return inputs * keeps(inputs.shape, p, inputs.device) / (1 - p)


class SampleDropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the name in PyTorch
        """Apply `dropout` in training."""
        return dropout(input, self.p, training=self.training)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with dropout of the weights.

    Args:
        query: (B, h, Q, d).
        key: (B, h, K, d).
        value: (B, h, K, d).
        mask: bool, broadcasts to (B, h, Q, K); True = attend. None attends to all keys.
        dropout_p: probability of dropping a weight.

    Returns:
        (B, h, Q, d).
    """
    if dropout_p == 0.0 or _active is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p
        )
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return dropout(weights, dropout_p).to(value.dtype) @ value


def keeps(shape: Sequence[int], p: float, device: torch.device | str) -> Tensor:
    """Draw a bool tensor that is False with probability `p`; the first dimension is rows."""
    if _active is None:
        return torch.rand(*shape, device=device) >= p
    state = _row_states(_active, shape[0]).to(device)
    _active.draws += 1
    for size in shape[1:]:
        positions = torch.arange(size, device=device)
        state = _mix(state[..., None] ^ _mix(positions))
    return (state >> (63 - _BITS)) & ((1 << _BITS) - 1) >= round(p * (1 << _BITS))


def _row_states(rows: _Rows, count: int) -> Tensor:
    """Return (count,) hashes of key, layer and row."""
    batch = len(rows.rows)
    copies = count // batch if batch else 0
    if count != copies * batch:
        raise ValueError(f"a layer has {count} rows; expected a multiple of {batch} samples")
    layer = _mix_number(rows.key ^ _mix_number(rows.draws))
    state = _mix(_mix(rows.rows) ^ layer)
    copy = _mix(torch.arange(copies, device=state.device))
    if rows.is_repeated:
        return _mix(state ^ copy[:, None]).flatten()
    return _mix(state[:, None] ^ copy).flatten()


class _Entered:
    """Context manager that makes a copy of rows the active ones; it can be entered again."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._before: _Rows | None = None

    def __enter__(self) -> None:
        global _active
        self._before, _active = _active, replace(self._rows)

    def __exit__(self, *error: object) -> None:
        global _active
        _active = self._before


def _mix(state: Tensor) -> Tensor:
    """Finalizer of SplitMix64 (Steele et al. 2014), modulo 2**64."""
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _mix_number(number: int) -> int:
    return int(_mix(torch.tensor(number)))


def _shifted(state: Tensor, bits: int) -> Tensor:
    # int64 has an arithmetic shift.
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
