"""Models and pictures to ask them about."""

from collections.abc import Callable

import numpy as np
import pytest

import fiber
from fiber.config_io import replace_fields
from fiber.inference import Model
from fiber.models.fiber.image_text import FiberImageText


@pytest.fixture(scope="module")
def coarse(micro_models) -> Model:
    return fiber.load(micro_models["coarse"], device="cpu")


@pytest.fixture(scope="module")
def fine(micro_models) -> Model:
    return fiber.load(micro_models["fine"], device="cpu")


@pytest.fixture
def with_heads(coarse) -> Callable[..., Model]:
    """Make the coarse model with some of its heads alone; the weights are the same."""

    def make(*heads: str) -> Model:
        config = replace_fields(coarse.config, {"image_text.heads": ",".join(heads)})
        network = FiberImageText(config)
        missing, _ = network.load_state_dict(coarse.network.state_dict(), strict=False)
        assert not missing
        return Model(network, coarse.tokenizer)

    return make


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Pictures of several sizes and forms."""
    draws = np.random.default_rng(0)
    sizes = [(64, 64), (70, 90), (90, 70), (40, 121), (64, 64)]
    return [draws.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
