"""Comparing groups of tensors and numbers, and the table that says how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Group:
    """Recorded things of one kind, and how far ours are from them."""

    name: str
    tolerance: float
    count: int = 0
    worst: float = 0.0
    worst_name: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, error: float) -> None:
        """Count one comparison; an error that is no number fails."""
        self.count += 1
        if not error <= self.worst:
            self.worst, self.worst_name = error, name
        if not error <= self.tolerance:
            self.failures.append(f"{name}: error {error:.2e}, tolerance {self.tolerance:.0e}")


class Comparison:
    """All groups of one case."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.groups: dict[str, Group] = {}
        #: Recorded names that something was compared with.
        self.compared: set[str] = set()
        #: Recorded names that nothing was compared with, and that should have been.
        self.not_compared: list[str] = []
        #: Recorded names that nothing can be compared with, each with the reason.
        self.set_aside: dict[str, str] = {}

    def group(self, name: str, tolerance: float) -> Group:
        """The group of that name, made when first asked for."""
        return self.groups.setdefault(name, Group(name, tolerance))

    def tensor(
        self, group: str, name: str, ours: Tensor, recorded: Tensor, tolerance: float, absmax: float
    ) -> None:
        """Compare, the error relative to max(1, the recorded tensor's absolute maximum)."""
        self.compared.add(name)
        if ours.shape != recorded.shape:
            self.group(group, tolerance).add(
                f"{name} {tuple(ours.shape)}, recorded {tuple(recorded.shape)}", float("nan")
            )
            return
        if recorded.dtype.is_floating_point:
            difference = (ours.detach().double() - recorded.double()).abs().max().item()
            self.group(group, tolerance).add(name, difference / max(1.0, absmax))
        else:
            wrong = (ours.to(recorded.dtype) != recorded).sum().item()
            self.group(f"{group} (integers)", 0.0).add(name, float(wrong))

    def values(
        self, group: str, name: str, ours: Tensor, recorded: Tensor, tolerance: float
    ) -> None:
        """Compare, the error relative to the recorded tensor's absolute maximum, however small."""
        largest = recorded.abs().max().item() if recorded.numel() else 1.0
        self.tensor(group, name, ours / (largest or 1.0), recorded / (largest or 1.0), tolerance, 1)

    def number(self, group: str, name: str, ours: float, recorded: float, tolerance: float) -> None:
        """Compare two numbers, the error relative to the recorded one."""
        self.compared.add(name)
        error = abs(ours - recorded) / max(abs(recorded), torch.finfo(torch.float32).tiny)
        self.group(group, tolerance).add(name, error)

    @property
    def ok(self) -> bool:
        """Whether everything was compared and agrees; nothing compared is no agreement."""
        agrees = not any(group.failures for group in self.groups.values())
        return bool(self.groups) and agrees and not self.not_compared

    def __str__(self) -> str:
        lines = [f"{self.case:<34} {'count':>5}  {'worst':>8}  {'allowed':>8}"]
        for group in self.groups.values():
            verdict = "ok" if not group.failures else "FAILED"
            lines.append(
                f"  {group.name:<32} {group.count:>5}  {group.worst:8.1e}  {group.tolerance:8.0e}"
                f"  {verdict}"
            )
            lines += [f"    {failure}" for failure in group.failures[:5]]
        if self.not_compared:
            lines.append(f"  NOT COMPARED: {len(self.not_compared)}")
            lines += [f"    {name}" for name in self.not_compared]
        lines += [f"  not compared: {name}: {why}" for name, why in self.set_aside.items()]
        return "\n".join(lines)


class Reading:
    """A recorded entry of a JSON file, whose parts count as compared once they are read."""

    def __init__(self, comparison: Comparison, name: str, content: Any) -> None:
        self.comparison = comparison
        self.name = name
        self.content = content

    def __getitem__(self, key: str) -> Any:
        """A part of the entry."""
        self.comparison.compared.add(f"{self.name}.{key}")
        return self.content[key]

    def unread(self, notes: tuple[str, ...]) -> list[str]:
        """Full names of the parts that were not read, notes aside."""
        names = (f"{self.name}.{key}" for key in self.content if key not in notes)
        return [name for name in names if name not in self.comparison.compared]
