"""The command `fiber count`. torch is imported when it runs, so that `fiber --help` is fast."""

from __future__ import annotations

import argparse
import json


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `count` to the table of commands."""
    count = commands.add_parser("count", help="count the objects in images")
    count.add_argument("model", metavar="MODEL", help="model folder or checkpoint file")
    count.add_argument("images", metavar="IMAGE", nargs="+", help="image file")
    count.set_defaults(run=_count)


def _count(options: argparse.Namespace) -> int:
    """Print a JSON object for each image; return the exit code."""
    import fiber

    model = fiber.load(options.model)
    for image, number in zip(options.images, model.count(options.images), strict=True):
        print(json.dumps({"image": image, "count": number}))
    return 0
