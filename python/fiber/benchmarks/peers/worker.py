"""One peer in a process of its own: a task on standard input, then one line for each epoch.

Run by its path, so that the interpreter needs nothing but Python and the peer. Answers are lines of
JSON on what was standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

#: Name under which the peers' modules are imported here.
PACKAGE = "fiber_bench_peers"
#: Pictures of the first batch that are handed out to be compared.
SAMPLES = 4


def main() -> None:
    """Answer orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    folder = Path(__file__).parent
    # A module of a peer must not be found in place of the library whose name it may share.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    try:
        order = json.loads(sys.stdin.readline())
        task = importlib.import_module(f"{PACKAGE}.task").Task.from_json(order["task"])
        epoch = importlib.import_module(f"{PACKAGE}.{order['module']}").open_peer(task)
        answer(versions=versions(order["distributions"]))
        for line in sys.stdin:
            order = json.loads(line)
            answer(count=_run(epoch, order["epoch"], order["sample"]))
    except Exception as error:
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {error}")


def versions(distributions: list[str]) -> dict[str, str]:
    """Give the installed versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _run(epoch: Any, number: int, sample: str) -> int:
    """Take all batches of an epoch; gives how many pictures or texts came."""
    count = 0
    for batch in epoch(number):
        first = batch[0] if isinstance(batch, tuple) else batch
        if sample and not count:
            _save(sample, first)
        count += len(first)
    return count


def _save(path: str, batch: Any) -> None:
    import numpy as np

    np.save(path, np.ascontiguousarray(np.asarray(batch[:SAMPLES])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--versions"]:
        print(json.dumps(versions(sys.argv[2:])))
    else:
        main()
