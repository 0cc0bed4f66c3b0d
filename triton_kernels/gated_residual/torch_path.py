"""Gated residual in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Apply the gate to the weight, which has fewer elements than the projected tensor."""
    return x + F.linear(y, gate * weight, gate * bias)
