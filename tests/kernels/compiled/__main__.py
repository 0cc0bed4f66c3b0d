"""`python -m tests.kernels.compiled`: resources of the compiled kernels, and their gates.

The exit code is 1 if a gate fails, else 0. Results are cached by source hash in target/kernels-aot;
without a cache, all cases take a long time. `--quick` compiles only the cases used in tests.
"""

from __future__ import annotations

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Print one line per kernel, case and chip, then the failed gates."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.compiled", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the cases of the tests")
    parser.add_argument("--write", action="store_true", help="update registers.csv")
    options = parser.parse_args(arguments)
    # Triton reads the variable when a kernel is decorated; interpreted kernels do not compile.
    os.environ["TRITON_INTERPRET"] = "0"
    from tests.kernels.compiled import cases, gates, resources
    from tests.kernels.compiled.compile import CHIPS

    failures: list[str] = []
    print(gates.RESOURCES_HEAD)
    for case in cases.quick_cases() if options.quick else cases.all_cases():
        found, rows = gates.check_resources([case], CHIPS.values(), _show)
        if options.write:
            # After each case, so that an interrupted run keeps its results.
            resources.write_table(rows)
            found = [failure for failure in found if resources.WRITE not in failure]
        failures += found
    print()
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(failures)} gates failed" if failures else "all gates hold")
    return 1 if failures else 0


def _show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
