"""`fiber data`: `scenes`, `stamps`, `inspect`, `convert`, `pack`, `answers`, and `cleaning`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fiber.atomic_io import made_folder, write_json
from fiber.cli.arguments import LIMITS, add_options, byte_count, limits_of
from fiber.cli.data import cleaning
from fiber.env import usable_cores
from fiber.messages import printable

_SOURCE = (
    "dataset folder, annotation file (.json, .jsonl, .csv), table (.parquet, .arrow), or tar shard"
)
_INSPECT = """
Read all records of a folder or file, decode every image, and print statistics: records, text
lengths, boxes, image sizes, broken files, and images whose size differs from the annotations. The
exit code is 1 if faults are found.
"""
_PACK = """
Write all records of a folder or file as WebDataset shards, with an index for random access. The
packed dataset can be used wherever the unpacked data can.
"""
_CONVERT = """
Write the boxes of a folder or file, with copies of the images, as another tool reads them. Splits
stay as they are. What is not converted (crowds, masks, texts) is counted or left out.
"""
#: Formats of `convert`, those of `fiber.data.writers.convert`, repeated here to keep imports light.
_FORMATS = ("coco", "yolo", "voc", "imagefolder", "labelstudio")
_ANSWERS = """
Build the answer list of the published VQA head (for --answers) from VQAv2's
v2_mscoco_train2014_annotations.json and v2_mscoco_val2014_annotations.json, or from the published
vqav2_train.arrow and vqav2_val.arrow.
"""
_SCENES = "rendered shapes, with captions, questions and boxes"
_STAMPS = "cut-out objects on photographs, with captions and boxes"
#: Maximum number of skipped records that `pack` lists, and of characters of each.
_MAX_LISTED, _MAX_LINE = 10, 1000


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `data` and its subcommands to the table of commands."""
    data = commands.add_parser("data", help="generate, inspect, convert or pack a dataset")
    example = (
        "`fiber data scenes --output runs/scenes`, which generates a dataset, or `fiber data"
        " inspect my.jsonl`, which checks your own"
    )
    data.set_defaults(example=example)
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    # Defaults of `generate`, repeated here to keep imports light.
    scenes = _add_generator(kinds, "scenes", _SCENES, "combinations of color and shape", 20000)
    add_options(
        scenes,
        {
            "--varied": "vary backgrounds, colors and outlines, as in drawings by hand",
            "--stuff": "draw textured regions behind the objects, as grass and water",
        },
    )
    stamps = _add_generator(kinds, "stamps", _STAMPS, "nouns", 8000)
    add_options(
        stamps,
        {
            "--backgrounds DIR": "folder of background photographs (default: from Debian packages)",
            "--stamps DIR": "folder of cut-outs, as PNG files with captions in .txt files (default:"
            " from a Debian package)",
        },
    )
    inspect = kinds.add_parser(
        "inspect", help="print dataset statistics and find broken files", description=_INSPECT
    )
    add_options(
        inspect,
        {
            "source SOURCE": f"{_SOURCE}, or URL of a packed dataset",
            "--split S": "splits to read, such as train+val (default: all)",
            "--verify": "also compare all files of a packed dataset with their checksums",
            "--sheet FILE": "save a contact sheet with boxes and texts to this image file",
            **LIMITS,
            "--json": "print the report as one JSON object",
        },
    )
    inspect.set_defaults(run=_inspect, example="`fiber data inspect my.jsonl`")
    pack = kinds.add_parser(
        "pack", help="write a dataset as tar shards with an index", description=_PACK
    )
    add_options(
        pack,
        {
            "source SOURCE": _SOURCE,
            "--output DIR": "new folder to create",
            "--split S": "splits to read, such as train+val (default: all)",
            "--shard-size SIZE": "maximum size of a tar file (default: 256MB)",
            "--on-error": "what to do with invalid boxes and with records whose image is missing:"
            " skip drops and counts them, raise fails at the first one (default: raise)",
        },
        source={"type": Path},
        output={"required": True},
        shard_size={"type": byte_count, "default": "256MB"},
        on_error={"choices": ("raise", "skip"), "default": "raise"},
    )
    pack.set_defaults(
        run=_pack,
        when_stopped="the unfinished folder was deleted",
        example="`fiber data pack my.jsonl --output packed`",
    )
    _add_convert(kinds)
    cleaning.add_kinds(kinds)
    _add_answers(kinds)


def _add_answers(kinds: argparse._SubParsersAction) -> None:
    answers = kinds.add_parser(
        "answers", help="build the answer list of the published VQA head", description=_ANSWERS
    )
    add_options(
        answers,
        {
            "source DIR": "folder with the two annotation files",
            "--output FILE": "JSON file to write",
        },
        output={"required": True},
    )
    answers.set_defaults(
        run=_make_answers, example="`fiber data answers VQA --output answers.json`"
    )


