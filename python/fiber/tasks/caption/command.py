"""`fiber caption`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import add_options, box_xyxy
from fiber.cli.asking import IMAGES, AskingSession, add_asking_command

if TYPE_CHECKING:
    import numpy as np

_EXPECTED_MASK = "expected black pixels, and those of the region in one other color"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `caption` to the table of commands."""
    help_text = "caption images, or a region of an image"
    caption = add_asking_command(commands, "caption", _caption, help_text, "photo.jpg")
    add_options(caption, IMAGES, images={"nargs": "+"})
    add_options(
        caption.add_mutually_exclusive_group(),
        {
            "--region FILE": "caption a region of a single image: an image file of the same size,"
            " such as a PNG, that is black outside of the region and has one other color in it",
            "--box X0,Y0,X1,Y1": "caption the region in a box, in half-open pixels of the image",
        },
        box={"type": box_xyxy},
    )
    add_options(
        caption.add_mutually_exclusive_group(),
        {
            "--num-beams N": "number of beams in beam search (default: 5)",
            "--sample": "sample tokens instead of using beam search",
        },
    )
    add_options(caption, {"--seed N": "random seed for --sample (default: 0)"}, seed={"type": int})


def _caption(options: argparse.Namespace) -> int:
    if options.seed is not None and not options.sample:
        raise ValueError(f"--seed {options.seed} requires --sample")
    arguments: dict[str, Any] = {
        "sample": options.sample,
        "seed": options.seed or 0,
        "num_beams": options.num_beams,
    }
    session = AskingSession(options, options.images, "caption")
    if options.region is not None or options.box is not None:
        return _caption_region(session, options, arguments)
    for paths, images in session.read(session.paths):
        texts = session.model.caption(images, **arguments)
        for path, image, text in zip(paths, images, texts, strict=True):
            session.show(path, image, {"caption": text}, [(text,)], text)
    return 0


def _caption_region(
    session: AskingSession, options: argparse.Namespace, arguments: dict[str, Any]
) -> int:
    """Caption a region of the only image."""
    named = "--region" if options.box is None else "--box"
    if len(session.paths) != 1:
        raise ValueError(f"{named} is for a single image, got {len(session.paths)} images")
    ((path, image),) = session.each()
    size = image.shape[:2]
    if options.box is not None:
        region = _box_region(options.box, size)
    else:
        region = _read_region(options.region, size, session.limits)
    text = session.model.caption(image, region=region, **arguments)
    result = {"region_pixels": int(region.sum()), "caption": text}
    drawn = _with_region(image, region) if options.save else image
    session.show(path, drawn, result, [(text,)], text)
    return 0


def _read_region(file: Path, size: tuple[int, ...], limits: dict[str, Any]) -> np.ndarray:
    """Read a region from an image file: (H, W) bool.

    Raises:
        ValueError: if the file has another size than the image, transparent pixels, more than one
            color besides black, or black pixels only.
    """
    import numpy as np

    from fiber.data import load_image

    values = load_image(file, keep_alpha=True, **limits)
    height, width = values.shape[:2]
    if (height, width) != size:
        raise ValueError(
            f"--region {file}: the file has {width} x {height} pixels; expected {size[1]} x"
            f" {size[0]}, the size of the image"
        )
    if values.shape[2] == 4:
        raise ValueError(f"--region {file}: the file has transparent pixels; {_EXPECTED_MASK}")
    region = np.any(values, axis=2, keepdims=True)[..., 0]
    inside = values[region]
    if not len(inside):
        raise ValueError(f"--region {file}: all pixels are black; {_EXPECTED_MASK}")
    others = inside[(inside != inside[0]).any(1)]
    if len(others):
        colors = (tuple(color.tolist()) for color in (inside[0], others[0]))
        raise ValueError(
            f"--region {file}: the file has the colors {' and '.join(map(str, colors))};"
            f" {_EXPECTED_MASK}"
        )
    return region


def _box_region(box: tuple[float, ...], size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels whose centers are in a box: (H, W) bool.

    Raises:
        ValueError: if the box is not within the image, or has no center of a pixel.
    """
    import numpy as np

    (x0, y0, x1, y1), (height, width) = box, size
    given = ",".join(f"{edge:g}" for edge in box)
    if min(x0, y0) < 0 or x1 > width or y1 > height:
        raise ValueError(f"--box {given} is not within the image of {width} x {height} pixels")
    centers = [np.arange(side) + 0.5 for side in size]
    rows, columns = (
        (low <= own) & (own < high)
        for own, low, high in zip(centers, (y0, x0), (y1, x1), strict=True)
    )
    region = np.logical_and(rows[:, None], columns)
    if not region.any():
        raise ValueError(f"--box {given} contains no center of a pixel of the image")
    return region


def _with_region(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return a copy of an image with a region drawn."""
    import numpy as np
    from PIL import Image

    from fiber.visualize import draw_masks

    drawn = draw_masks(Image.fromarray(image).convert("RGB"), region[None], [""], [0])
    return np.asarray(drawn)
