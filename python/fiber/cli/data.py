"""`fiber data`: scenes, stamps, inspect, pack and answers."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fiber.atomic_io import write_json
from fiber.cli.arguments import byte_count, positive_int
from fiber.env import usable_cores

_SOURCE = (
    "a data directory, or a file: annotations (.json, .jsonl, .csv), a table (.parquet, .arrow) or"
    " a tar shard"
)
#: Maximum number of skipped records listed by `pack`.
_MAX_LISTED = 10


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `data` and its kinds to the table of commands."""
    data = commands.add_parser("data", help="generate, inspect or pack a data set")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    # Defaults of `generate`, repeated here to keep imports light.
    _add_generator(
        kinds, "scenes", "rendered shapes, with captions, questions and boxes", "pairs", 20000
    )
    stamps = _add_generator(
        kinds, "stamps", "cut-out objects on photographs, with captions and boxes", "nouns", 8000
    )
    stamps.add_argument("--backgrounds", type=Path, metavar="DIR", help="background photographs")
    stamps.add_argument(
        "--stamps", type=Path, metavar="DIR", help="cut-outs: PNG files with captions in .txt files"
    )
    _add_inspect(kinds)
    _add_pack(kinds)
    answers = kinds.add_parser(
        "answers",
        help="build the answer list of the published VQA head",
        description="Build the answer list of the published VQA head, for --answers, from VQAv2's"
        " v2_mscoco_train2014_annotations.json and v2_mscoco_val2014_annotations.json, or from the"
        " published vqav2_train.arrow and vqav2_val.arrow.",
    )
    answers.add_argument("source", type=Path, metavar="DIR", help="directory of the two files")
    answers.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="JSON list to write"
    )
    answers.set_defaults(run=_make_answers)


def _add_generator(
    kinds: argparse._SubParsersAction, kind: str, text: str, novel: str, images: int
) -> argparse.ArgumentParser:
    held_out = "pairs of color and shape" if novel == "pairs" else novel
    generator = kinds.add_parser(
        kind,
        help=text,
        description=f"Generate {text}. Besides the training split there are always 500 images of"
        f" val, with the content of training, and 500 of novel, with {held_out} that training does"
        " not show.",
    )
    generator.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory; kept if it has this data set already",
    )
    generator.add_argument(
        "--images",
        type=positive_int,
        default=None,
        metavar="N",
        help=f"images of the training split, 1 or more (default: {images})",
    )
    generator.add_argument(
        "--seed", type=int, default=0, help="seed of every image and text (default: 0)"
    )
    generator.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer.json or its directory (default: one trained on the texts)",
    )
    generator.set_defaults(run=_make_data, when_stopped="the unfinished directory was deleted")
    return generator


def _add_inspect(kinds: argparse._SubParsersAction) -> None:
    inspect = kinds.add_parser(
        "inspect",
        help="print statistics of a data set and find broken files",
        description="Read all records of a directory or file, decode every image, and print"
        " statistics: records, text lengths, boxes, image sizes, broken files, and images whose"
        " size differs from the annotations. Exits with 1 if there are faults.",
    )
    inspect.add_argument("source", type=Path, metavar="SOURCE", help=_SOURCE)
    inspect.add_argument("--split", metavar="S", help="only these splits, as in train+val")
    inspect.add_argument(
        "--sheet", type=Path, metavar="FILE", help="save a contact sheet with boxes and texts"
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)


def _add_pack(kinds: argparse._SubParsersAction) -> None:
    pack = kinds.add_parser(
        "pack",
        help="write a data set as tar shards with an index",
        description="Write all records of a directory or file as WebDataset shards, with an index"
        " for random access. The result can be used wherever the original data can.",
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help=_SOURCE)
    pack.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new directory")
    pack.add_argument("--split", metavar="S", help="only these splits, as in train+val")
    pack.add_argument(
        "--shard-size",
        type=byte_count,
        default="256MB",
        metavar="SIZE",
        help="maximum size of a tar file (default: 256MB)",
    )
    pack.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: skip and count records without their image and invalid boxes (default: raise)",
    )
    pack.set_defaults(run=_pack, when_stopped="the unfinished directory was deleted")


def _make_data(options: argparse.Namespace) -> int:
    from fiber.progress import ImageProgress

    module = importlib.import_module(f"fiber.synthetic.{options.kind}")
    settings = {
        "train": options.images,
        "tokenizer": options.tokenizer,
        "backgrounds": getattr(options, "backgrounds", None),
        "stamps": getattr(options, "stamps", None),
    }
    given = {name: value for name, value in settings.items() if value is not None}
    folder = module.generate(
        options.output, seed=options.seed, workers=usable_cores(), progress=ImageProgress(), **given
    )
    print(folder)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from fiber.cli.inspect import inspect
    from fiber.progress import ImageProgress

    splits = options.split.split("+") if options.split else ()
    return inspect(
        options.source,
        splits,
        sheet=options.sheet,
        as_json=options.json,
        progress=ImageProgress(),
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
        print(f"fiber: skipped: {line}", file=sys.stderr)
    if len(skipped) > _MAX_LISTED:
        print(f"fiber: skipped: and {len(skipped) - _MAX_LISTED} more", file=sys.stderr)
    for part in packed["parts"]:
        found = [f"{part['records']} records of {part['source']}"]
        found += [counted(number, what) for what, number in part["counts"].items()]
        print(f"fiber: {part['split']}: {'; '.join(found)}", file=sys.stderr)
    pictures = sum(shard["pictures"] for shard in packed["shards"])
    print(
        f"fiber: {counted(pictures, 'pictures')} in {counted(len(packed['shards']), 'shards')},"
        f" fingerprint {packed['fingerprint'][:16]}",
        file=sys.stderr,
    )
    print(options.output)
    return 0


def _make_answers(options: argparse.Namespace) -> int:
    from fiber.data.datasets.vqa_answers import published_answers

    found = published_answers(options.source)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, list(found.answers))
    for line in found.notes:
        print(f"fiber: {line}", file=sys.stderr)
    print(options.output)
    return 0
