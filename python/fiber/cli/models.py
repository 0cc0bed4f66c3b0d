"""Which model a command uses when none is named."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fiber.config import FiberConfig
from fiber.config_io import from_dict

#: Where `fiber train` and `fiber demo` put their runs, unless told otherwise.
RUNS = Path("runs")


def choose_model(named: str | None, *heads: str) -> str:
    """Give the named model or, without one, the newest finished run that has one of some heads.

    Args:
        named: what `--model` says, or None.
        heads: those of which the command needs one, as in `FiberConfig.heads`.

    Raises:
        FileNotFoundError: if no finished run has any of them.
    """
    if named is not None:
        return named
    found = list(finished_models(RUNS))
    fitting = [(when, folder) for when, folder, own in found if not set(heads).isdisjoint(own)]
    if not fitting:
        have = "; ".join(f"{folder} has {', '.join(own)}" for _, folder, own in found)
        raise FileNotFoundError(
            f"no finished model under {RUNS}/ has the head {' or '.join(map(repr, heads))}"
            f" ({have or 'there is none at all'}); name one with --model,"
            " or train one with `fiber demo` or `fiber train`"
        )
    _, newest = max(fitting)
    print(f"fiber: using the model {newest}", file=sys.stderr)
    return str(newest)


def finished_models(folder: Path) -> Iterator[tuple[float, Path, tuple[str, ...]]]:
    """List the finished models below a folder: time of writing, folder, names of the heads.

    A folder whose config.json is not ours is passed over: it is somebody else's.
    """
    seen: set[str] = set()
    # Runs may lie on another disk, behind a link; one that leads back is followed once.
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        # The checkpoints of a run are no finished models, however new.
        folders[:] = sorted(name for name in folders if name != "checkpoints")
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        if {"config.json", "model.safetensors"} <= set(files):
            path = Path(parent)
            try:
                values = json.loads((path / "config.json").read_text(encoding="utf-8"))
                config = from_dict(FiberConfig, values["model"])
            except (ValueError, KeyError, TypeError):
                continue
            yield (path / "model.safetensors").stat().st_mtime, path, config.heads
