"""`python -m tests.kernels.compiled [resources|instructions|bytes]`: tables, and their gates.

Exit code 1 if a gate fails, 0 if all hold. Compiles what the cache of earlier runs does not hold,
which takes long for all resources the first time; `--quick` leaves most of them out.
"""

from __future__ import annotations

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Print what is asked for, everything by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.compiled", description=__doc__)
    tables = ("resources", "instructions", "bytes")
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(tables))
    parser.add_argument("--quick", action="store_true", help="resources of the gated calls alone")
    parser.add_argument("--write", action="store_true", help="take what is printed over")
    options = parser.parse_args(arguments)
    unknown = set(options.tables) - set(tables)
    if unknown:
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    # Triton reads the variable when a kernel is decorated; interpreted kernels do not compile.
    os.environ["TRITON_INTERPRET"] = "0"
    from tests.kernels.compiled import cases, gates, resources
    from tests.kernels.compiled.compile import CHIPS

    failures: list[str] = []
    wanted = options.tables or list(tables)
    if "resources" in wanted:
        chosen = cases.quick_cases() if options.quick else cases.all_cases()
        print(gates.RESOURCES_HEAD)
        for case in chosen:
            report, rows = gates.resources_report([case], CHIPS.values(), _show)
            if options.write:
                # Case by case: what is done stays done.
                resources.write_table(rows)
                report.failures = [one for one in report.failures if resources.WRITE not in one]
            failures += report.failures
    for name, make in (("instructions", gates.instructions_report), ("bytes", gates.bytes_report)):
        if name in wanted:
            report = make()
            print("", *report.lines, sep="\n", flush=True)
            failures += report.failures
    print()
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(failures)} gates failed" if failures else "all gates hold")
    return 1 if failures else 0


def _show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
