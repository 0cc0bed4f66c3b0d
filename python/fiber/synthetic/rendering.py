"""Pictures of scenes: antialiased shapes with materials on textured backgrounds.

Each thing is drawn on its own small patch from a signed distance in pixels (negative inside), so
that a picture of 96 x 96 pixels takes a fraction of a millisecond. Letters: H W pixels of the
picture, P Q pixels of a patch.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fiber.data.rng import Draws
from fiber.synthetic.scene_graph import Scene, Thing

#: (x0, y0, x1, y1) in whole pixels, half-open.
PixelBox = tuple[int, int, int, int]

#: Red, green and blue of each colour word, 0..255.
RGB = {
    "red": (215, 38, 40),
    "green": (42, 158, 60),
    "blue": (42, 78, 218),
    "yellow": (240, 214, 48),
    "purple": (146, 48, 172),
    "cyan": (72, 212, 222),
    "white": (244, 244, 244),
    "black": (22, 22, 22),
}
# Marks of stripes and dots are a multiple of the colour plus a grey: lighter on dark colours.
_MARKS = {"blue": (0.45, 140), "purple": (0.45, 140), "black": (1.0, 185), "white": (0.22, 0)}
_DARKER = (0.4, 0)


def draw_scene(scene: Scene, image_size: int, draws: Draws) -> tuple[np.ndarray, list[PixelBox]]:
    """Draw a scene.

    Args:
        scene: things with places and radii in pixels.
        image_size: side of the picture in pixels.
        draws: stream of the picture's background and of small variations of its things.

    Returns:
        (H, W, 3) uint8 RGB, and one box for each thing: the bounds of its pixels with alpha > 0.5.
    """
    picture = background(image_size, draws)
    boxes = [_draw_thing(picture, thing, draws) for thing in scene.things]
    np.clip(picture, 0, 255, out=picture)
    return picture.astype(np.uint8), boxes


def background(side: int, draws: Draws) -> np.ndarray:
    """Return a greyish (side, side, 3) float32 picture: a slope, soft clouds and grain."""
    grey = draws.between(95, 165)
    tint = np.array([grey + draws.between(-16, 16) for _ in range(3)], dtype=np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    angle, slope = draws.between(0, 2 * math.pi), draws.between(0, 20)
    light = (ramp * (slope * math.sin(angle)))[:, None] + ramp * (slope * math.cos(angle))
    cells, strength = draws.choice((4, 7, 12)), draws.between(4, 14)
    coarse = draws.bytes_array(cells * cells).reshape(cells, cells).astype(np.float32)
    clouds = Image.fromarray((coarse - 127.5) * (strength / 127.5))
    light += np.asarray(clouds.resize((side, side), Image.Resampling.BILINEAR))
    grain = draws.bytes_array(side * side).reshape(side, side).astype(np.float32)
    light += (grain - 127.5) * (draws.between(1, 7) / 127.5)
    return light[:, :, None] + tint


def _draw_thing(picture: np.ndarray, thing: Thing, draws: Draws) -> PixelBox:
    """Draw a thing into an (H, W, 3) float32 picture; return the box of alpha > 0.5."""
    height, width = picture.shape[:2]
    reach = thing.radius + 2
    top, left = max(int(thing.y - reach), 0), max(int(thing.x - reach), 0)
    bottom, right = min(int(thing.y + reach) + 1, height), min(int(thing.x + reach) + 1, width)
    # (P, 1) and (1, Q): pixel centres, seen from the centre of the thing, turned a little.
    down = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - thing.y)
    across = np.arange(left, right, dtype=np.float32)[None, :] + (0.5 - thing.x)
    angle = draws.between(-0.14, 0.14)
    sine, cosine = math.sin(angle), math.cos(angle)
    u, v = across * cosine + down * sine, down * cosine - across * sine
    alpha = np.clip(0.5 - shape_distance(thing.noun, u, v, thing.radius), 0, 1)
    colors = _paint(thing, u, v, draws)
    patch = picture[top:bottom, left:right]
    patch += (colors - patch) * alpha[:, :, None]
    inside = alpha > 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance of points to the outline of a shape, negative inside.

    Args:
        shape: one of `scene_graphs.SHAPES`.
        u: (P, Q) pixels to the right of the shape's centre.
        v: (P, Q) pixels below it.
        radius: half of the shape's extent in pixels.
    """
    if shape == "circle":
        return np.hypot(u, v) - 0.94 * radius
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.73 * radius) - 0.25 * radius
    a, b = np.abs(u), np.abs(v)
    if shape == "square":
        return np.maximum(a, b) - 0.82 * radius
    if shape == "diamond":
        # Narrower than high, so that no turned square is a diamond.
        wide, high = 0.68 * radius, radius
        return (a / wide + b / high - 1) * (wide * high / math.hypot(wide, high))
    if shape == "cross":
        long, short = 0.96 * radius, 0.32 * radius
        upright = np.maximum(a - short, b - long)
        return np.minimum(upright, np.maximum(a - long, b - short))
    if shape == "triangle":
        # The three sides of an equilateral triangle that stands on one of them.
        sides = a * 0.8660254 - v * 0.5 - 0.52 * radius
        return np.maximum(sides, v - 0.62 * radius)
    if shape == "star":
        # One of ten equal wedges: the outline is the line from a tip to the notch beside it.
        turn = 2 * math.pi / 5
        wedge = np.abs((np.arctan2(u, -v) + turn / 2) % turn - turn / 2)
        distance = np.hypot(u, v)
        tip, notch = radius, 0.44 * radius
        notch_x, notch_y = notch * math.cos(turn / 2), notch * math.sin(turn / 2)
        edge_x, edge_y = notch_x - tip, notch_y
        length = math.hypot(edge_x, edge_y)
        along, beside = distance * np.cos(wedge) - tip, distance * np.sin(wedge)
        return (beside * -edge_x + along * edge_y) / length
    if shape == "heart":
        # A square on its corner with two half-discs on its upper sides.
        side = 1.06 * radius
        lowered = v - 0.16 * radius
        square = (np.maximum(np.abs(u + lowered), np.abs(u - lowered)) / math.sqrt(2)) - side / 2
        middle = side / (2 * math.sqrt(2))
        lobes = np.hypot(a - middle, lowered + middle) - side / 2
        return np.minimum(square, lobes)
    raise ValueError(f"unknown shape {shape!r}")


