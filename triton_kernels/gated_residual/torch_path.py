"""Gated residual in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Compute the gated residual.

    The gate multiplies the weight, which has fewer elements than the output of the projection.
    """
    return x + F.linear(y, gate * weight, gate * bias)
