"""Reference gated residual for tests, computed from its definition."""

from __future__ import annotations

from torch import Tensor


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Compute the gated residual with an explicit product and sum; see `op.gated_residual`."""
    return x + gate * ((y[..., None, :] * weight).sum(-1) + bias)
