"""Descriptions of kernel launches.

`plan_*` functions return `Launch` objects, which run on a GPU or in Triton's interpreter. Tests
without a GPU only compile them, for every supported architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """A Triton kernel launch."""

    #: Function decorated with `triton.jit`.
    kernel: Any
    #: Number of programs along each axis (up to three).
    grid: tuple[int, ...]
    #: Tensors and numbers by parameter name; None for an omitted tensor.
    arguments: Mapping[str, Tensor | int | float | None]
    #: Compile-time constants by parameter name.
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Launch on the current stream of the tensors' device; no-op if the grid is empty."""
        if 0 in self.grid:
            return
        device = next(each.device for each in self.arguments.values() if isinstance(each, Tensor))
        # Triton launches on the current device, which may be a different one.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                # Triton's default changes in 3.10, but tests assume fused multiply-adds.
                enable_fp_fusion=True,
            )


def run_plan(plan: tuple[Iterable[Launch], T]) -> T:
    """Run the launches of a plan and return its results."""
    launches, results = plan
    for each in launches:
        each.run()
    return results
