"""The command that writes a checkpoint in another form."""

from __future__ import annotations

import argparse
from pathlib import Path

from fiber.cli.arguments import add_words, count


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file to the table."""
    convert = commands.add_parser(
        "convert",
        help="published checkpoints to ours and back, towers for other codes",
        description="Read a model (a folder of ours, or a published .ckpt, .pt, .pth or"
        " .safetensors file of either stage; nothing in it is run) and write it in another form."
        " The report lists every tensor that was left out, with the reason, and every one that the"
        " file did not hold, with what it was set to.",
    )
    convert.add_argument("source", metavar="IN", help="folder or file of a model")
    convert.add_argument(
        "target", type=Path, metavar="OUT", help="a new folder; with --to published a file"
    )
    convert.add_argument(
        "--to",
        required=True,
        choices=("fiber", "published", "towers"),
        help="a folder that fiber loads; a file that the published code loads; a folder with"
        " swin.safetensors and roberta.safetensors",
    )
    add_words(convert)
    convert.add_argument(
        "--image-size",
        type=count,
        metavar="N",
        help="side in pixels of the pictures that a coarse model shall look at",
    )
    convert.add_argument(
        "--weights",
        choices=("raw", "ema"),
        default="raw",
        help="of a file that has both: the trained ones or their moving average (default: raw)",
    )
    convert.add_argument(
        "--layout",
        choices=("microsoft", "timm"),
        default="microsoft",
        help="names of the Swin among the towers (default: microsoft)",
    )
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from fiber.checkpoints.convert import convert

    report = convert(
        options.source,
        options.target,
        options.to,
        tokenizer=options.tokenizer,
        answers=options.answers,
        image_size=options.image_size,
        weights=options.weights,
        layout=options.layout,
    )
    print(report)
    return 0
