"""Scratch memory for the PyTorch backend on CPUs, reused between calls.

Page faults in newly allocated memory of this size take as long as the matrix products written to
it. Each thread has its own block.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Maximum size of a thread's block in bytes; tensors that do not fit are allocated as usual.
KEPT_BYTES = 32_000_000
#: Tensor alignment in bytes: one cache line.
ALIGNMENT = 64

_of_thread = threading.local()


class Scratch:
    """Bump allocator for uninitialized tensors in this thread's block.

    A new `Scratch` starts at the beginning of the block and invalidates tensors from earlier ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._kept = device.type == "cpu"
        self._device = device
        self._used = 0

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate an uninitialized tensor, valid until the end of the operation."""
        size = math.prod(shape) * dtype.itemsize
        first = self._used
        last = first + size
        if not self._kept or last > KEPT_BYTES:
            return torch.empty(shape, dtype=dtype, device=self._device)
        self._used = -(-last // ALIGNMENT) * ALIGNMENT
        return _block(last)[first:last].view(dtype).view(shape)

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert a tensor to a dtype; return it unchanged if it already has that dtype."""
        if tensor.dtype == dtype:
            return tensor
        return self.empty(*tensor.shape, dtype=dtype).copy_(tensor)

    @contextmanager
    def borrow(self) -> Iterator[None]:
        """Context manager that frees the tensors allocated inside it on exit."""
        used = self._used
        yield
        self._used = used


@torch.inference_mode(False)
def _block(size: int) -> Tensor:
    """Return this thread's block, of at least `size` bytes."""
    block: Tensor | None = getattr(_of_thread, "block", None)
    if block is None or len(block) < size:
        # Tensors in use keep the previous block alive.
        block = torch.empty(size, dtype=torch.uint8, device="cpu")
        _of_thread.block = block
    return block
