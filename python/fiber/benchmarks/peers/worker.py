"""Peer process, which reads a task from standard input, and then one request per epoch.

This module is run as a script, so that the interpreter needs only the peer's packages. Responses
are lines of JSON on standard output; output printed by libraries goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

#: Name of the package under which peer modules are imported.
PACKAGE = "fiber_bench_peers"
#: Number of images from the first batch that are saved for comparison.
SAMPLES = 4


def main() -> None:
    """Serve requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    folder = Path(__file__).parent
    # A module here must not shadow a library of the same name.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    try:
        order = json.loads(sys.stdin.readline())
        task = importlib.import_module(f"{PACKAGE}.task").PeerTask(**order["task"])
        epoch = importlib.import_module(f"{PACKAGE}.{order['module']}").open_peer(task)
        answer(versions=versions(order["distributions"]))
        for line in sys.stdin:
            order = json.loads(line)
            answer(count=_run(epoch, task.repeats, order["epoch"], order["sample"]))
    except Exception as error:
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {error}")


def versions(distributions: list[str]) -> dict[str, str]:
    """Return the versions of the given distributions that are installed."""
    installed = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def _run(epoch: Any, repeats: int, number: int, sample: str) -> int:
    """Run an epoch, and return its number of images or texts."""
    count = 0
    for batch in itertools.chain.from_iterable(epoch(number) for _ in range(repeats)):
        first = batch[0] if isinstance(batch, tuple) else batch
        if sample and not count:
            import numpy as np

            np.save(sample, np.ascontiguousarray(np.asarray(first[:SAMPLES])))
        count += len(first)
    return count


if __name__ == "__main__":
    if sys.argv[1:2] == ["--versions"]:
        print(json.dumps(versions(sys.argv[2:])))
    else:
        main()
