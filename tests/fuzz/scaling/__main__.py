"""Count the work of every reader for many entries and for long values at every place.

Command: python -m tests.fuzz.scaling [--every N] [KIND ...]
The exit code is 1 if work grows faster than linearly. All cases take an hour; `make test` counts a
few hundred of them.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from pathlib import Path

import torch

from tests.fuzz.generated import cases
from tests.fuzz.scaling.growth import check


def main(arguments: list[str] | None = None) -> int:
    """Count work and print what grows too much; return the exit code."""
    kinds = list(dict.fromkeys(document.kind for document in cases.documents()))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(kinds)}")
    parser.add_argument("--every", type=int, default=1, help="count only each Nth case")
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - set(kinds):
        parser.error(f"unknown kind {min(unknown)!r}; expected some of {', '.join(kinds)}")
    torch.set_num_threads(1)
    # Garbage collection in a child would copy every page of the objects that exist here.
    gc.freeze()
    found = False
    for document in cases.documents():
        if options.kinds and document.kind not in options.kinds:
            continue
        chosen = list(cases.growing_cases(document))[:: options.every]
        with tempfile.TemporaryDirectory() as folder:
            problems = list(check(chosen, Path(folder)))
        print(f"{document.kind} {document.name}: {len(chosen)} cases", flush=True)
        for case, problem in problems:
            found = True
            print(f"  {case.name}: {problem}", flush=True)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
