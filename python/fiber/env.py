"""Describe the machine and software versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import fiber


def describe_machine() -> dict[str, str]:
    """Return the CPU model, torch's CPU settings, and the software versions."""
    import torch

    origin = provenance()
    return {
        "processor": _processor(),
        "cores": str(usable_cores()),
        # Both affect the order of summation, and thus the last bits of results.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "fiber": origin["fiber_version"],
        "commit": origin["commit"] or "not run from a clone",
    }


def usable_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_process() -> int:
    """Share the usable cores among the processes that torchrun started on this machine.

    Raises:
        ValueError: if LOCAL_WORLD_SIZE is not a positive integer.
    """
    processes = os.environ.get("LOCAL_WORLD_SIZE") or "1"
    if not processes.isdecimal() or int(processes) < 1:
        raise ValueError(f"LOCAL_WORLD_SIZE is {processes!r}; expected a positive integer")
    return max(1, usable_cores() // int(processes))


def _processor() -> str:
    """Read the CPU model from /proc/cpuinfo, falling back to `platform`."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance() -> dict[str, str]:
    """Return fiber's version, and its commit if it runs from a Git clone."""
    root = Path(__file__).parents[2]
    # If installed inside another repository, do not report that repository's commit.
    is_clone = (root / "rust").is_dir() and (root / "python" / "fiber").exists()
    commit = ""
    if is_clone and shutil.which("git"):
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = answer.stdout.strip() if answer.returncode == 0 else ""
    return {"fiber_version": fiber.__version__, "commit": commit}
