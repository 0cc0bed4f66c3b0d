"""`fiber export`: write a model as graphs for onnxruntime, OpenVINO or torch.export."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import VOCABULARIES, add_options, path_text, pick

_DESCRIPTION = """
Write a model as graphs that run without this package: ONNX in standard operators, OpenVINO, or
files of torch.export. Images and texts are encoded by graphs of their own, so that an image is
encoded once for many texts. Batch and text length are dynamic in all graphs, and height and width
in those of detectors. Each graph is run at other sizes than the traced ones and compared with the
network. metadata.json has what inference needs besides: preprocessing, labels and the shapes of
all inputs. docs/export.md describes the folder.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `export` to the table of commands."""
    export = commands.add_parser(
        "export",
        help="write a model as ONNX, OpenVINO or torch.export graphs",
        description=_DESCRIPTION,
    )
    add_options(
        export,
        {
            "model MODEL": "model folder, folder of stages, or checkpoint file",
            "target DIR": "new folder to create",
            "--to": "format: onnx, openvino, or torch (torch.export); default: onnx",
            "--heads": "comma-separated heads to export (default: all)",
            **VOCABULARIES,
            "--image-size N": "input height and width in pixels, except for detectors (default:"
            " the model's own)",
            "--weights": "weights to read if the file contains both: raw (as trained) or ema"
            " (exponential moving average); default: raw",
            "--int8": "multiply by weights in 8-bit integers (onnx only); `fiber eval OUT` measures"
            " what that costs",
        },
        target={"metavar": "OUT"},
        to={"default": "onnx", "choices": ("onnx", "torch", "openvino")},
        heads={"metavar": "HEADS", "type": _heads},
        tokenizer={"type": path_text},
        answers={"type": path_text},
        weights={"choices": ("raw", "ema"), "default": "raw"},
    )
    export.set_defaults(run=_export, example="`fiber export scenes exported`")


def _heads(text: str) -> list[str]:
    heads = [head.strip() for head in text.split(",")]
    if not all(heads):
        raise argparse.ArgumentTypeError(f"expected heads such as itm,vqa, got {text!r}")
    return heads


def _export(options: argparse.Namespace) -> int:
    from fiber.export.export import export_model

    settings = pick(options, "heads", "tokenizer", "answers", "image_size", "weights", "int8")
    export_model(
        options.model,
        options.target,
        options.to,
        progress=lambda line: print(line, flush=True),
        **settings,
    )
    return 0
