"""Arguments of `fiber bench`. The benchmark itself is imported only when it runs."""

from __future__ import annotations

import argparse
import dataclasses

from fiber.cli.arguments import add_options, key_values, pick, semicolon_list
from fiber.cli.models import RUNS

_DESCRIPTION = """
Measure CPU time per image, caption or box, from file to batch, for fiber and every other installed
loader. Each loader runs in its own process. After a warmup round, the loaders take turns. Separate
list items with semicolons.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `bench` to the table of commands."""
    bench = commands.add_parser("bench", help="benchmark the data pipeline against other loaders")
    bench.set_defaults(example="`fiber bench data --quick`")
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    data = kinds.add_parser(
        "data",
        help="measure data pipeline throughput (images, texts, boxes)",
        description=_DESCRIPTION,
    )
    add_options(
        data.add_argument_group("output"),
        {
            "--output DIR": "folder for data.csv (appended to), data.txt and data.png (default:"
            " %(default)s)",
            "--rows FILE": "CSV file to append to (default: data.csv in --output)",
            "--cache DIR": "folder for generated corpora (default: cache in --output)",
            "--list": "list workloads and loaders, and exit",
            "--check": "exit with code 1 if a ratio required for a release is missed or was not"
            " measured (considers only the chosen work and peers)",
        },
        output={"default": RUNS / "bench-data"},
    )
    names = {"type": semicolon_list, "default": ()}
    count = {"default": 0}
    add_options(
        data.add_argument_group("what to measure"),
        {
            "--work NAMES": "kinds of work to measure (default: all)",
            "--corpora NAMES": "corpora to measure (default: all)",
            "--peers NAMES": "loaders to compare against (default: all installed ones)",
            "--python PEER=PATH": "Python interpreter for a peer installed in a different"
            " environment; repeatable",
            "--quick": "use fewer images and two rounds",
            "--threads N": "threads or worker processes per peer (default: one per core)",
            "--rounds N": "measured rounds per peer (default: 5)",
            "--pictures N": "maximum number of images per corpus",
        },
        work={**names, "dest": "kinds"},
        corpora=names,
        peers=names,
        python={"dest": "pythons", "action": "append", "default": []},
        threads=count,
        rounds=count,
        pictures={**count, "dest": "max_images"},
    )
    add_options(
        data.add_argument_group("inputs"),
        {
            "--images DIR": "folder of JPEG files to use unchanged, instead of corpora",
            "--photos DIRS": "folders of photographs to crop into corpora; `debian` downloads"
            " photographs from Debian packages (default: photographs found on this machine)",
            "--captions FILE": "text file with one caption per line (default: generated)",
            "--tokenizer DIR": "tokenizer.json, or a folder that contains it or vocab.json and"
            " merges.txt (default: one trained on generated captions)",
        },
        photos=names,
    )
    data.set_defaults(run=_data, when_stopped="finished rows are in data.csv")


def _data(options: argparse.Namespace) -> int:
    from fiber.benchmarks import data

    options.pythons = key_values(options.pythons, "--python", "PEER=PATH")
    names = [field.name for field in dataclasses.fields(data.Options)]
    chosen = data.Options(**pick(options, *names))
    return data.list_all(chosen) if options.list else data.run(chosen)
