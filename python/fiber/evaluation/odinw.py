"""Evaluate ODinW-13: mean COCO AP over thirteen small datasets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiber.data.datasets.odinw import ODINW_13, find_set, open_set, published_words
from fiber.data.datasets.resolve import existing_data
from fiber.data.prompts.classes import ClassName
from fiber.evaluation.context import EvalContext
from fiber.evaluation.tasks import check_classes, open_records, run_task
from fiber.messages import shown


def evaluate_odinw(
    context: EvalContext,
    data: Any,
    split: str = "test",
    classes: Mapping[str, Sequence[ClassName]] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Evaluate a model on the ODinW-13 datasets in a folder.

    Published results are for the split "test". `classes` overrides the published prompt texts of
    the named datasets. `output` is a folder for the predictions, with one file per dataset.

    Returns:
        "NAME/ap", "NAME/ap50" etc. for each dataset, and the mean AP as "ap". If datasets are
        missing, a warning lists them, and the mean is named "ap_of_N_of_13".

    Raises:
        FileNotFoundError: if none of the datasets is found.
        TypeError: if `data` is not a path.
        ValueError: if `classes` names an unknown dataset, or for the reasons listed in `evaluate`.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise TypeError(
            f"task 'odinw': data has type {type(data).__name__}; expected the path of a folder"
        )
    check_classes(context, "coco")
    root, words = existing_data(data), dict(classes or {})
    for name in words:
        if name not in ODINW_13:
            raise ValueError(
                f"classes: unknown dataset {shown(name)}; expected one of {', '.join(ODINW_13)}"
            )
    found = {name: find_set(root, name, split) for name in ODINW_13}
    missing = [name for name, place in found.items() if place is None]
    if len(missing) == len(ODINW_13):
        first, example = next(iter(ODINW_13.items()))
        raise FileNotFoundError(
            f"{root} contains none of the ODinW-13 datasets (split {shown(split)}); expected"
            " files such"
            f" as {example.folder}/{split}/annotations_without_background.json (for {first})"
        )
    if missing:
        warnings.warn(
            f"task 'odinw': {len(missing)} of 13 datasets are missing from {root} (split"
            f" {shown(split)}): {', '.join(missing)}. The mean AP covers only the remaining"
            " datasets",
            RuntimeWarning,
            stacklevel=3,
        )
    metrics: dict[str, float] = {}
    values = []
    for name in (name for name in ODINW_13 if name not in missing):
        records = open_set(root, name, split)
        assert records is not None
        own = run_task(
            replace(context, classes=words.get(name) or published_words(name)),
            "coco",
            open_records(records, "coco", split),
            None if output is None else Path(output) / f"{name}.json",
        )
        values.append(own["ap"])
        metrics |= {f"{name}/{key}": value for key, value in own.items()}
    average = "ap" if not missing else f"ap_of_{len(values)}_of_{len(ODINW_13)}"
    return {average: sum(values) / len(values), **metrics}
