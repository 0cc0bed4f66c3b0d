"""The command `fiber bench`: what it takes, and nothing heavy before it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from fiber.cli.arguments import count
from fiber.cli.models import RUNS


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command to the table."""
    bench = commands.add_parser("bench", help="measure fiber beside what else is installed")
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    data = kinds.add_parser(
        "data",
        help="throughput of the data path: pictures, texts, boxes",
        description="Measure how much CPU time a picture, a caption or a box costs on its way into"
        " a batch, with fiber and with every other loader that is installed: each in a process of"
        " its own, in turns, after one pass that is not counted. Semicolons separate lists.",
    )
    data.add_argument(
        "--output",
        type=Path,
        default=RUNS / "bench-data",
        metavar="DIR",
        help="for data.csv (rows are added), data.txt, data.png (default: %(default)s)",
    )
    data.add_argument(
        "--rows", type=Path, metavar="FILE", help="add rows here (default: data.csv in --output)"
    )
    data.add_argument(
        "--cache", type=Path, metavar="DIR", help="for corpora (default: cache in --output)"
    )
    data.add_argument("--list", action="store_true", help="say what can be measured, with whom")
    data.add_argument(
        "--work", type=names, default=(), metavar="KINDS", help="kinds of work (default: all)"
    )
    data.add_argument(
        "--corpora", type=names, default=(), metavar="NAMES", help="corpora (default: all)"
    )
    data.add_argument(
        "--peers", type=names, default=(), metavar="NAMES", help="beside fiber (default: all)"
    )
    data.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter of a peer that lives in another environment; may be repeated",
    )
    data.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="measure on these JPEG files as they are, instead of corpora",
    )
    data.add_argument(
        "--photos",
        type=names,
        default=(),
        metavar="DIRS",
        help="photographs that corpora are cut out of; the word debian fetches Debian's (default:"
        " what is found on this machine)",
    )
    data.add_argument(
        "--captions", type=Path, metavar="FILE", help="texts, one a line (default: drawn ones)"
    )
    data.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer.json, or a folder with it or with vocab.json and merges.txt (default: one"
        " trained on the captions)",
    )
    data.add_argument(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="threads or worker processes of every peer (default: one for each core)",
    )
    data.add_argument(
        "--rounds",
        type=count,
        default=0,
        metavar="N",
        help="turns of each peer (default: 5)",
    )
    data.add_argument(
        "--pictures", type=count, default=0, metavar="N", help="of each corpus, at most"
    )
    data.add_argument("--quick", action="store_true", help="fewer pictures, two rounds")
    data.add_argument(
        "--check",
        action="store_true",
        help="exit code 1 if a ratio that a release must reach is missed or not measured, of the"
        " works and peers chosen",
    )
    data.set_defaults(run=_data, when_stopped="lines that were finished stand in data.csv")


def names(text: str) -> tuple[str, ...]:
    """Split a list at its semicolons.

    Raises:
        argparse.ArgumentTypeError: if there is nothing in it.
    """
    found = tuple(name.strip() for name in text.split(";") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError("expected one or more names, separated by semicolons")
    return found


def _data(options: argparse.Namespace) -> int:
    from fiber.benchmarks import data

    chosen = data.Options(
        output=options.output,
        rows=options.rows,
        cache=options.cache,
        kinds=options.work,
        corpora=options.corpora,
        peers=options.peers,
        images=options.images,
        photos=options.photos,
        captions=options.captions,
        tokenizer=options.tokenizer,
        pythons=dict(_pair(text) for text in options.python),
        threads=options.threads,
        rounds=options.rounds,
        pictures=options.pictures,
        quick=options.quick,
        check=options.check,
    )
    return data.list_all(chosen) if options.list else data.run(chosen)


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"--python {text!r} is no pair; expected PEER=PATH")
    return name, path
