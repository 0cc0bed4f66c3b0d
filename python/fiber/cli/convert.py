"""`fiber convert` and `fiber merge`: write a checkpoint in a different format, or two as one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fiber.cli.arguments import (
    VOCABULARIES,
    add_options,
    naming_option,
    path_text,
    pick,
    weight,
)
from fiber.messages import shown_names

_DESCRIPTION = """
Read a model (a fiber model folder, a checkpoint of a run, a published .ckpt, .pt, .pth or
.safetensors file of either stage, or, with --merge, a LoRA adapter and its base) and write it in a
different format. Code in the file is never executed. A checkpoint RUN/checkpoints/step-N becomes a
folder like that of the finished run, with the moving average of the weights if the run has one. The
report lists every skipped tensor with the reason, and every tensor missing from the file with its
initial value.
"""
_MERGE = """
Interpolate between the weights of a model and of one that was trained from it (WiSE-FT), and write
the result as a model folder. Models with other tensors, tokenizers or answers are refused.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `convert` and `merge` to the table of commands."""
    convert = commands.add_parser(
        "convert",
        help="convert checkpoints between formats, or export the encoders alone",
        description=_DESCRIPTION,
    )
    add_options(
        convert,
        {
            "source IN": "model folder, checkpoint file, or RUN/checkpoints/step-N",
            "target FILE": "new folder to create, or file to write with --to published",
            "--to": "output format: fiber (a folder for fiber.load), published (a file for the"
            " published code), or towers (a folder with a file of each encoder);"
            " default: fiber",
            **VOCABULARIES,
            "--image-size N": "input height and width in pixels, except for detectors (default:"
            " the model's own)",
            "--weights": "weights to read if the file contains both: raw (as trained) or ema"
            " (exponential moving average); default: raw, and ema for a checkpoint of a run",
            "--merge": "merge a LoRA adapter, such as RUN/adapter, into its base",
            "--base MODEL": "with --merge, the base of the adapter (default: the one it names)",
            "--layout": "naming scheme for the keys of swin.safetensors (default: microsoft)",
        },
        target={"metavar": "OUT"},
        to={"default": "fiber", "choices": ("fiber", "published", "towers")},
        tokenizer={"type": path_text},
        answers={"type": path_text},
        merge={"action": "store_true"},
        base={"type": path_text},
        weights={"choices": ("raw", "ema")},
        layout={"choices": ("microsoft", "timm"), "default": "microsoft"},
    )
    example = "`fiber convert runs/fine fine.pt --to published`"
    convert.set_defaults(run=_convert, example=example)

    merge = commands.add_parser(
        "merge",
        help="interpolate between a model and what was trained from it",
        description=_MERGE,
    )
    add_options(
        merge,
        {
            "base BASE": "model that training started from: what --model of other commands takes",
            "tuned TUNED": "trained model",
            "--weight W": "share of TUNED in the weights, from 0 to 1 (default: 0.5)",
            "--output DIR": "new folder for the model",
        },
        weight={"type": weight, "default": 0.5},
        output={"required": True},
    )
    example = "`fiber merge scenes/fine runs/own --weight 0.5 --output runs/merged`"
    merge.set_defaults(run=_merge, example=example)


def _convert(options: argparse.Namespace) -> int:
    from fiber.checkpoints.convert import convert
    from fiber.checkpoints.model_dir import is_run_checkpoint

    source, weights = options.source, options.weights
    if is_run_checkpoint(Path(source)):
        from fiber.training.checkpoint.model import read_checkpoint_model

        source, weights = read_checkpoint_model(source, weights, options.image_size)
    settings = pick(options, "tokenizer", "answers", "image_size", "layout", "merge", "base")
    print(convert(source, options.target, options.to, weights=weights or "raw", **settings))
    return 0


def _merge(options: argparse.Namespace) -> int:
    import fiber
    from fiber.cli.models import load_quietly

    base, tuned = (load_quietly(path, device="cpu") for path in (options.base, options.tuned))
    model = fiber.merge(base, tuned, options.weight)
    with naming_option("--output", options.output):
        model.save(options.output)
    shares = f"{1 - options.weight:g} of {options.base}, {options.weight:g} of {options.tuned}"
    print(f"wrote {options.output}: {shares}")
    if set(base.classes) != set(tuned.classes):
        classes = shown_names(model.classes)
        print(f"fiber: the classes of both differ; the result has {classes}", file=sys.stderr)
    return 0
