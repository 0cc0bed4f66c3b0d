"""Pictures to encode: cut from photographs of ../shared, or generated without those."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parents[2] / "../shared/assets/photos"

#: (height, width); blocks of 8 and MCUs of 16 and 32, whole, short by one and longer by one.
SIZES = (
    *((1, 1), (1, 9), (2, 2), (3, 2), (5, 3), (7, 17), (8, 8), (9, 5), (15, 16), (16, 15)),
    *((16, 16), (17, 1), (17, 33), (31, 32), (33, 31), (40, 24), (47, 65), (64, 64), (65, 47)),
    *((75, 100), (97, 129), (121, 56), (128, 96), (150, 201), (33, 300)),
)


def sources() -> list[np.ndarray]:
    """Every photograph at about 400 pixels; three generated pictures without ../shared."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    found = []
    for path in paths:
        with Image.open(path) as image:
            image.draft("RGB", (800, 800))
            found.append(
                np.asarray(image.convert("RGB").resize((448, 320), Image.Resampling.LANCZOS))
            )
    return found or [generated(seed) for seed in range(3)]


def generated(seed: int, height: int = 320, width: int = 448) -> np.ndarray:
    """Waves, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(x / rng.uniform(2, 60) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(2, 60))
        for _ in range(3)
    ]
    picture = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3))
    picture[(x // 37 + y // 23) % 5 == 0] = rng.uniform(0, 255, 3)
    return picture.clip(0, 255).astype(np.uint8)


def pictures(photos: list[np.ndarray], count: int, offset: int = 0) -> Iterator[np.ndarray]:
    """Cut `count` pictures, each of another photograph, place and size.

    Args:
        photos: from `sources`.
        count: how many.
        offset: begins elsewhere in photographs and sizes.
    """
    rng = np.random.default_rng(offset)
    for index in range(offset, offset + count):
        photo = photos[index % len(photos)]
        height, width = SIZES[index % len(SIZES)]
        top = int(rng.integers(0, photo.shape[0] - height + 1))
        left = int(rng.integers(0, photo.shape[1] - width + 1))
        yield np.ascontiguousarray(photo[top : top + height, left : left + width])
