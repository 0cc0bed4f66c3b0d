"""`fiber convert`: write a checkpoint in a different format."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import VOCABULARIES, add_options, pick

_DESCRIPTION = """
Read a model (a fiber model folder, or a published .ckpt, .pt, .pth or .safetensors file of
either stage) and write it in a different format. Code in the file is never executed. The report
lists every skipped tensor with the reason, and every tensor missing from the file with its initial
value.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `convert` to the table of commands."""
    convert = commands.add_parser(
        "convert",
        help="convert checkpoints between formats, or export the encoders alone",
        description=_DESCRIPTION,
    )
    add_options(
        convert,
        {
            "source IN": "model folder or checkpoint file",
            "target FILE": "new folder to create, or file to write with --to published",
            "--to": "output format: fiber (a folder for fiber.load), published (a file for the"
            " published code), or towers (a folder with swin.safetensors and roberta.safetensors)",
            **VOCABULARIES,
            "--image-size N": "input height and width in pixels, except for detectors (default:"
            " the model's own)",
            "--weights": "weights to read if the file contains both: raw (as trained) or ema"
            " (exponential moving average); default: raw",
            "--layout": "naming scheme for the keys of swin.safetensors (default: microsoft)",
        },
        target={"metavar": "OUT"},
        to={"required": True, "choices": ("fiber", "published", "towers")},
        tokenizer={"type": str},
        answers={"type": str},
        weights={"choices": ("raw", "ema"), "default": "raw"},
        layout={"choices": ("microsoft", "timm"), "default": "microsoft"},
    )
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from fiber.checkpoints.convert import convert

    settings = pick(options, "tokenizer", "answers", "image_size", "weights", "layout")
    print(convert(options.source, options.target, options.to, **settings))
    return 0
