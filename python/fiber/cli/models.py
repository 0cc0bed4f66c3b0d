"""Choose a command's default model.

This is the newest finished model under runs/ with the required head, or else the model in the
package.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiber.inference import Model
    from fiber.runtime import GraphModel
    from fiber.runtime.graphs import Engine

#: Default folder of the runs of `fiber train` and `fiber demo`.
RUNS = Path("runs")
#: Name of the default model in the package.
PACKAGED = "scenes"
#: Libraries that run exported graphs, by the value of `--runtime`.
RUNTIMES: dict[str, Engine] = {"onnx": "onnxruntime", "openvino": "openvino"}
#: Maximum number of models to list in an error.
_MAX_LISTED = 5


def choose_model(named: str | None, *heads: str) -> str:
    """Return the value of `--model` or, by default, a model with one of `heads`.

    Raises:
        FileNotFoundError: if neither a finished model nor the model in the package has any of them.
    """
    # Imported late, since it needs torch, which takes seconds to import.
    from fiber.checkpoints.hub.names import hub_name
    from fiber.checkpoints.stages import model_path, packaged_model, packaged_name, stage_with

    if named is not None:
        found = model_path(named)
        if (remote := hub_name(found)) is not None:
            print(f"fiber: using {remote}", file=sys.stderr)
            return str(remote)
        if packaged_name(found):
            _print_packaged(named, ", so that its output for a photograph is a guess")
        return named
    packaged = packaged_model(PACKAGED)
    found = list(finished_models(RUNS))
    fitting = [(when, folder) for when, folder, own in found if not set(heads).isdisjoint(own)]
    if not fitting and stage_with(packaged, heads) != packaged:
        _print_packaged(PACKAGED, "; pass --model for another")
        return PACKAGED
    if not fitting:
        have = "; ".join(f"{folder} has {', '.join(own)}" for _, folder, own in found[:_MAX_LISTED])
        more = f"; and {len(found) - _MAX_LISTED} more" * (len(found) > _MAX_LISTED)
        raise FileNotFoundError(
            "pass --model, such as a released file with the head"
            f" {' or '.join(map(repr, heads))} (docs/photographs.md says where they are), or train"
            f" one with `fiber train`: no finished model in {RUNS}/ has it"
            f" ({have or 'no model found'}{more}), nor has {PACKAGED!r}, the model in the package"
        )
    _, newest = max(fitting)
    print(
        f"fiber: using {newest}, the newest model in {RUNS}/; pass --model for another, such as"
        f" {PACKAGED!r}, the one in the package",
        file=sys.stderr,
    )
    return str(newest)


def _print_packaged(name: str, more: str) -> None:
    print(
        f"fiber: using the model in the package, {name!r}, which knows only drawings of colored"
        f" shapes{more}",
        file=sys.stderr,
    )


def load_quietly(path: str, **settings: Any) -> Model:
    """Load a model without the warning of the model in the package, of which a line is printed."""
    from fiber.inference.load import KNOWN_LIMITS, load

    KNOWN_LIMITS.add(PACKAGED)
    return load(path, **settings)


def load_graphs(
    named: str | None,
    runtime: str | None,
    settings: Mapping[str, object],
    limits: Mapping[str, Any],
) -> GraphModel | None:
    """Open the graphs that `--model` names, or return None if it names none.

    Args:
        named: value of `--model`.
        runtime: value of `--runtime`, a key of `RUNTIMES`, or None for the default of the format.
        settings: values of options for networks, which graphs do not take, by name.
        limits: limits of decoding images; see `fiber.data.load_image`.

    Raises:
        ModuleNotFoundError: if the model is no folder of graphs, and torch is not installed.
        ValueError: if `runtime` is given and the model is no folder of graphs, or an option for
            networks is given and it is one. For other errors, see `fiber.runtime.load`.
    """
    from fiber.runtime.loading import has_graphs, load

    if named is None or not has_graphs(named):
        if runtime is not None:
            shown_as = "the default model" if named is None else named
            raise ValueError(
                f"--runtime {runtime} is for exported graphs; {shown_as} has none: write them by"
                " `fiber export MODEL OUT`, and pass --model OUT"
            )
        if importlib.util.find_spec("torch") is None:
            raise ModuleNotFoundError(
                "torch is not installed, so that only exported graphs run; pass --model with a"
                " folder that `fiber export` wrote in an environment of `pip install 'fiber-vl'`",
                name="torch",
            )
        return None
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"--{name} is for networks; {named} has exported graphs, which have their own:"
                f" `fiber export MODEL OUT --{name}` chooses it"
                if name != "device"
                else f"--device is for networks; {named} has exported graphs, which run on the CPU"
            )
    return load(named, None if runtime is None else RUNTIMES[runtime], **limits)


def finished_models(folder: Path) -> Iterator[tuple[float, Path, tuple[str, ...]]]:
    """Yield (modification time, folder, head names) for each finished model in a folder tree.

    Folders with a config.json from a different program are skipped.
    """
    # Imported late, since it needs torch, which takes seconds to import.
    from fiber.checkpoints.model_dir import read_model_config

    seen: set[str] = set()
    # Follow links, since runs may be on a different disk; visit each folder once, even in a cycle.
    for parent, folders, files in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(parent)
        # Checkpoints of a run are not finished models.
        folders[:] = sorted(name for name in folders if name != "checkpoints")
        if real_path in seen:
            folders.clear()
            continue
        seen.add(real_path)
        if {"config.json", "model.safetensors"} <= set(files):
            path = Path(parent)
            try:
                config, _ = read_model_config(path)
            except (ValueError, OSError):
                continue
            yield (path / "model.safetensors").stat().st_mtime, path, config.heads
