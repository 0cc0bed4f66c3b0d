"""Whether a CPU's memory can hold a run at all: the system kills what it cannot, without a word."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from fiber.models.build import build_model
from fiber.training.config.run import RunConfig
from fiber.training.distributed import Processes
from fiber.training.optim import freeze

#: Bytes of a trained parameter: weight, gradient and AdamW's two moments, in float32.
TRAINED_BYTES = 16
#: Bytes of a parameter that is not trained.
FROZEN_BYTES = 4
#: Part of the free memory from which on activations may not fit beside a run's parameters.
WARN_FROM = 0.5

_GIB = 2**30


def check_memory(config: RunConfig, processes: Processes, root: Path = Path("/")) -> None:
    """Compare what a run needs at least with the memory that is free; on a GPU do nothing.

    Call it before the model is built. Activations are not estimated and come on top, as does a
    moving average; other processes of the same run are not counted.

    Args:
        config: of the run.
        processes: where it trains; the first warns.
        root: of the file system that tells what is free.

    Raises:
        MemoryError: if the parameters alone need more than is free, with both numbers.
    """
    free = free_bytes(root) if processes.device.type == "cpu" else None
    if free is None:
        return
    parameters, needed = needed_bytes(config)
    numbers = (
        f"{parameters / 1e6:.1f} million parameters need {needed / _GIB:.2f} GiB (weights,"
        f" gradients, two moments of AdamW) and {free / _GIB:.2f} GiB of memory are free"
    )
    lower = (
        "train.gradient_checkpointing=true, a larger train.accumulation (fewer samples a pass) or a"
        " smaller data.batch_size"
    )
    if needed > free:
        raise MemoryError(
            f"{numbers}; train on a GPU, or a smaller model (recipes of the preset small, such as"
            f" scenes_coarse). Activations come on top: {lower} lowers those alone"
        )
    if needed > WARN_FROM * free and processes.is_first:
        warnings.warn(
            f"{numbers}. Activations come on top and may not fit; if the run is killed, take"
            f" {lower}, a smaller model (recipes of the preset small, such as scenes_coarse) or a"
            " GPU",
            RuntimeWarning,
            stacklevel=2,
        )


def needed_bytes(config: RunConfig) -> tuple[int, int]:
    """Count a run's parameters, and the bytes that training keeps of them.

    Returns:
        Parameters, and bytes: `TRAINED_BYTES` or `FROZEN_BYTES` of each.
    """
    with torch.device("meta"):
        model = build_model(config.model)
    freeze(model, config.optim.frozen)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    count = sum(p.numel() for p in parameters)
    return count, TRAINED_BYTES * trained + FROZEN_BYTES * (count - trained)


def free_bytes(root: Path = Path("/")) -> int | None:
    """Read how much memory a process may still take; None where Linux does not tell.

    The least of MemAvailable and of what the process's control groups (version 2, or 1) still
    allow: their limits without the memory that is no cache of files.

    Args:
        root: of the file system, with proc and sys.
    """
    found = [*_available(root), *_allowed(root)]
    return min(found) if found else None


def _available(root: Path) -> Iterator[int]:
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if match:
        yield 1024 * int(match[1])


def _allowed(root: Path) -> Iterator[int]:
    """Yield what each control group above the process still allows."""
    groups = root / "sys/fs/cgroup"
    # Lines are "0::/path", and "4:memory:/path" in version 1.
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit_file, used_key = groups, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            top, limit_file, used_key = groups / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for part in (own, *own.parents):
            # "max" is no limit.
            limit = _text(top / part / limit_file).strip()
            if limit.isdigit():
                stat = _text(top / part / "memory.stat")
                used = re.search(rf"^{used_key} (\d+)$", stat, re.MULTILINE)
                yield max(0, int(limit) - (int(used[1]) if used else 0))


def _text(path: Path) -> str:
    """Read a file of the system; "" where there is none, or it may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
