"""What is launched: one description of a kernel call, for running it and for compiling it alone.

The functions that prepare an operation give `Launch`es; on a GPU (or in Triton's interpreter) they
are run, and the checks without a GPU compile exactly the same ones for every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tile_table import PACKAGED, best, packaged_lines, users_lines, users_table

# Sizes that `trying` asked for, by kernel; None outside of it.
_tried: Mapping[str, Mapping[str, int]] | None = None


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


def tile(
    kernel: str, *, window: int | None, head_width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, int]:
    """Read the tile sizes of one kernel.

    On a GPU, a line that fits in the user's table (`tile_table.users_table`) goes before the
    package's own. Among the lines of a table the most exact one wins, where a line that leaves out
    a key fits every value of it: architecture first, then Triton's version, window, head width and
    dtype. A process reads a table once.

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
        ValueError: if the user's table is broken, with its name and line.
    """
    if _tried is not None and kernel in _tried:
        return dict(_tried[kernel])
    # Every line of a user's table is some chip's: off the GPU there is nothing to read.
    users = users_table() if device.type == "cuda" and _tried is None else None
    return dict(_lookup(kernel, architecture(device), window, head_width, dtype, users))


@cache
def _lookup(
    kernel: str,
    chip: str,
    window: int | None,
    head_width: int,
    dtype: torch.dtype,
    users: Path | None,
) -> dict[str, int]:
    wanted = {
        "architecture": chip,
        "triton": triton_minor(),
        "window": window,
        "head_width": head_width,
        "dtype": str(dtype).removeprefix("torch."),
    }
    line = best(users_lines(users), kernel, wanted) if users is not None else None
    line = line or best(packaged_lines(), kernel, wanted)
    if line is None:
        raise LookupError(f"{PACKAGED.name}: no tile sizes for {kernel!r} with {wanted}")
    return line["tile"]


def describe_tables(device: torch.device) -> str:
    """Say which table's tile sizes are used on a device.

    Raises:
        ValueError: if the user's table is broken, with its name and line.
    """
    table = users_table()
    if not table.is_file():
        return "the package's table; `fiber tune` makes one for a GPU"
    lines, chip = users_lines(table), architecture(device)
    own = [
        line for line in lines if (line["architecture"], line["triton"]) == (chip, triton_minor())
    ]
    if device.type != "cuda" or not own:
        return f"the package's table; none of the {len(lines)} lines in {table} is for this machine"
    return f"{len(own)} lines in {table}, the package's table for other calls"


@contextmanager
def trying(sizes: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """Give these sizes, by kernel, and the package's own for other kernels: to make a table."""
    global _tried
    before, _tried = _tried, sizes
    try:
        yield
    finally:
        _tried = before


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
