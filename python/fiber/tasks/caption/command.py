"""`fiber caption`."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import add_options
from fiber.cli.asking import IMAGES, AskingSession, add_asking_command


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `caption` to the table of commands."""
    caption = add_asking_command(commands, "caption", _caption, "caption images", "photo.jpg")
    add_options(caption, IMAGES, images={"nargs": "+"})
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
    arguments = {
        "sample": options.sample,
        "seed": options.seed or 0,
        "num_beams": options.num_beams,
    }
    session = AskingSession(options, options.images, "caption")
    for paths, images in session.read(session.paths):
        texts = session.model.caption(images, **arguments)
        for path, image, text in zip(paths, images, texts, strict=True):
            session.show(path, image, {"caption": text}, [(text,)], text)
    return 0
