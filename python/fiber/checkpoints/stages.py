"""Find models by name, and folders with one model per stage."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from fiber.atomic_io import read_json
from fiber.checkpoints.hub.names import SCHEME, parse_hub_name, short_hub_name
from fiber.checkpoints.hub.transfer import download
from fiber.checkpoints.model_dir import A_MODEL, RELEASED, STAGES, read_model_config
from fiber.checkpoints.torch_file import SUFFIXES
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES
from fiber.data.image_file import check_not_url
from fiber.messages import printable, shown

#: Names of the models in the package, and what they know.
PACKAGED = {"scenes": "drawings of colored shapes"}
#: Names of folders here that are never taken for a user of the Hub, even before they exist.
_LOCAL = ("runs", *PACKAGED)
#: Maximum number of names of a folder that are compared with a misspelled one.
_MAX_NEIGHBORS = 1000


class PackagedModelWarning(UserWarning):
    """A model in the package knows little of the world."""


def packaged_model(name: str) -> Path:
    """Return the folder of a model in the package."""
    return Path(str(files("fiber") / "packaged" / name))


def packaged_name(path: Path) -> str | None:
    """Return the name of the model in the package that is at this path, or None."""
    return next((name for name in PACKAGED if packaged_model(name) in (path, *path.parents)), None)


def packaged_path_name(path: Path) -> str | None:
    """Return the name and the stage of a model in the package ("scenes/coarse"), or None."""
    name = packaged_name(path)
    return (
        None if name is None else (Path(name) / path.relative_to(packaged_model(name))).as_posix()
    )


def model_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a model, which may be the name of one in the package or on the Hub.

    Names in the package are "scenes", for both stages, and "scenes/coarse" and "scenes/fine". A
    model in a folder of that name takes precedence. A model on the Hub is downloaded; its name is
    hf://user/name, or user/name unless that may be a path of this machine (see `short_hub_name`).

    Raises:
        FileNotFoundError: if the model is not on the Hub, or the Hub cannot be reached.
        ValueError: if `path` is a URL.
    """
    if (remote := parse_hub_name(path)) is not None:
        return download(remote, check_not_transformers)
    check_not_url(path, "model")
    found = Path(path)
    name = found.parent.as_posix() if found.name in STAGES else found.as_posix()
    is_model = found.is_file() or _is_model(found) or bool(stage_folders(found))
    if name in PACKAGED and not is_model:
        return packaged_model(name) / found.relative_to(name)
    if isinstance(path, str) and not os.path.lexists(found):
        remote = short_hub_name(path, _LOCAL)
        if remote is not None:
            return download(remote, check_not_transformers)
    return found


def describe_missing(path: Path) -> str:
    """Say that a model does not exist, and what to pass instead."""
    missing = f"model {printable(os.fspath(path), 240)} does not exist"
    if path.parts[:1] == ("~",):
        return f"{missing}, as '~' is not expanded; pass the whole path (os.path.expanduser)"
    if path.as_posix() in STAGES:
        names = (f"'{name}/{path}'" for name in PACKAGED)
        return f"{missing}; did you mean {' or '.join(names)}, of the model in the package?"
    if close := difflib.get_close_matches(path.as_posix(), PACKAGED, n=1):
        return f"{missing}; did you mean {close[0]!r}, the model in the package?"
    neighbors = itertools.islice(
        path.parent.iterdir() if path.parent.is_dir() else (), _MAX_NEIGHBORS
    )
    names = [each.name for each in neighbors if each.is_dir() or each.suffix in SUFFIXES]
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"{missing}; did you mean {printable(os.fspath(path.with_name(close[0])), 240)}?"
    if path.suffix in SUFFIXES:
        return f"{missing}; pass the path of {RELEASED}"
    packaged = ", ".join(map(repr, PACKAGED))
    return (
        f"{missing}; {A_MODEL}, {packaged}, the model in the package, or {SCHEME}user/name, one on"
        " the Hugging Face Hub"
    )


def check_not_transformers(folder: Path) -> None:
    """Raise ValueError if a folder is that of a model of the transformers library."""
    config = folder / "config.json"
    values = read_json(config, MAX_JSON_BYTES) if config.is_file() else None
    if isinstance(values, dict) and "model_type" in values and "model" not in values:
        raise ValueError(
            f"{folder} is a transformers model of type {shown(values['model_type'])}, which this"
            " package does not run; pass a model of FIBER or METER, such as a released file"
            " (docs/photographs.md says where they are). Encoders of transformers (Swin, CLIP,"
            " RoBERTa and BERT) can start a training, as --init"
        )


def stage_folders(folder: Path) -> dict[str, Path]:
    """Return the model folder of each stage by name; empty if `folder` has none or is a model."""
    if _is_model(folder):
        return {}
    return {stage: folder / stage for stage in STAGES if _is_model(folder / stage)}


def stage_with(path: Path, heads: Collection[str]) -> Path:
    """Return the stage of a folder whose model has one of `heads`, or `path` if there is none."""
    for stage in stage_folders(path).values():
        config, _ = read_model_config(stage)
        if not set(heads).isdisjoint(config.heads):
            return stage
    return path


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
