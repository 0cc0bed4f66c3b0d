"""Boxes and their labels drawn on pictures, so that no label covers another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fiber.data.label_fonts import drawn_as, label_font

if TYPE_CHECKING:
    from PIL.Image import Image

#: Colours of boxes, by label; chosen to differ on light and on dark ground.
COLORS = (
    (230, 25, 75),
    (60, 160, 75),
    (0, 110, 220),
    (245, 130, 48),
    (145, 30, 180),
    (0, 150, 150),
    (200, 40, 160),
    (140, 100, 20),
    (90, 90, 200),
    (120, 130, 0),
)
#: Pixels between a label's text and its edge.
_MARGIN = 3
#: Places that are tried for a label over the whole picture, in each direction.
_STEPS = 24


class Place(NamedTuple):
    """A rectangle for a label, in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def shared(self, other: Place) -> float:
        """Square pixels that both cover."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(
    boxes_xyxy: Sequence[Sequence[float]],
    label_sizes: Sequence[tuple[float, float]],
    image_size: tuple[int, int],
) -> list[Place]:
    """Find a place for the label of each box.

    Above the box where there is room, else at another of its edges or inside it, else the free
    place that is nearest to it. Labels that come first choose first.

    Args:
        boxes_xyxy: in pixels.
        label_sizes: (width, height) of each label in pixels.
        image_size: (height, width) of the picture in pixels.

    Returns:
        A place inside the picture for each label, as far as it fits into it. No two cover one
        another, unless the picture is too full for that.
    """
    placed: list[Place] = []
    for box, size in zip(boxes_xyxy, label_sizes, strict=True):
        least, best = float("inf"), None
        for x, y in _candidates(box, size, image_size):
            place = _inside(x, y, size, image_size)
            covered = sum(place.shared(other) for other in placed)
            if covered < least:
                least, best = covered, place
            if covered == 0:
                break
        placed.append(best or _inside(box[0], box[1], size, image_size))
    return placed


def _candidates(
    box: Sequence[float], size: tuple[float, float], image_size: tuple[int, int]
) -> Iterator[tuple[float, float]]:
    """Yield the upper left corners of places for a label, the better ones first."""
    x0, y0, x1, y1 = box
    width, height = size
    if y0 >= height:
        yield x0, y0 - height
        yield x1 - width, y0 - height
    yield x0, y0
    yield x1 - width, y0
    if y1 + height <= image_size[0]:
        yield x0, y1
        yield x1 - width, y1
    yield x0, y1 - height
    yield x1 - width, y1 - height
    across = [i * max(image_size[1] - width, 0) / _STEPS for i in range(_STEPS + 1)]
    rows = max(int(image_size[0] // max(height, 1)), 1)
    down = [i * height for i in range(rows)]
    free = [(x, y) for x in (x0, *across) for y in down]
    yield from sorted(free, key=lambda corner: abs(corner[0] - x0) + abs(corner[1] - y0))


def _inside(x: float, y: float, size: tuple[float, float], image_size: tuple[int, int]) -> Place:
    """Move a label into the picture."""
    x = min(max(x, 0.0), max(image_size[1] - size[0], 0.0))
    y = min(max(y, 0.0), max(image_size[0] - size[1], 0.0))
    return Place(x, y, x + size[0], y + size[1])


def draw_boxes(
    image: Image,
    boxes_xyxy: Sequence[Sequence[float]],
    texts: Sequence[str],
    colors: Sequence[int],
) -> None:
    """Draw boxes with labels, the first on top.

    Args:
        image: is drawn on.
        boxes_xyxy: half-open, in its pixels.
        texts: what each label says; "" for none.
        colors: numbers of their colours.
    """
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    thickness = max(2, min(image.size) // 250)
    font = label_font(max(12, min(image.size) // 35))
    texts = [drawn_as(text, font) for text in texts]
    # Anchored at the ink: PIL cuts letters of a line whose top is above the picture.
    extents = [draw.textbbox((0, 0), text, font=font, anchor="lt") for text in texts]
    sizes = [
        (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN) if text else (0.0, 0.0)
        for text, (left, top, right, bottom) in zip(texts, extents, strict=True)
    ]
    places = place_labels(boxes_xyxy, sizes, (image.height, image.width))
    shades = [COLORS[color % len(COLORS)] for color in colors]
    for box, color in reversed(list(zip(boxes_xyxy, shades, strict=True))):
        x0, y0, x1, y1 = box
        # PIL counts the last pixel of a rectangle in.
        corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
        draw.rectangle(corners, outline=color, width=thickness)
    # Labels lie on top of all boxes.
    for box, place, text, extent, color in reversed(
        list(zip(boxes_xyxy, places, texts, extents, shades, strict=True))
    ):
        if not text:
            continue
        around = Place(box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2)
        if place.shared(around) == 0:
            # A label that stands apart is tied to its box.
            nearest = [(min(max(box[0], place.x0), place.x1), min(max(box[1], place.y0), place.y1))]
            draw.line([*nearest, (box[0], box[1])], fill=color, width=max(1, thickness // 2))
        draw.rectangle((place.x0, place.y0, place.x1 - 1, place.y1 - 1), fill=color)
        corner = (round(place.x0 + _MARGIN - extent[0]), round(place.y0 + _MARGIN - extent[1]))
        draw.text(corner, text, fill=(255, 255, 255), font=font, anchor="lt")
