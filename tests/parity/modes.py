"""What a mode of a case without recordings gave: shapes, and whether all numbers are finite."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]


@dataclass
class Mode:
    """What one mode gave."""

    name: str
    #: Tensors that were looked at.
    count: int = 0
    #: Their largest absolute value, numbers of tokens aside.
    largest: float = 0.0
    #: Shapes by name, of tensors that a case records.
    shapes: dict[str, Shape] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: Largest memory of the process so far.
    peak_bytes: int = 0

    def add(self, found: dict[str, Tensor], expected: dict[str, Shape]) -> None:
        """Look at every tensor that is expected; others are none that a case records."""
        for name, shape in expected.items():
            self.count += 1
            if name not in found:
                self.faults.append(f"{name} is missing")
            elif tuple(found[name].shape) != shape:
                self.faults.append(f"{name} has shape {tuple(found[name].shape)}, expected {shape}")
            else:
                value = found[name].detach()
                largest = value.abs().max().item() if value.numel() else 0.0
                if not largest < float("inf"):
                    self.faults.append(f"{name} is not finite")
                if found[name].is_floating_point():
                    self.largest = max(self.largest, largest)

    def __str__(self) -> str:
        verdict = "FAILED" if self.faults else "ok"
        lines = [
            f"  {self.name:<22} {self.count:>5}  {self.largest:8.1e}  {self.seconds:7.1f}"
            f"  {self.peak_bytes / 1e9:7.2f}  {verdict}"
        ]
        lines += [f"    {fault}" for fault in self.faults[:5]]
        if len(self.faults) > 5:
            lines.append(f"    and {len(self.faults) - 5} more")
        lines += [f"      {line}" for line in shape_lines(self.shapes)]
        return "\n".join(lines)


def shape_lines(shapes: dict[str, Shape]) -> Iterator[str]:
    """Every shape once, with the names that have it."""
    by_shape: dict[Shape, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    for shape, names in by_shape.items():
        size = " x ".join(map(str, shape)) or "one number"
        if len(names) > 4:
            names = [names[0], f"{len(names) - 2} more", names[-1]]
        yield f"{size:<16} {', '.join(names)}"


def peak_bytes() -> int:
    """Largest memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else 1024 * peak
