"""Photographs and JPEG files that are small and made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def photograph(path: Path, height: int, width: int, seed: int) -> Path:
    """Write an image with structure at every scale, as a photograph has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (3, 12, 48):
        grain = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        total += np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC), float)
    Image.fromarray((total / 3).astype(np.uint8)).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    sizes = [(700, 900), (900, 700), (600, 800)]
    return [photograph(folder / f"{i}.jpg", *size, seed=i) for i, size in enumerate(sizes)]


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory) -> Path:
    """A folder of eight JPEG files of 64 x 48 pixels and less."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(8):
        photograph(folder / f"{index}.jpg", 40 + index, 64, seed=index)
    return folder
