"""Record of a model's training data, used to warn if the model is evaluated on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fiber
from fiber.data.datasets.resolve import has_splits
from fiber.data.storage.remote import is_url
from fiber.data.storage.remote_pack import url_of
from fiber.messages import shown

#: Field of config.json with the absolute path of the data; null for in-memory records.
DATA_PATH = "data_path"
#: Field of config.json of a saved model with the config of the run that trained it.
TRAINING = "training"
#: Field of that config with the two models of which a merged one is made; see `fiber.merge`.
MERGED = "merged"


class TrainedOn(NamedTuple):
    """Training data of a run."""

    #: Absolute path of the folder or file.
    path: str
    #: Split; "+" joins several splits.
    split: str

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> TrainedOn | None:
        """Read the training data from config.json values, or return None if it is not stored."""
        # A model that was saved again has the config of its run under "training".
        config = config.get(TRAINING) or config
        if not isinstance(config, Mapping):
            return None
        path, data = config.get(DATA_PATH), config.get("data")
        split = data.get("split") if isinstance(data, Mapping) else None
        return cls(path, split) if isinstance(path, str) and isinstance(split, str) else None


@contextmanager
def values_of(path: Path | str, config: Mapping[str, Any], where: str = "") -> Iterator[None]:
    """Name a config.json, its field `where` and a newer fiber in errors about its values.

    Raises:
        ValueError: in place of a ValueError or OverflowError of the block.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {where}{error}{newer_version(config)}") from error


def newer_version(config: Mapping[str, Any]) -> str:
    """Return the end of an error about config.json values if a newer fiber wrote them, else ""."""
    written = config.get("fiber_version")
    if not isinstance(written, str) or _numbers(written) <= _numbers(fiber.__version__):
        return ""
    return (
        f"; the file was written by fiber {shown(written)}, which is newer than this one,"
        f" {fiber.__version__}; update it (pip install --upgrade fiber-vl)"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version; those of other texts are empty."""
    found = re.match(r"\d{1,9}(\.\d{1,9}){0,5}", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def absolute(data: str | os.PathLike[str]) -> str:
    """Return the absolute path of a dataset, or its URL."""
    if is_url(data):
        return str(data).rstrip("/")
    return url_of(Path(data)) or str(Path(data).resolve())


def seen_before(
    trained: TrainedOn | None, source: str, data: str | os.PathLike[str], split: str
) -> str | None:
    """Check whether a model is evaluated on its training data.

    Args:
        trained: training data, if known.
        source: key of `fiber.data.datasets.registry.SOURCES` for the evaluation data.
        data: folder or file of the evaluation data.
        split: evaluation split; "+" joins several.

    Returns:
        Warning message, or None if the training data is unknown, or the paths or splits differ.
    """
    if trained is None or absolute(data) != trained.path:
        return None
    if not has_splits(source, Path(data), split):
        return (
            f"the model was trained on {data}, which has no splits, so this evaluation uses the"
            ' training images. Add the field "split" ("train" or "val") to every line of the'
            " .jsonl file and retrain, or evaluate on a different file"
        )
    again = [part for part in split.split("+") if part in trained.split.split("+")]
    if not again:
        return None
    return (
        f"the model was trained on split {shown('+'.join(again))} of {data}, so this evaluation"
        " uses training images. Choose a different split (--split, split=...)"
    )