def _add_convert(kinds: argparse._SubParsersAction) -> None:
    convert = kinds.add_parser(
        "convert", help="write boxes in the format of another tool", description=_CONVERT
    )
    add_options(
        convert,
        {
            "source SOURCE": _SOURCE,
            "output DIR": "new folder to create",
            "--to FORMAT": f"format to write: {', '.join(_FORMATS)}",
            "--split S": "splits to convert, such as train+val (default: all)",
            "--on-error": "what to do with invalid boxes: skip drops and counts them, raise fails"
            " at the first one (default: raise)",
        },
        source={"type": Path},
        to={"choices": _FORMATS, "required": True},
        on_error={"choices": ("raise", "skip"), "default": "raise"},
    )
    convert.set_defaults(
        run=_convert,
        when_stopped="the unfinished folder was deleted",
        example="`fiber data convert my-coco my-yolo --to yolo`",
    )


def _add_generator(
    kinds: argparse._SubParsersAction, kind: str, text: str, held_out: str, images: int
) -> argparse.ArgumentParser:
    generator = kinds.add_parser(
        kind,
        help=f"generate {text}",
        description=f"Generate {text}. Besides the training split, the dataset always has 500"
        " images in val, with the same kinds of content, and 500 images in novel, with"
        f" {held_out} that do not occur in training.",
    )
    add_options(
        generator,
        {
            "--output DIR": "folder to create; unchanged if it already contains this dataset",
            "--images N": f"number of training images (default: {images})",
            "--seed": "random seed (default: 0)",
            "--tokenizer DIR": "tokenizer.json, or a folder that contains it (default: one trained"
            " on the texts)",
        },
        output={"required": True},
        seed={"type": int, "default": 0},
    )
    generator.set_defaults(
        run=_make_data,
        when_stopped="the unfinished folder was deleted",
        example=f"`fiber data {kind} --output runs/{kind}`",
    )
    return generator


def _make_data(options: argparse.Namespace) -> int:
    from fiber.progress import ImageProgress

    module = importlib.import_module(f"fiber.synthetic.{options.kind}")
    settings = {"train": options.images}
    for name in ("tokenizer", "backgrounds", "stamps"):
        settings[name] = getattr(options, name, None)
    given = {name: value for name, value in settings.items() if value is not None}
    given |= {name: True for name in ("varied", "stuff") if getattr(options, name, False)}
    folder = module.generate(
        options.output, seed=options.seed, workers=usable_cores(), progress=ImageProgress(), **given
    )
    print(folder)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from fiber.cli.data.inspect import inspect
    from fiber.data.image_file import DecodeLimits
    from fiber.data.storage.remote_pack import local_path
    from fiber.progress import ImageProgress

    splits = options.split.split("+") if options.split else ()
    limits = DecodeLimits(**limits_of(options))
    return inspect(
        local_path(options.source),
        splits,
        options.sheet,
        options.json,
        ImageProgress(),
        verify=options.verify,
        limits=limits,
    )


def _pack(options: argparse.Namespace) -> int:
    from fiber.data.skip_report import counted
    from fiber.data.tools.pack import pack
    from fiber.progress import ImageProgress

    skipped: list[str] = []
    packed = pack(
        options.source,
        options.output,
        splits=options.split.split("+") if options.split else (),
        shard_bytes=options.shard_size,
        on_error=options.on_error,
        progress=ImageProgress(),
        tell=skipped.append,
    )
    for line in skipped[:_MAX_LISTED]:
        print(f"fiber: skipped: {printable(line, _MAX_LINE)}", file=sys.stderr)
    if len(skipped) > _MAX_LISTED:
        print(f"fiber: skipped: and {len(skipped) - _MAX_LISTED} more", file=sys.stderr)
    for part in packed["parts"]:
        found = [f"{part['records']} records of {part['source']}"]
        found += [counted(number, what) for what, number in part["counts"].items()]
        print(f"fiber: {part['split']}: {'; '.join(found)}", file=sys.stderr)
    images = counted(sum(shard["pictures"] for shard in packed["shards"]), "images")
    shards = counted(len(packed["shards"]), "shards")
    fingerprint = packed["fingerprint"][:16]
    print(f"fiber: {images} in {shards}, fingerprint {fingerprint}", file=sys.stderr)
    print(options.output)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from fiber.data.skip_report import counted
    from fiber.data.writers.convert import convert
    from fiber.progress import ImageProgress

    done = convert(
        options.source,
        options.output,
        options.to,
        splits=options.split.split("+") if options.split else (),
        on_error=options.on_error,
        progress=ImageProgress(),
    )
    for note in done.notes:
        print(f"fiber: {printable(note, _MAX_LINE)}", file=sys.stderr)
    parts = ", ".join(f"{split} {number}" for split, number in done.images.items())
    boxes, classes = counted(done.boxes, "boxes"), counted(len(done.classes), "classes")
    print(f"fiber: images: {parts}; {boxes} of {classes}", file=sys.stderr)
    print(options.output)
    return 0


def _make_answers(options: argparse.Namespace) -> int:
    from fiber.data.datasets.vqa_answers import published_answers

    found = published_answers(options.source)
    with made_folder(options.output.parent):
        write_json(options.output, list(found.answers))
    for line in found.notes:
        print(f"fiber: {line}", file=sys.stderr)
    print(options.output)
    return 0
