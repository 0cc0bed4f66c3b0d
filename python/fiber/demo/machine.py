"""What the demo ran on, for its page and beside its recorded numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from fiber.checkpoints.provenance import provenance


def describe_machine() -> dict[str, str]:
    """Name the processor, what torch makes of it, and the versions that matter."""
    own = provenance()
    return {
        "processor": _processor(),
        "cores": str(usable_cores()),
        # Both decide in which order sums are taken, and so the last bits of every number.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "fiber": own["fiber_version"],
        "commit": own["commit"] or "not run from a clone",
    }


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name as Linux knows it, else what Python knows."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
