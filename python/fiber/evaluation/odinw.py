"""ODinW: COCO's AP of each of thirteen small data sets, and their average."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.checkpoints.model_dir import StoredModel
from fiber.data.datasets.odinw import ODINW_13, find_set, open_set, published_words
from fiber.data.datasets.resolve import existing_data
from fiber.data.prompts.classes import ClassName
from fiber.evaluation.evaluate import evaluate


def evaluate_odinw(
    model: StoredModel,
    *,
    data: Any,
    split: str = "test",
    output: str | os.PathLike[str] | None = None,
    classes: Mapping[str, Sequence[ClassName]] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Measure a model on the sets of ODinW-13 that are there.

    Args:
        model: as for `evaluate`.
        data: the folder that holds the sets: see `fiber.data.datasets.odinw`.
        split: of every set; results are reported on "test".
        output: a folder for the result files, one for each set.
        classes: what the prompt of a set says for its classes; for sets that are not named,
            the published words.
        options: of `evaluate`.

    Returns:
        "NAME/ap", "NAME/ap50" and so on of each set, and the mean over the sets of their APs: "ap"
        if all thirteen are there. If some are missing, a warning names them and the mean is called
        "ap_of_N_of_13", so that it is not taken for the whole.

    Raises:
        FileNotFoundError: if no set is there.
        TypeError: if the data are no folder.
        ValueError: for words of a set that does not exist, or as `evaluate`.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise TypeError(f"task 'odinw': data is a {type(data).__name__}; expected a folder of sets")
    root, words = existing_data(data), dict(classes or {})
    for name in words:
        if name not in ODINW_13:
            raise ValueError(f"classes for {name!r}; expected one of {', '.join(ODINW_13)}")
    found = {name: find_set(root, name, split) for name in ODINW_13}
    missing = [name for name, place in found.items() if place is None]
    if len(missing) == len(ODINW_13):
        first, example = next(iter(ODINW_13.items()))
        raise FileNotFoundError(
            f"{root} holds none of the thirteen sets of ODinW with split {split!r}; expected, for"
            f" {first}, {example.folder}/{split}/annotations_without_background.json there"
        )
    if missing:
        warnings.warn(
            f"task 'odinw': {len(missing)} of 13 sets are not in {root} with split {split!r}:"
            f" {', '.join(missing)}; the average is of the others",
            RuntimeWarning,
            stacklevel=2,
        )
    numbers: dict[str, float] = {}
    values = []
    for name in (name for name in ODINW_13 if name not in missing):
        records = open_set(root, name, split)
        assert records is not None
        own = evaluate(
            model,
            "coco",
            data=records,
            output=None if output is None else Path(output) / f"{name}.json",
            classes=words.get(name) or published_words(name),
            **options,
        )
        values.append(own["ap"])
        numbers |= {f"{name}/{key}": value for key, value in own.items()}
    average = "ap" if not missing else f"ap_of_{len(values)}_of_{len(ODINW_13)}"
    return {average: sum(values) / len(values), **numbers}
