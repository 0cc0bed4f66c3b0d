"""Optimizers with the published parameter groups, learning rate schedules, and weight EMA."""

from fiber.training.optim.adamw import PublishedAdamW
from fiber.training.optim.build import build_optimizer
from fiber.training.optim.ema import MovingAverage
from fiber.training.optim.freeze import freeze
from fiber.training.optim.learning_rate import (
    count_falls,
    has_stalled,
    lr_factor,
    set_learning_rate,
)
from fiber.training.optim.muon import MuonAdamW

__all__ = [
    "MovingAverage",
    "MuonAdamW",
    "PublishedAdamW",
    "build_optimizer",
    "count_falls",
    "freeze",
    "has_stalled",
    "lr_factor",
    "set_learning_rate",
]
