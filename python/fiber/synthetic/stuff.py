"""Textured regions behind the objects of scenes: grass, sand, water, bricks and wood.

Two to four points divide an image into regions, each of the pixels that are nearest to its point.
"""

from __future__ import annotations

import math

import numpy as np

from fiber.data.rng import Rng

#: Kinds of stuff.
STUFF = ("grass", "sand", "water", "bricks", "wood")
#: RGB of each kind, darker or grayer than the colors of objects.
_RGB = {
    "grass": (96, 122, 70),
    "sand": (186, 168, 130),
    "water": (92, 120, 148),
    "bricks": (142, 92, 80),
    "wood": (126, 98, 68),
}


def draw_stuff(side: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw regions of different kinds of stuff.

    Returns:
        (side, side, 3) float32 RGB, and (side, side) uint8: the index of each pixel's kind.
    """
    kinds = rng.sample(range(len(STUFF)), 2 + rng.integer(3))
    down, across = np.mgrid[:side, :side].astype(np.float32) + 0.5
    points = [(rng.uniform(0, side), rng.uniform(0, side)) for _ in kinds]
    distances = [(across - x) ** 2 + (down - y) ** 2 for x, y in points]
    nearest = np.argmin(distances, axis=0)
    image = np.zeros((side, side, 3), np.float32)
    for number, kind in enumerate(kinds):
        own = nearest == number
        image[own] = _texture(STUFF[kind], down, across, rng)[own]
    return image, np.array(kinds, np.uint8)[nearest]


def _texture(kind: str, down: np.ndarray, across: np.ndarray, rng: Rng) -> np.ndarray:
    """Return a texture for a whole image, (H, W, 3) float32."""
    side = len(down)
    grain = rng.bytes_array(side * side).reshape(side, side).astype(np.float32) / 127.5 - 1
    phase, period = rng.uniform(0, 2 * math.pi), rng.uniform(5, 8)
    waves = np.sin(down * (2 * math.pi / period) + phase)
    if kind == "grass":
        light = grain * 26
    elif kind == "sand":
        light = grain * 10
    elif kind == "water":
        light = 18 * np.sin(down * (2 * math.pi / period) + 2 * np.sin(across / 7) + phase)
    elif kind == "wood":
        light = 14 * np.sin(across * (2 * math.pi / period) + np.sin(down / 11) + phase)
    else:
        # Rows of bricks, every other one shifted by half a brick.
        row = np.floor(down / period)
        joint = np.mod(across + (row % 2) * period, 2 * period) < 1.2
        light = np.where(joint | (np.mod(down, period) < 1.2), 46, waves * 3)
    return np.array(_RGB[kind], np.float32) + (light + grain * 4)[:, :, None]
