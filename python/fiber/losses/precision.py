"""The type that losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """Take half precision to float32; a model in double precision keeps its own."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
