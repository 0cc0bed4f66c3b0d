"""The extension's attention on a CPU: what it takes, and tensors as it sees them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Head widths must be a multiple of this: of the numbers of the widest register.
WIDTH_MULTIPLE = 16


def refusal(tensor: Tensor, head_width: int) -> str | None:
    """Say why a tensor is not taken; None if it is."""
    if tensor.device.type != "cpu":
        return f"the tensor is on {tensor.device.type}, not on a CPU"
    if tensor.dtype != torch.float32:
        return f"dtype {tensor.dtype} is not float32"
    if head_width % WIDTH_MULTIPLE:
        return f"head width {head_width} is no multiple of {WIDTH_MULTIPLE}"
    return None


def array(tensor: Tensor) -> np.ndarray:
    """Give the memory of a float32 tensor, copied only where it is not contiguous."""
    tensor = tensor.detach()
    if tensor.dtype != torch.float32:
        tensor = tensor.float()
    return tensor.contiguous().numpy()


def empty_like(tensor: Tensor) -> Tensor:
    """Give a contiguous float32 tensor of the same shape."""
    return torch.empty_like(tensor, dtype=torch.float32, memory_format=torch.contiguous_format)
