"""`fiber convert`: write a checkpoint in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from fiber.cli.arguments import add_tokenizer_and_answers, positive_int


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `convert` to the table of commands."""
    convert = commands.add_parser(
        "convert",
        help="convert checkpoints: published to fiber and back, or the encoders alone",
        description="Read a model (a fiber model directory, or a published .ckpt, .pt, .pth or"
        " .safetensors file of either stage; no code in it is run) and write it in another format."
        " The report lists every tensor that was skipped, with the reason, and every tensor missing"
        " from the file, with its initial value.",
    )
    convert.add_argument("source", metavar="IN", help="model directory or checkpoint file")
    convert.add_argument(
        "target", type=Path, metavar="OUT", help="a new directory; a file for --to published"
    )
    convert.add_argument(
        "--to",
        required=True,
        choices=("fiber", "published", "towers"),
        help="fiber: a directory for fiber.load; published: a file for the published code; towers:"
        " a directory with swin.safetensors and roberta.safetensors",
    )
    add_tokenizer_and_answers(convert)
    convert.add_argument(
        "--image-size",
        type=positive_int,
        metavar="N",
        help="input height and width of a coarse model, in pixels (default: the model's)",
    )
    convert.add_argument(
        "--weights",
        choices=("raw", "ema"),
        default="raw",
        help="trained weights or their EMA, if the file has both (default: raw)",
    )
    convert.add_argument(
        "--layout",
        choices=("microsoft", "timm"),
        default="microsoft",
        help="key names of swin.safetensors (default: microsoft)",
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
