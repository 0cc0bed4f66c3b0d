"""Compare the masks of phrases with two baselines that need no training.

Command: python benches/evidence_masks.py runs/evidence_masks
         python benches/evidence_masks.py runs/evidence_masks --page
Rows: results/evidence_masks.csv, one per seed. Seeds that have a row are skipped. The data are
generated, or reused if the folder contains the same. `--page` writes the table of
docs/segmentation.md from the rows.

A run trains `scenes_fine`, then `scenes_fine_masks` from it, and grounds the referring expressions
of both held-out splits. Baselines are of the same boxes: the box filled in, and the pixels of the
box whose color is near that of its center. The distance is the best of `DISTANCES` on train.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from experiments import SPLITS, Rows, cpu_seconds, run_all
from numpy.typing import NDArray

import fiber
from fiber.config_io import replace_fields
from fiber.data import decode_masks, sources
from fiber.data.image import load_image
from fiber.data.record import Record
from fiber.demo.measures import sample
from fiber.evaluation.evaluate import evaluate
from fiber.inference import Model
from fiber.metrics.regions import phrase_areas, phrase_mask_metrics
from fiber.synthetic.scenes import generate
from fiber.training.config.run import load_recipe
from fiber.training.train import train

SEEDS = (0, 1, 2)
IMAGES = {"train": 6000, "val": 600, "novel": 600}
#: Expressions that are grounded in each held-out split, and on train, for the distance.
EXPRESSIONS, FITTED = 1500, 500
#: Euclidean distances between colors, of values from 0 to 255.
DISTANCES = (5, 10, 15, 20, 30, 40, 60, 80, 110, 150)
#: Images that are grounded at once.
_AT_ONCE = 50
#: Where the table is, between two lines.
PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"
START, END = "<!-- masks of boxes: from here -->", "<!-- masks of boxes: to here -->"
#: What a row of the table shows: title, column of the CSV without split, digits.
TABLE = (
    ("mask of the model", "model_ciou"),
    ("box, filled in", "box_ciou"),
    ("pixels of the box with the color of its center", "color_ciou"),
)

Mask = NDArray[np.bool_]
#: Pixels of the found and the true mask in common, and of either, of each expression.
Areas = list[tuple[int, int]]


def filled_box(box: Sequence[float], height: int, width: int) -> Mask:
    """Return the (H, W) mask of the pixels whose centers are in a box."""
    x0, y0, x1, y1 = box
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((y0 <= rows) & (rows < y1))[:, None] & ((x0 <= columns) & (columns < x1))


def color_distances(pixels: NDArray[np.uint8], box: Sequence[float]) -> NDArray[np.float64]:
    """Return the (H, W) distance of each pixel's color from that of the center of a box."""
    height, width = pixels.shape[:2]
    column = min(max(int((box[0] + box[2]) / 2), 0), width - 1)
    row = min(max(int((box[1] + box[3]) / 2), 0), height - 1)
    difference = pixels.astype(np.float64) - pixels[row, column]
    return np.sqrt((difference**2).sum(2))


def records_with_masks(folder: Path, split: str, limit: int) -> list[Record]:
    """Sample expressions whose object is visible, and so has a mask."""
    read = sources.referring(folder, split, masks=True)
    return sample([record for record in read if record.masks], limit)


def areas_of(
    model: Model, records: Sequence[Record], distances: Sequence[float]
) -> dict[str | float, Areas]:
    """Compare masks with the true ones: "model", "box", and for each distance."""
    areas: dict[str | float, Areas] = {name: [] for name in ("model", "box", *distances)}
    for start in range(0, len(records), _AT_ONCE):
        some = records[start : start + _AT_ONCE]
        images = [record.images[0] for record in some]
        phrases = [[(record.char_spans[0])] for record in some]
        found = model.ground(
            images, caption=[record.text for record in some], spans=phrases, masks=True
        )
        for record, image, own in zip(some, images, found, strict=True):
            height, width = own.image_size
            true = decode_masks((record.masks[record.box_masks[0]],), height, width)[0]
            if not len(own) or own.masks is None:
                raise RuntimeError(f"{record.key}: no box was found")
            box = own.boxes_xyxy[0].tolist()
            filled, near = filled_box(box, height, width), color_distances(load_image(image), box)
            areas["model"].append(phrase_areas(own.masks[0], true))
            areas["box"].append(phrase_areas(filled, true))
            for distance in distances:
                areas[distance].append(phrase_areas(filled & (near <= distance), true))
    return areas


