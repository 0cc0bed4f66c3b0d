"""Memory that plain PyTorch on a CPU computes in, kept from call to call.

Fresh memory of this size comes from the operating system page by page, which takes as long as a
product that is written to it. Each thread has a block of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Most bytes that a thread keeps; what goes beyond them is allocated anew each time.
KEPT_BYTES = 32_000_000
#: Where a tensor may begin, in bytes: a line of the cache.
ALIGNMENT = 64

_of_thread = threading.local()


class Scratch:
    """Uninitialised tensors, one behind another in the memory of this thread.

    A new one begins at the start: what a former one gave is lost.
    """

    def __init__(self, device: torch.device) -> None:
        self._kept = device.type == "cpu"
        self._device = device
        self._used = 0

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Give an uninitialised tensor; it must not outlive the call of the operation."""
        size = math.prod(shape) * dtype.itemsize
        first = self._used
        last = first + size
        if not self._kept or last > KEPT_BYTES:
            return torch.empty(shape, dtype=dtype, device=self._device)
        self._used = -(-last // ALIGNMENT) * ALIGNMENT
        return _block(last)[first:last].view(dtype).view(shape)

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Give a tensor in another dtype; itself where it has that."""
        if tensor.dtype == dtype:
            return tensor
        return self.empty(*tensor.shape, dtype=dtype).copy_(tensor)

    @contextmanager
    def borrow(self) -> Iterator[None]:
        """Give back at the end of a `with` block what was taken in it."""
        used = self._used
        yield
        self._used = used


@torch.inference_mode(False)
def _block(size: int) -> Tensor:
    """Bytes of this thread, at least so many."""
    block: Tensor | None = getattr(_of_thread, "block", None)
    if block is None or len(block) < size:
        # Tensors that are in use hold the former block until they go.
        block = torch.empty(size, dtype=torch.uint8, device="cpu")
        _of_thread.block = block
    return block