def _paint(thing: Thing, u: np.ndarray, v: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the colours of a thing's patch: (3,) or (P, Q, 3) float32."""
    base = np.array([c + draws.between(-10, 10) for c in RGB[thing.color]], dtype=np.float32)
    angle = draws.between(0, math.pi)
    if thing.material == "plain":
        return base
    if thing.material == "glossy":
        # Darker towards the rim, a bright spot at the upper left.
        far = (u * u + v * v) / thing.radius**2
        du, dv = u + 0.34 * thing.radius, v + 0.34 * thing.radius
        spot = np.exp((du * du + dv * dv) * (-9 / thing.radius**2))[:, :, None]
        shaded = base * (1.08 - 0.62 * np.minimum(far, 1))[:, :, None]
        return shaded + (255 - shaded) * (0.9 * spot)
    factor, added = _MARKS.get(thing.color, _DARKER)
    marks = base * factor + added
    turn = math.cos(angle), math.sin(angle)
    # Marks keep their width at all sizes of things, but small things get a finer grid.
    period = 4.6 + 0.16 * thing.radius
    along = (u * turn[0] + v * turn[1]) * (2 * math.pi / period)
    if thing.material == "striped":
        # A little less than half is marks, so that the colour stays the main one.
        where = np.clip(np.sin(along) * 1.6 + 0.25, 0, 1)
    else:
        across = (v * turn[0] - u * turn[1]) * (2 * math.pi / period)
        where = np.clip((np.cos(along) + np.cos(across) - 0.75) * 1.6, 0, 1)
    return base + (marks - base) * where[:, :, None]


def save_jpeg(picture: np.ndarray, path: str) -> None:
    """Write an (H, W, 3) uint8 picture as a JPEG file."""
    Image.fromarray(picture).save(path, "JPEG", quality=92)
