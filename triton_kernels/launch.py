"""What is launched: one description of a kernel call, for running it and for compiling it alone.

The functions that prepare an operation give `Launch`es; on a GPU (or in Triton's interpreter) they
are run, and the checks without a GPU compile exactly the same ones for every architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Tile sizes that come with the package; see `tile`.
TABLE = Path(__file__).with_name("tiles.json")


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
        """Start the kernel on the current stream; nothing is started for an empty grid."""
        if 0 in self.grid:
            return
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            # Triton's default changes in 3.10; the sums here are tested with fused multiply-adds.
            enable_fp_fusion=True,
        )


def tile(
    kernel: str, *, window: int | None, head_width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Read the tile sizes of one kernel.

    The most exact line of the table wins, where a line that leaves out a key fits every value of
    it: architecture first, then Triton's version, window, head width and dtype.

    Args:
        kernel: name of the kernel's line in the table.
        window: side of a window in tokens; None for a kernel without windows.
        head_width: d.
        dtype: of the queries.
        device: where it runs; another than CUDA (the interpreter, shapes alone) has no
            architecture.

    Returns:
        Sizes by name, with `num_warps` and `num_stages`.

    Raises:
        LookupError: if no line fits, which a test rules out for every kernel of the package.
    """
    wanted = {
        "architecture": architecture(device),
        "triton": triton_minor(),
        "window": window,
        "head_width": head_width,
        "dtype": str(dtype).removeprefix("torch."),
    }
    best, best_rank = None, (-1,) * len(wanted)
    for line in _lines(TABLE):
        if line["kernel"] != kernel:
            continue
        if any(key in line and line[key] != value for key, value in wanted.items()):
            continue
        rank = tuple(int(key in line) for key in wanted)
        if rank > best_rank:
            best, best_rank = line, rank
    if best is None:
        raise LookupError(f"{TABLE.name}: no tile sizes for {kernel!r} with {wanted}")
    return dict(best["tile"])


@cache
def _lines(table: Path) -> list[dict[str, Any]]:
    return json.loads(table.read_text(encoding="utf-8"))


def architecture(device: torch.device) -> str:
    """Name the chip as compilers do: "sm_90", "gfx942"; "none" off the GPU."""
    if device.type != "cuda":
        return "none"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def triton_minor() -> str:
    """Triton's version up to its second number, such as "3.9"; "none" where it is not installed."""
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "none"
