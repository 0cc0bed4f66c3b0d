"""The commands about data: `fiber data scenes`, `stamps`, `pack`, `inspect` and `answers`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fiber.atomic_io import write_json
from fiber.cli.arguments import byte_count, count
from fiber.env import usable_cores

_SOURCE = (
    "a data folder, or a file: annotations (.json, .jsonl, .csv), a table (.parquet, .arrow) or a"
    " tar shard"
)
#: Records that `pack` leaves out and names.
_NAMED = 10


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file to the table."""
    data = commands.add_parser("data", help="make a data set, or look into one")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    # The numbers are the defaults of `generate`, which is not imported for a table of options.
    for kind, text, novel, images in (
        (
            "scenes",
            "rendered pictures of shapes, with captions, questions and boxes",
            "pairs of colour and shape",
            20000,
        ),
        ("stamps", "real cut-outs on photographs, with captions and boxes", "nouns", 8000),
    ):
        make = kinds.add_parser(
            kind,
            help=text,
            description=f"Make {text}. Beside the training split there are always 500 pictures of"
            f" val, which show what training shows, and 500 of novel, which show {novel} that"
            " training does not.",
        )
        make.add_argument("--output", type=Path, required=True, metavar="DIR")
        make.add_argument(
            "--images",
            type=count,
            default=None,
            metavar="N",
            help=f"pictures of the training split, 1 or more (default: {images})",
        )
        make.add_argument(
            "--seed", type=int, default=0, help="decides every picture and text (default: 0)"
        )
        make.add_argument(
            "--tokenizer", type=Path, metavar="DIR", help="take this one instead of training one"
        )
        make.set_defaults(run=_make_data, when_stopped="nothing was kept of the unfinished folder")
        if kind == "stamps":
            make.add_argument(
                "--backgrounds", type=Path, metavar="DIR", help="photographs to paste objects on"
            )
            make.add_argument(
                "--stamps",
                type=Path,
                metavar="DIR",
                help="cut-outs: PNG files beside .txt captions",
            )
    _add_inspect(kinds)
    _add_pack(kinds)
    answers = kinds.add_parser(
        "answers",
        help="make the list of answers of the published VQA head",
        description="Make the list of answers of the published VQA head, for --answers, from"
        " VQAv2's v2_mscoco_train2014_annotations.json and v2_mscoco_val2014_annotations.json, or"
        " from the published vqav2_train.arrow and vqav2_val.arrow.",
    )
    answers.add_argument("source", type=Path, metavar="DIR", help="folder with the two files")
    answers.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="JSON list to write"
    )
    answers.set_defaults(run=_make_answers)


def _add_inspect(kinds: argparse._SubParsersAction) -> None:
    inspect = kinds.add_parser(
        "inspect",
        help="count what data hold and find broken files",
        description="Read everything that a folder or a file holds, decode every picture, and say"
        " what is there: records, lengths of texts, boxes, sizes of pictures, broken files, and"
        " pictures of other sizes than their annotations say. Exit code 1 if there are faults.",
    )
    inspect.add_argument("source", type=Path, metavar="SOURCE", help=_SOURCE)
    inspect.add_argument("--split", metavar="S", help="look into these alone, as in train+val")
    inspect.add_argument(
        "--sheet", type=Path, metavar="FILE", help="draw some pictures with their boxes and texts"
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)


def _add_pack(kinds: argparse._SubParsersAction) -> None:
    pack = kinds.add_parser(
        "pack",
        help="write data as tar shards with an index",
        description="Write everything that a folder or a file holds as WebDataset shards, and"
        " beside them an index from which every record is read as it was, in any order. The folder"
        " can stand in place of the data it was made of.",
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help=_SOURCE)
    pack.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    pack.add_argument("--split", metavar="S", help="pack these alone, as in train+val")
    pack.add_argument(
        "--shard-size",
        type=byte_count,
        default="256MB",
        metavar="SIZE",
        help="of a tar file at most (default: 256MB)",
    )
    pack.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: leave out records whose pictures are missing and boxes that do not fit, and"
        " count them (default: raise)",
    )
    pack.set_defaults(run=_pack, when_stopped="nothing was kept of the unfinished folder")


def _make_data(options: argparse.Namespace) -> int:
    from fiber.progress import ImageProgress

    module = importlib.import_module(f"fiber.data.{options.kind}")
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

    left_out: list[str] = []
    packed = pack(
        options.source,
        options.output,
        splits=options.split.split("+") if options.split else (),
        shard_bytes=options.shard_size,
        on_error=options.on_error,
        progress=ImageProgress(),
        tell=left_out.append,
    )
    for line in left_out[:_NAMED]:
        print(f"fiber: left out: {line}", file=sys.stderr)
    if len(left_out) > _NAMED:
        print(f"fiber: left out: and {len(left_out) - _NAMED} more", file=sys.stderr)
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
    for line in found.told:
        print(f"fiber: {line}", file=sys.stderr)
    print(options.output)
    return 0
