"""Conversion of tensors to arguments of the Rust attention functions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def refusal(tensor: Tensor) -> str | None:
    """Return why a tensor is not supported, or None if it is."""
    if tensor.device.type != "cpu":
        return f"the tensor is on {tensor.device.type}, not on the CPU"
    if tensor.dtype != torch.float32:
        return f"dtype {tensor.dtype} is not float32"
    return None


def array(tensor: Tensor) -> np.ndarray:
    """Return an input as a contiguous float32 array, copying only if necessary.

    `Tensor.numpy` marks the storage as not resizable, and FSDP2 resizes the storage of parameters;
    DLPack leaves it as it is. Before NumPy 2.1, arrays from DLPack are read-only.
    """
    return np.from_dlpack(tensor.detach().float().contiguous())


def output_array(tensor: Tensor) -> np.ndarray:
    """Return a contiguous float32 tensor as an array to write to."""
    return tensor.numpy()


def empty_like(tensor: Tensor) -> Tensor:
    """Allocate a contiguous float32 tensor of the same shape."""
    return torch.empty_like(tensor, dtype=torch.float32, memory_format=torch.contiguous_format)
