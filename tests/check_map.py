"""Compare `fiber map` with single calls of the Python API, for every task, over broken images too.

    python -m tests.check_map --images 3000 --broken 30

Images are generated; the packaged model runs all tasks but "segment", which a small model with
random weights runs. Boxes, scores and embeddings must agree within 1e-5 (boxes: of the longer side
of the image), texts exactly; the broken images must be the errors. Prints a line for each task; the
exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet

import fiber
from fiber.env import usable_cores
from fiber.synthetic.scenes import generate
from tests.models.xdecoder.small_model import CLASSES, STUFF, small_model

#: Largest difference of a number.
TOLERANCE = 1e-5
#: Options of each task.
OPTIONS: dict[str, dict[str, Any]] = {
    "embed": {},
    "caption": {"num_beams": 2},
    "ground": {"phrases": ["a red circle", "the star"]},
    "detect": {"classes": ["circle", "star", "ring"]},
    "answer": {"question": "how many objects are there?", "top_k": 3},
    "match": {"text": "a red circle and a blue star"},
    "segment": {"classes": CLASSES, "stuff": STUFF, "kind": "semantic"},
}


def make_images(folder: Path, images: int, broken: int, seed: int = 0) -> set[str]:
    """Generate images, break some, and return the names of those."""
    generate(folder / "data", train=images, val=1, novel=1, seed=seed, workers=usable_cores())
    draws = random.Random(seed)
    paths = sorted((folder / "data" / "images" / "train").rglob("*.jpg"))
    for number, path in enumerate(chosen := draws.sample(paths, broken)):
        content = path.read_bytes()
        path.write_bytes([b"", b"no image", content[: len(content) // 3]][number % 3])
    return {path.name for path in chosen}


def single(model: Any, task: str, image: str) -> dict[str, Any]:
    """Return the columns of one image by single calls."""
    given = OPTIONS[task]
    if task == "embed":
        return {"embedding": model.embed_images(image)}
    if task == "caption":
        return {"caption": model.caption(image, **given)}
    if task == "match":
        return {"score": model.match(image, given["text"])}
    if task == "answer":
        found = model.answer(image, given["question"], top_k=given["top_k"])
        return {"answers": [a.answer for a in found], "scores": [a.score for a in found]}
    found = getattr(model, task)(image, **given)
    out = {"scores": found.scores, "labels": found.labels, "boxes_xyxy": found.boxes_xyxy}
    return out | ({"areas": found.masks.sum((1, 2))} if task == "segment" else {})


def differences(row: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Name the columns of a row that differ."""
    wrong = []
    for name, value in expected.items():
        if isinstance(value, str) or (
            len(np.shape(value)) and isinstance(value, list) and value and isinstance(value[0], str)
        ):
            is_right = row[name] == value
        else:
            own, other = np.asarray(row[name], float), np.asarray(value, float)
            scale = max(row["height"], row["width"]) if name == "boxes_xyxy" else 1.0
            is_right = own.size == other.size and np.allclose(
                own.reshape(-1), other.reshape(-1), rtol=0, atol=TOLERANCE * scale
            )
        if not is_right:
            wrong.append(name)
    return wrong


def check(
    folder: Path, images: int, broken: int, tasks: Sequence[str], report: Callable[[str], object]
) -> int:
    """Run the tasks over generated images; return the number of failures."""
    names = make_images(folder, images, broken)
    model = fiber.load("scenes", device="cpu")
    segmenter = small_model()
    failures = 0
    for task in tasks:
        own = segmenter if task == "segment" else model
        output = folder / task
        fiber.map(folder / "data" / "images" / "train", task, output, model=own, **OPTIONS[task])
        errors = pyarrow.parquet.read_table(output / "errors.parquet").to_pylist()
        rows = pyarrow.dataset.dataset(output / "rows").to_table().to_pylist()
        wrong = [row["key"] for row in rows if differences(row, single(own, task, row["image"]))]
        found = {Path(error["key"]).name for error in errors if error["reason"]}
        are_right = found == names and len(errors) == broken and len(rows) == images - broken
        failures += len(wrong) + (not are_right)
        report(
            f"{task}: {len(rows)} rows, {len(wrong)} differ {wrong[:3]}; {len(errors)} errors,"
            f" {'those' if are_right else 'not those'} of the {broken} broken images"
        )
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--broken", type=int, default=30)
    parser.add_argument("--tasks", default=",".join(OPTIONS))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "'scenes', the model in the package")
    with tempfile.TemporaryDirectory() as temporary:
        folder, tasks = Path(temporary), options.tasks.split(",")
        failures = check(folder, options.images, options.broken, tasks, print)
    print(f"{failures} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
