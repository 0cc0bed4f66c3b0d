"""`fiber tune`: find the fastest tile sizes of the attention kernels on this GPU."""

from __future__ import annotations

import argparse
import sys

from fiber.cli.arguments import add_options, positive_int, semicolon_list

_DESCRIPTION = """
Time tile sizes for every attention kernel on this machine's GPU and write the fastest ones to a
table. Kernels prefer this table to the package's own, on GPUs of the same architecture with the
same Triton version. Tuning takes a few minutes, mostly for compilation. Different tile sizes change
the order of summation, so the last bits of results may change. Separate list items with semicolons.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `tune` to the table of commands."""
    tune = commands.add_parser(
        "tune",
        help="tune the tile sizes of the attention kernels for this GPU",
        description=_DESCRIPTION,
    )
    add_options(
        tune,
        {
            "--output FILE": "table to update; entries for other GPUs are kept (default: the table"
            " that kernels read, fiber/tiles.json in XDG_CACHE_HOME or ~/.cache)",
            "--print": "print the table entries instead of writing them",
            "--windows SIDES": "window side lengths in tokens (default: 12; 18)",
            "--dtypes NAMES": "dtypes to tune: bfloat16, float16 or float32 (default: bfloat16)",
        },
        windows={"type": _windows, "default": ()},
        dtypes={"type": semicolon_list, "default": ("bfloat16",)},
    )
    tune.set_defaults(run=_tune, when_stopped="the table is unchanged")


def _windows(text: str) -> tuple[int, ...]:
    return tuple(positive_int(size) for size in semicolon_list(text))


def _tune(options: argparse.Namespace) -> int:
    import torch

    from fiber.atomic_io import check_target, made_folder, write_text
    from fiber.kernels.runtime import tiles, timer, tune

    unknown = [name for name in options.dtypes if name not in tune.DTYPES]
    if unknown:
        raise ValueError(
            f"--dtypes {'; '.join(unknown)}: expected one or more of {'; '.join(tune.DTYPES)}"
        )
    refused = tune.refusal()
    if refused is not None:
        raise ValueError(f"fiber tune: {refused}")
    table = options.output or tiles.users_table()
    if not options.print:
        check_target(table)
    # Fail on an invalid table before tuning for minutes.
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
    with made_folder(table.parent):
        write_text(table, text)
    used = "" if options.output is None else f"; kernels read {tiles.users_table()}"
    print(f"{len(lines)} entries written to {table}{used}", file=sys.stderr)
    return 0
