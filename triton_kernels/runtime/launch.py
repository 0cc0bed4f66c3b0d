"""What is launched: one description of a kernel call, for running it and for compiling it alone.

The functions that prepare an operation give `Launch`es; on a GPU (or in Triton's interpreter) they
are run, and the checks without a GPU compile exactly the same ones for every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One call of one Triton kernel."""

    #: A function under `triton.jit`.
    kernel: Any
    #: Programs along each of up to three axes.
    grid: tuple[int, ...]
    #: Tensors and numbers by the kernel's parameter names; None for an absent tensor.
    arguments: Mapping[str, Tensor | int | float | None]
    #: Compile-time values by the kernel's parameter names.
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Start the kernel on the current stream of the tensors' own device.

        Nothing is started for an empty grid.
        """
        if 0 in self.grid:
            return
        device = next(each.device for each in self.arguments.values() if isinstance(each, Tensor))
        # Triton starts on the current device, which need not be that of the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                # Triton's default changes in 3.10; sums here are tested with fused multiply-adds.
                enable_fp_fusion=True,
            )
