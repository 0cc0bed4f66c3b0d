"""Models and pictures to ask them about."""

import numpy as np
import pytest

import fiber
from fiber.predict import Model


@pytest.fixture(scope="module")
def coarse(micro_models) -> Model:
    return fiber.load(micro_models["coarse"], device="cpu")


@pytest.fixture(scope="module")
def fine(micro_models) -> Model:
    return fiber.load(micro_models["fine"], device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Pictures of several sizes and forms."""
    draws = np.random.default_rng(0)
    sizes = [(64, 64), (70, 90), (90, 70), (40, 121), (64, 64)]
    return [draws.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
