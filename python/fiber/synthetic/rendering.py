"""Render scenes: antialiased shapes with materials on textured backgrounds.

Each object is drawn on a small patch from a signed distance in pixels (negative inside).
Dimensions: H x W pixels of the image, P x Q pixels of a patch.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fiber.data.rng import Rng
from fiber.synthetic.panoptic import Drawn, PixelBox, bounds
from fiber.synthetic.scene_graph import SHAPES, Scene, Thing

#: RGB of each color word, 0 to 255.
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
# RGB of the color words in drawing programs, toward which varied scenes shift their colors.
_PURE_RGB = {
    "red": (255, 0, 0),
    "green": (0, 150, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
#: Gray value of outlines.
_OUTLINE = 20.0
#: Minimum RGB distance between the colors of a varied scene and its background.
_MIN_CONTRAST = 70.0
# Color of stripes: (factor on the base color, gray added), lighter on dark colors.
_MARKS = {"blue": (0.45, 140), "purple": (0.45, 140), "black": (1.0, 185), "white": (0.22, 0)}
_DARKER = (0.4, 0)


def draw_scene(
    scene: Scene,
    image_size: int,
    rng: Rng,
    *,
    varied: bool = False,
    stuff: tuple[np.ndarray, np.ndarray] | None = None,
) -> Drawn:
    """Draw a scene (in pixel coordinates) as a square image with sides of `image_size` pixels.

    With `varied`, half of the backgrounds are plain and of any color that the objects stand out
    from, some objects have an outline, and colors range up to those of drawing programs. `stuff`,
    the result of `draw_stuff`, takes the place of the background.
    """
    image = _varied_background(scene, image_size, rng) if varied else background(image_size, rng)
    things, kinds = (np.zeros((image_size, image_size), np.uint8) for _ in range(2))
    if stuff is not None:
        image, kinds = stuff
    boxes = []
    for number, thing in enumerate(scene.things, 1):
        box, visible = _draw_thing(image, thing, rng, varied)
        x0, y0 = box[0], box[1]
        things[y0 : y0 + len(visible), x0 : x0 + visible.shape[1]][visible] = number
        boxes.append(box)
    np.clip(image, 0, 255, out=image)
    return Drawn(image.astype(np.uint8), boxes, things, kinds)


def _varied_background(scene: Scene, side: int, rng: Rng) -> np.ndarray:
    """Return a plain or textured (side, side, 3) float32 image that all objects stand out from."""
    if rng.bernoulli():
        return background(side, rng)
    colors = [np.array(rgb[thing.color]) for thing in scene.things for rgb in (RGB, _PURE_RGB)]
    while True:
        # Drawings are mostly on white, and grays are more common than other colors.
        light = rng.choice((255.0, rng.uniform(0, 255)))
        tint = rng.choice((0.0, 0.0, 40.0))
        plain = np.array([light + rng.uniform(-tint, tint) for _ in range(3)]).clip(0, 255)
        if all(np.linalg.norm(plain - color) >= _MIN_CONTRAST for color in colors):
            return np.tile(plain.astype(np.float32), (side, side, 1))


def background(side: int, rng: Rng) -> np.ndarray:
    """Return a grayish (side, side, 3) float32 image with a gradient, soft clouds and grain."""
    gray = rng.uniform(95, 165)
    tint = np.array([gray + rng.uniform(-16, 16) for _ in range(3)], dtype=np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 20)
    light = (ramp * (slope * math.sin(angle)))[:, None] + ramp * (slope * math.cos(angle))
    cells, strength = rng.choice((4, 7, 12)), rng.uniform(4, 14)
    coarse = rng.bytes_array(cells * cells).reshape(cells, cells).astype(np.float32)
    clouds = Image.fromarray((coarse - 127.5) * (strength / 127.5))
    light += np.asarray(clouds.resize((side, side), Image.Resampling.BILINEAR))
    grain = rng.bytes_array(side * side).reshape(side, side).astype(np.float32)
    light += (grain - 127.5) * (rng.uniform(1, 7) / 127.5)
    return light[:, :, None] + tint


def _draw_thing(
    image: np.ndarray, thing: Thing, rng: Rng, varied: bool
) -> tuple[PixelBox, np.ndarray]:
    """Draw an object on an (H, W, 3) float32 image.

    Returns:
        The box of its pixels with alpha > 0.5, and which pixels of the box these are.
    """
    height, width = image.shape[:2]
    reach = thing.radius + 2
    top, left = max(int(thing.y - reach), 0), max(int(thing.x - reach), 0)
    bottom, right = min(int(thing.y + reach) + 1, height), min(int(thing.x + reach) + 1, width)
    # (P, 1) and (1, Q): pixel centers relative to the object's center, slightly rotated.
    down = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - thing.y)
    across = np.arange(left, right, dtype=np.float32)[None, :] + (0.5 - thing.x)
    angle = rng.uniform(-0.14, 0.14)
    sine, cosine = math.sin(angle), math.cos(angle)
    u, v = across * cosine + down * sine, down * cosine - across * sine
    distance = shape_distance(thing.noun, u, v, thing.radius)
    alpha = np.clip(0.5 - distance, 0, 1)
    rgb = np.array(RGB[thing.color])
    if varied:
        rgb = rgb + (np.array(_PURE_RGB[thing.color]) - rgb) * rng.uniform(0, 1)
    colors = _material(thing, rgb, u, v, rng)
    if varied and rng.bernoulli(0.2):
        inside = np.clip(-0.5 - distance, 0, 1)[:, :, None]
        colors = colors * inside + _OUTLINE * (1 - inside)
    patch = image[top:bottom, left:right]
    patch += (colors - patch) * alpha[:, :, None]
    visible = alpha > 0.5
    box = bounds(visible)
    assert box is not None
    x0, y0, x1, y1 = box
    return (left + x0, top + y0, left + x1, top + y1), visible[y0:y1, x0:x1]


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance from points to a shape's outline, negative inside.

    Args:
        shape: one of `scene_graph.SHAPES`.
        u: (P, Q) pixels to the right of the center.
        v: (P, Q) pixels below the center.
        radius: half of the extent in pixels.
    """
    if shape == "circle":
        return np.hypot(u, v) - 0.94 * radius
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.73 * radius) - 0.25 * radius
    a, b = np.abs(u), np.abs(v)
    if shape == "square":
        return np.maximum(a, b) - 0.82 * radius
    if shape == "diamond":
        # Taller than wide, to differ from a rotated square.
        wide, high = 0.68 * radius, radius
        return (a / wide + b / high - 1) * (wide * high / math.hypot(wide, high))
    if shape == "cross":
        long, short = 0.96 * radius, 0.32 * radius
        return np.minimum(np.maximum(a - short, b - long), np.maximum(a - long, b - short))
    if shape == "triangle":
        # Equilateral, with a horizontal base.
        return np.maximum(a * 0.8660254 - v * 0.5 - 0.52 * radius, v - 0.62 * radius)
    if shape == "star":
        # By symmetry, one of ten wedges: the outline is a line from a tip to the next notch.
        turn = 2 * math.pi / 5
        wedge = np.abs((np.arctan2(u, -v) + turn / 2) % turn - turn / 2)
        distance, notch = np.hypot(u, v), 0.44 * radius
        edge_x, edge_y = notch * math.cos(turn / 2) - radius, notch * math.sin(turn / 2)
        along, across = distance * np.cos(wedge) - radius, distance * np.sin(wedge)
        return (across * -edge_x + along * edge_y) / math.hypot(edge_x, edge_y)
    if shape == "heart":
        # A square standing on a corner, with half discs on its two upper sides.
        side = 1.06 * radius
        lowered = v - 0.16 * radius
        square = (np.maximum(np.abs(u + lowered), np.abs(u - lowered)) / math.sqrt(2)) - side / 2
        middle = side / (2 * math.sqrt(2))
        return np.minimum(square, np.hypot(a - middle, lowered + middle) - side / 2)
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")


def _material(thing: Thing, rgb: np.ndarray, u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the colors of an object's patch as a (3,) or (P, Q, 3) float32 array."""
    base = np.array([c + rng.uniform(-10, 10) for c in rgb], dtype=np.float32)
    angle = rng.uniform(0, math.pi)
    if thing.material == "plain":
        return base
    factor, added = _MARKS.get(thing.color, _DARKER)
    marks = base * factor + added
    turn = math.cos(angle), math.sin(angle)
    # Stripes have a similar width for all object sizes.
    period = 4.6 + 0.16 * thing.radius
    along = (u * turn[0] + v * turn[1]) * (2 * math.pi / period)
    # Marks cover less than half of the object, so its color dominates.
    where = np.clip(np.sin(along) * 1.6 + 0.25, 0, 1)
    return base + (marks - base) * where[:, :, None]


def save_jpeg(image: np.ndarray, path: str) -> None:
    """Write an (H, W, 3) uint8 image as a JPEG file."""
    Image.fromarray(image).save(path, "JPEG", quality=92)
