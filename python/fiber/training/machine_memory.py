"""Fail early when a CPU run cannot fit in RAM, instead of being OOM-killed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path, PurePosixPath

from fiber.training.adapters import build_empty_trained
from fiber.training.config.run import RunConfig
from fiber.training.distributed.processes import Processes

#: Bytes per trained parameter: weight, gradient and AdamW's two moments, in float32.
TRAINED_BYTES = 16
#: Bytes per frozen parameter.
FROZEN_BYTES = 4
#: Fraction of free memory above which to warn that activations may not fit.
WARN_FRACTION = 0.5

_GIB = 2**30


def check_memory(config: RunConfig, processes: Processes, root: Path = Path("/")) -> None:
    """Check that a CPU run's parameters fit in free memory; warn if activations may not.

    The parameters are a lower bound: activations, the EMA and other ranks need more memory. Call
    this before building the model. Only rank 0 warns.

    Raises:
        MemoryError: if the parameters alone exceed the free memory; the message gives both sizes.
    """
    free = free_bytes(root) if processes.device.type == "cpu" else None
    if free is None:
        return
    parameters, needed = needed_bytes(config)
    numbers = (
        f"{parameters / 1e6:.1f} million parameters need {needed / _GIB:.2f} GiB (weights,"
        f" gradients, two AdamW moments), but {free / _GIB:.2f} GiB of memory is free"
    )
    savings = (
        "train.gradient_checkpointing=true, train.samples_per_pass (the same losses in several"
        " passes) or a smaller data.batch_size"
    )
    if needed > free:
        raise MemoryError(
            f"{numbers}; use a GPU or a smaller model (a recipe with preset small, such as"
            " scenes_coarse). Activations need additional memory, which you can reduce with"
            f" {savings}"
        )
    if needed > WARN_FRACTION * free and processes.is_first:
        warnings.warn(
            f"{numbers}. Activations need additional memory and may not fit; if the run is killed,"
            f" use {savings}, a smaller model (a recipe with preset small, such as scenes_coarse)"
            " or a GPU",
            RuntimeWarning,
            stacklevel=2,
        )


def needed_bytes(config: RunConfig) -> tuple[int, int]:
    """Return a run's parameter count, and the bytes of weights, gradients and optimizer state."""
    count, trained = count_parameters(config)
    return count, TRAINED_BYTES * trained + FROZEN_BYTES * (count - trained)


def count_parameters(config: RunConfig) -> tuple[int, int]:
    """Return the number of all parameters of a run's model, and of those that are trained."""
    model = build_empty_trained(config)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the number of bytes that the process can still allocate, or None if unknown.

    This is the minimum of MemAvailable and the memory left in the process's control groups (v1 and
    v2), read from /proc and /sys under `root`. Page cache does not count as used. psutil only reads
    MemAvailable, which inside a container is the host's value.
    """
    free = [1024 * int(n) for n in _find(root / "proc/meminfo", r"^MemAvailable:\s*(\d+) kB$")]
    own, groups = root / "proc/self/cgroup", root / "sys/fs/cgroup"
    for pattern, top, limit_file, used_key in (
        (r"^0::/?(.*)$", groups, "memory.max", "anon"),
        (
            r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:/?(.*)$",
            groups / "memory",
            "memory.limit_in_bytes",
            "total_rss",
        ),
    ):
        for path in map(PurePosixPath, _find(own, pattern)):
            for group in (path, *path.parents):
                # "max" (no limit) does not match.
                for limit in _find(top / group / limit_file, r"^(\d+)$"):
                    used = _find(top / group / "memory.stat", rf"^{used_key} (\d+)$")
                    free.append(max(0, int(limit) - sum(map(int, used))))
    return min(free, default=None)


def _find(path: Path, pattern: str) -> list[str]:
    """Return the captured group of each matching line, or [] if the file cannot be read."""
    try:
        return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return []
