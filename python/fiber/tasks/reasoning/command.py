"""`fiber reason`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fiber.cli.arguments import add_options
from fiber.cli.asking import AskingSession, add_asking_command, image_heading, order_hint

if TYPE_CHECKING:
    import numpy as np

#: Width of the white gap between the two images of `--save`, in pixels.
_GAP = 8


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `reason` to the table of commands."""
    help_text = "decide whether a statement about two images is true"
    example = 'left.jpg right.jpg "both images show a dog"'
    reason = add_asking_command(commands, "reason", _reason, help_text, example)
    add_options(
        reason,
        {
            "left LEFT": "left image file",
            "right RIGHT": "right image file",
            "statement STATEMENT": 'statement, such as "both images show a dog"',
        },
    )


def _reason(options: argparse.Namespace) -> int:
    from fiber.postprocess.json_objects import truth_object

    pair, statement = [options.left, options.right], options.statement
    for image in pair:
        if Path(image).is_dir():
            raise IsADirectoryError(f"{image} is a folder; expected an image file")
    hint = order_hint(statement, "LEFT RIGHT STATEMENT")
    session = AskingSession(options, pair, "nlvr2", hint=hint)
    ((_, images),) = session.read(session.paths)
    left, right = images
    truth = session.model.reason((left, right), statement)
    label = str(truth).lower()
    result = truth_object(pair, session.name, statement, truth)
    headings = list(map(image_heading, pair, (left.shape, right.shape)))
    session.print(result, [(label, statement)], headings)
    if options.save:
        session.save(session.paths[0], _side_by_side(left, right), f"{statement}  {label}")
    return 0


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return two images on white, next to each other: uint8, (H, W, 3)."""
    import numpy as np

    from fiber.data import load_image

    # Without alpha.
    images = [load_image(image) for image in (left, right)]
    height, left_width = max(len(image) for image in images), images[0].shape[1]
    width = left_width + _GAP + images[1].shape[1]
    both = np.full((height, width, 3), 255, np.uint8)
    both[: len(images[0]), :left_width] = images[0]
    both[: len(images[1]), left_width + _GAP :] = images[1]
    return both
