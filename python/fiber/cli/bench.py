"""`fiber bench`: its arguments; the benchmark is imported when it runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from fiber.cli.arguments import key_values, positive_int, semicolon_list
from fiber.cli.models import RUNS


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `bench` to the table of commands."""
    bench = commands.add_parser("bench", help="benchmark the data path against other loaders")
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    data = kinds.add_parser(
        "data",
        help="throughput of the data path: images, texts, boxes",
        description="Measure the CPU time per image, caption or box from file to batch, for fiber"
        " and every other installed loader. Each runs in its own process, interleaved, after one"
        " round of warmup. Lists are separated by semicolons.",
    )
    _add_outputs(data)
    _add_selection(data)
    _add_inputs(data)
    data.set_defaults(run=_data, when_stopped="finished rows are in data.csv")


def _add_outputs(data: argparse.ArgumentParser) -> None:
    group = data.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        default=RUNS / "bench-data",
        metavar="DIR",
        help="directory of data.csv (appended to), data.txt and data.png (default: %(default)s)",
    )
    group.add_argument(
        "--rows", type=Path, metavar="FILE", help="CSV to append to (default: data.csv in --output)"
    )
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="corpora (default: cache in --output)"
    )
    group.add_argument("--list", action="store_true", help="list what can be measured, and exit")
    group.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if a ratio required for a release is missed or was not measured, among"
        " the chosen work and peers",
    )


def _add_selection(data: argparse.ArgumentParser) -> None:
    group = data.add_argument_group("what to measure")
    for option, dest, text in (
        ("--work", "kinds", "kinds of work (default: all)"),
        ("--corpora", "corpora", "corpora (default: all)"),
        ("--peers", "peers", "loaders to compare with (default: all that are installed)"),
    ):
        group.add_argument(
            option, dest=dest, type=semicolon_list, default=(), metavar="NAMES", help=text
        )
    group.add_argument(
        "--python",
        dest="pythons",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="Python interpreter of a peer in another environment; repeatable",
    )
    group.add_argument("--quick", action="store_true", help="fewer images, two rounds")
    for option, text in (
        ("--threads", "threads or worker processes of every peer (default: one per core)"),
        ("--rounds", "rounds of each peer (default: 5)"),
        ("--pictures", "maximum number of images of each corpus"),
    ):
        group.add_argument(option, type=positive_int, default=0, metavar="N", help=text)


def _add_inputs(data: argparse.ArgumentParser) -> None:
    group = data.add_argument_group("inputs")
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="JPEG files to use as they are, not corpora"
    )
    group.add_argument(
        "--photos",
        type=semicolon_list,
        default=(),
        metavar="DIRS",
        help="photographs to build corpora from; `debian` downloads Debian's (default: those found"
        " on this machine)",
    )
    group.add_argument(
        "--captions", type=Path, metavar="FILE", help="one caption per line (default: generated)"
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="tokenizer.json or its directory, or a directory with vocab.json and merges.txt"
        " (default: one trained on the captions)",
    )


def _data(options: argparse.Namespace) -> int:
    from fiber.benchmarks import data

    options.pythons = key_values(options.pythons, "--python", "PEER=PATH")
    names = [field.name for field in dataclasses.fields(data.Options)]
    chosen = data.Options(**{name: getattr(options, name) for name in names})
    return data.list_all(chosen) if options.list else data.run(chosen)
