"""The command `fiber tune`: what it takes, and nothing heavy before it is asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fiber.cli.arguments import count
from fiber.cli.bench import names


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command to the table."""
    tune = commands.add_parser(
        "tune",
        help="tile sizes of the attention kernels for this GPU",
        description="Time a few tile sizes of every attention kernel on this machine's GPU and"
        " write the fastest ones to a table that the kernels read before the package's own, on"
        " GPUs of the same architecture with the same Triton. Takes some minutes, most of them for"
        " compiling. Other sizes add numbers up in another order: the last bits of results may"
        " change. Semicolons separate lists.",
    )
    tune.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the table (default: the one that kernels read, fiber/tiles.json in XDG_CACHE_HOME or"
        " ~/.cache); lines of other GPUs stay",
    )
    tune.add_argument(
        "--print", action="store_true", help="print the lines that were found and write nothing"
    )
    tune.add_argument(
        "--windows",
        type=_windows,
        default=(),
        metavar="SIDES",
        help="sides of windows in tokens (default: 12; 18)",
    )
    tune.add_argument(
        "--dtypes",
        type=names,
        default=("bfloat16",),
        metavar="NAMES",
        help="some of bfloat16, float16, float32 (default: bfloat16)",
    )
    tune.set_defaults(run=_tune, when_stopped="the table is as it was")


def _windows(text: str) -> tuple[int, ...]:
    return tuple(count(each) for each in names(text))


def _tune(options: argparse.Namespace) -> int:
    import torch

    from fiber.atomic_io import check_target, write_file
    from fiber.kernels.runtime import tiles, timer, tune

    unknown = [name for name in options.dtypes if name not in tune.DTYPES]
    if unknown:
        raise ValueError(
            f"--dtypes {'; '.join(unknown)}: expected some of {'; '.join(tune.DTYPES)}"
        )
    refused = tune.refusal()
    if refused is not None:
        raise ValueError(f"fiber tune: {refused}")
    table = options.output or tiles.users_table()
    if not options.print:
        check_target(table)
    # A broken table is told before minutes are spent.
    old = tiles.read(table) if table.is_file() else []
    device = torch.device("cuda", torch.cuda.current_device())
    dtypes = [tune.DTYPES[name] for name in options.dtypes]
    lines = tune.tune(
        tune.all_cases(device, options.windows or tune.WINDOWS, dtypes),
        tune.GpuMeasure(timer.GpuTimer(device)),
        lambda line: print(line, file=sys.stderr, flush=True),
        chip=tiles.architecture(device),
        triton=tiles.triton_minor(),
    )
    if options.print:
        print(tiles.written(lines), end="")
        return 0
    text = tiles.written(tiles.merged(old, lines))
    table.parent.mkdir(parents=True, exist_ok=True)
    write_file(table, lambda part: part.write_text(text, encoding="utf-8"))
    used = "" if options.output is None else f"; kernels read {tiles.users_table()}"
    print(f"{len(lines)} lines in {table}{used}", file=sys.stderr)
    return 0
