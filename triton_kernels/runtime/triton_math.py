"""Arithmetic shared by the Triton kernels of all operations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype of scores and sums: float64 for float64 inputs, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def dot(a, b, ACCUMULATOR: tl.constexpr, total=None):
    """Compute a @ b + total, without TF32."""
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=ACCUMULATOR)
