"""Learning rate of a step: warmup, schedules, and drops where the validation score stalls."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch

from fiber.training.config.run import OptimConfig

#: Minimum relative improvement that counts as better (PyTorch's default).
THRESHOLD = 1e-4


def lr_factor(step: int, steps: int, config: OptimConfig, scores: Sequence[float] = ()) -> float:
    """Return the learning rate of a step as a fraction of the peak.

    Warms up linearly from `warmup_start` (with 0, as in the published code, step 0 is a no-op),
    then decays according to `schedule`. "plateau" depends on the validation `scores` so far.
    """
    warmup = round(config.warmup_fraction * steps)
    rise = 1.0
    if step < warmup:
        rise = config.warmup_start + (1 - config.warmup_start) * step / warmup
    if config.schedule == "multistep":
        passed = bisect.bisect_right([milestone * steps for milestone in config.milestones], step)
        return rise * 0.1**passed
    if config.schedule == "plateau":
        return rise * 0.1 ** count_falls(scores, config.plateau_patience)
    return rise if step < warmup else max(0, steps - step) / max(1, steps - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, least: float = 0.0) -> None:
    """Set every group's learning rate to `lr` times its multiplier, but at least `least`."""
    for group in optimizer.param_groups:
        group["lr"] = max(lr * group["lr_factor"], least)


def count_falls(scores: Sequence[float], patience: int) -> int:
    """Count learning rate drops; each follows more than `patience` scores without improvement.

    Higher scores are better. The number of scores without improvement is reset at each drop.

    Source: PyTorch's ReduceLROnPlateau with mode="max", as in the published ODinW fine-tuning.
    """
    best, in_a_row, falls = -math.inf, 0, 0
    for score in scores:
        if score > best * (1 + THRESHOLD):
            best, in_a_row = score, 0
        else:
            in_a_row += 1
        if in_a_row > patience:
            falls, in_a_row = falls + 1, 0
    return falls


def has_stalled(scores: Sequence[float], limit: int) -> bool:
    """Return whether the last `limit` scores are all below the previous best.

    A `limit` of 0 disables the check. A score equal to the best one resets the count, as in
    the published fine-tuning code.
    """
    best, in_a_row = -math.inf, 0
    for score in scores:
        if score < best:
            in_a_row += 1
        else:
            best, in_a_row = score, 0
    return 0 < limit <= in_a_row