def best_distance(model: Model, records: Sequence[Record]) -> float:
    """Return the distance with the highest cIoU."""
    areas = areas_of(model, records, DISTANCES)
    return max(DISTANCES, key=lambda each: phrase_mask_metrics(areas[each])["ciou"])


def run(
    folder: Path, seed: int, steps: dict[str, int], expressions: int, fitted: int
) -> list[dict[str, Any]]:
    """Train and measure the models of a seed; return its row."""
    began = cpu_seconds()
    with tempfile.TemporaryDirectory() as output:
        found: dict[str, Model] = {}
        for name, start in (("scenes_fine", None), ("scenes_fine_masks", "scenes_fine")):
            changes: dict[str, Any] = {"train.seed": seed, "train.checkpoint_every": 0}
            if name in steps:
                changes["train.steps"] = steps[name]
            train(
                replace_fields(load_recipe(name), changes),
                data=folder,
                init=None if start is None else Path(output) / start,
                output=Path(output) / name,
                threads=1,
                quiet=True,
                device="cpu",
            )
            found[name] = fiber.load(Path(output) / name, device="cpu")
    plain, masked = found["scenes_fine"], found["scenes_fine_masks"]
    distance = best_distance(masked, records_with_masks(folder, "train", fitted))
    row: dict[str, Any] = {"seed": seed, "distance": distance}
    for split in SPLITS:
        records = records_with_masks(folder, split, expressions)
        areas = areas_of(masked, records, (distance,))
        for title, name in (("model", "model"), ("box", "box"), ("color", distance)):
            metrics = phrase_mask_metrics(areas[name])
            for metric in ("ciou", "miou"):
                row[f"{title}_{metric}/{split}"] = f"{metrics[metric]:.4f}"
        for title, model in (("plain", plain), ("masked", masked)):
            accuracy = evaluate(model, "refcoco", records)["accuracy_at_1"]
            row[f"{title}_accuracy/{split}"] = f"{accuracy:.4f}"
    row["cpu_seconds"] = f"{cpu_seconds() - began:.0f}"
    return [row]


def table(rows: Sequence[dict[str, str]]) -> str:
    """Write the table of the page: means over seeds, and standard deviations."""

    def cell(column: str) -> str:
        values = [float(row[column]) for row in rows]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        return f"{mean(values):.3f}{spread}"

    lines = ["| cIoU of masks | val | novel |", "|---|---|---|"]
    for title, column in TABLE:
        lines.append(f"| {title} | {' | '.join(cell(f'{column}/{split}') for split in SPLITS)} |")
    accuracies = [
        f"{title} {' and '.join(cell(f'{name}_accuracy/{split}') for split in SPLITS)}"
        for title, name in (("with masks", "masked"), ("without", "plain"))
    ]
    seeds = f"{len(rows)} seeds" if len(rows) > 1 else "one seed"
    lines += ["", f"Accuracy of boxes, {seeds}: {', '.join(accuracies)} on val and novel."]
    return "\n".join(lines)


def write_page(rows: Sequence[dict[str, str]]) -> None:
    """Replace the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Train and measure all seeds that have no row yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=2.0, help="budget of all rows")
    parser.add_argument("--page", action="store_true", help="write the table from the rows")
    options = parser.parse_args()
    rows = Rows("evidence_masks", ("seed",))
    if options.page:
        write_page(rows.rows)
        return
    generate(options.data, **IMAGES, workers=options.workers)
    runs = [
        {
            "folder": options.data,
            "seed": seed,
            "steps": {},
            "expressions": EXPRESSIONS,
            "fitted": FITTED,
        }
        for seed in options.seeds
    ]
    run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
