"""Public gated residual function, in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..runtime.argument_checks import require, require_one_device
from ..runtime.dispatch import is_exporting
from . import torch_path


def gated_residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Add a gated linear projection: x + gate * (y @ weight.T + bias).

    Args:
        x: [..., C] residual stream.
        y: [..., D] input of the projection, with the same leading dimensions as x.
        weight: [C, D].
        bias: [C].
        gate: [1] learned scalar.

    Returns:
        [..., C].

    Raises:
        ValueError: if shapes or devices do not match; the message lists the shapes.
    """
    named = {"x": x, "y": y, "weight": weight, "bias": bias, "gate": gate}
    require(
        x.shape[:-1] == y.shape[:-1]
        and weight.shape == (x.shape[-1], y.shape[-1])
        and bias.shape == x.shape[-1:]
        and gate.shape == (1,),
        "x (..., C), y (..., D), weight (C, D), bias (C,), gate (1,)",
        named,
    )
    require_one_device(named)
    if is_exporting():
        # A plain product with the weight, which tools such as quantizers recognize.
        return x + gate * F.linear(y, weight, bias)
    return torch_path.gated_residual(x, y, weight, bias, gate)
