"""Compare the masks of `scenes_pixel` with guesses: PQ, mask AP, and cIoU of phrases.

Command: python benches/segmentation_evidence.py runs/stuff
Rows: results/segmentation_evidence.csv, one per seed, split and arm. Runs with rows are skipped.

Arms: the model; the model on the image of another record; the model asked about another phrase of
the image, which names something else; the class that covers most pixels everywhere; and boxes of
the packaged detector, filled, over the stuff that covers most pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments import SPLITS, Rows, cpu_seconds, run_all

import fiber
from fiber.config_io import replace_fields
from fiber.data.formats.coco_folders import instances
from fiber.data.masks.expressions import expression_masks
from fiber.data.masks.panoptic import panoptic
from fiber.data.record import Record
from fiber.metrics.mask_ap import ScoredMasks, TrueMasks, encode_masks, mask_average_precision
from fiber.metrics.panoptic import FoundSegments, PanopticCounts, TrueSegments
from fiber.metrics.regions import phrase_areas, phrase_mask_metrics
from fiber.synthetic.scenes import generate
from fiber.tasks.segmentation.truth import TrueImage, true_image
from fiber.training.config.run import load_recipe

SEEDS = (0, 1, 2)
IMAGES = {"train": 20000, "val": 500, "novel": 500, "stuff": True}
MODEL, IMAGE, PHRASE = "model", "exchanged images", "exchanged phrases"
LARGEST, BOXES = "largest class", "filled boxes"
#: Evaluation and its metric, by column of the rows.
METRICS = {"pq": ("panoptic", "pq"), "ap": ("instance", "ap"), "ciou": ("refseg", "ciou")}


def exchanged(record: Record) -> Record:
    """Give each phrase the text of the next one that names something else, if there is one."""
    count, named = len(record.phrases), record.phrase_masks
    texts = []
    for at in range(count):
        others = [(at + n) % count for n in range(1, count)]
        other = next((n for n in others if named[n] != named[at]), at)
        texts.append(record.phrases[other])
    return dataclasses.replace(record, phrases=tuple(texts))


def true_segments(truth: TrueImage) -> TrueSegments:
    """Number the true masks from 1."""
    ids = np.zeros(truth.size, np.int32)
    for number, mask in enumerate(truth.masks, 1):
        ids[mask] = number
    return TrueSegments(ids=ids, labels=dict(enumerate(truth.labels.tolist(), 1)))


def guesses(folder: Path, split: str, limit: int) -> dict[str, dict[str, float]]:
    """Return the metrics of the arms without the model."""
    training = panoptic(folder, "train")[:500]
    pixels = Counter[int]()
    for record in training:
        truth = true_image(record, (96, 96))
        for mask, label in zip(truth.masks, truth.labels.tolist(), strict=True):
            pixels[label] += int(mask.sum())
    names, groups = training[0].labels, training[0].label_groups
    is_thing = [group == "thing" for group in groups]
    things = [name for name, own in zip(names, is_thing, strict=True) if own]
    largest = pixels.most_common(1)[0][0]
    stuff = next(label for label, _ in pixels.most_common() if not is_thing[label])
    detector = fiber.load("scenes", device="cpu")
    counts = {arm: PanopticCounts(len(names)) for arm in (LARGEST, BOXES)}
    scored: list[ScoredMasks] = []
    true: list[TrueMasks] = []
    for record in panoptic(folder, split)[:limit]:
        truth = true_image(record, (96, 96))
        real = true_segments(truth)
        everywhere = np.ones(truth.size, np.int32)
        counts[LARGEST].add(FoundSegments(ids=everywhere, labels={1: largest}), real)
        ids, labels, masks, scores = everywhere.copy(), {1: stuff}, [], []
        found = detector.detect(record.images[0], things)
        rows = zip(found.boxes_xyxy, found.labels, found.scores, strict=True)
        for box, name, score in reversed(list(rows)):
            mask = filled(box, truth.size)
            number = len(labels) + 1
            ids[mask] = number
            labels[number] = names.index(name)
            masks.append(mask)
            scores.append(float(score))
        labels = {each: label for each, label in labels.items() if (ids == each).any()}
        counts[BOXES].add(FoundSegments(ids=ids, labels=labels), real)
        of_things = [names.index(name) for name in found.labels][::-1]
        rles = encode_masks(np.array(masks, bool).reshape(-1, *truth.size))
        scored.append(ScoredMasks(rles, scores, of_things))
        own = np.array([is_thing[label] for label in truth.labels], bool)
        true.append(
            TrueMasks(encode_masks(truth.masks[own]), truth.labels[own].tolist(), truth.crowd[own])
        )
    areas: dict[str, list[tuple[int, int]]] = {LARGEST: [], BOXES: []}
    for record in expression_masks(folder, split)[:limit]:
        truth = true_image(record, (96, 96))
        for phrase, mask in zip(record.phrases, truth.phrases, strict=True):
            box = detector.ground(record.images[0], phrase, score_threshold=0.0).boxes_xyxy[:1]
            found_mask = filled(box[0], truth.size) if len(box) else np.zeros(truth.size, bool)
            areas[BOXES].append(phrase_areas(found_mask, mask))
            areas[LARGEST].append(phrase_areas(np.ones(truth.size, bool), mask))
    return {
        arm: {
            "pq": counts[arm].metrics(is_thing)["pq"],
            # The largest class is stuff, which has no instances.
            "ap": mask_average_precision(scored, true)["ap"] if arm == BOXES else 0.0,
            "ciou": phrase_mask_metrics(areas[arm])["ciou"],
        }
        for arm in counts
    }


def filled(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) bool mask of the pixels of a box."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    mask = np.zeros(size, bool)
    mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return mask


def run(folder: Path, seed: int, steps: int, limit: int) -> list[dict[str, Any]]:
    """Train and evaluate one model; return its rows, with those of the guesses."""
    began = cpu_seconds()
    changes: dict[str, Any] = {"train.seed": seed, "train.checkpoint_every": 0}
    if steps:
        changes["train.steps"] = steps
    config = replace_fields(load_recipe("scenes_pixel"), changes)
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as output:
        model = Path(output) / "model"
        fiber.train(config, data=folder, output=model, threads=1, quiet=True, device="cpu")
        trained = cpu_seconds() - began
        for split in SPLITS:
            records = {
                "panoptic": panoptic(folder, split)[:limit],
                "instance": instances(folder, split)[:limit],
                "refseg": expression_masks(folder, split)[:limit],
            }
            for arm in (MODEL, IMAGE, PHRASE):
                found[split, arm] = {}
                for column, (task, metric) in METRICS.items():
                    asked = records[task]
                    if arm == PHRASE:
                        if task != "refseg":
                            continue
                        asked = [exchanged(record) for record in asked]
                    values = fiber.evaluate(model, task, asked, permute_images=arm == IMAGE)
                    found[split, arm][column] = values[metric]
            for arm, values in guesses(folder, split, limit).items():
                found[split, arm] = values
    seconds = (cpu_seconds() - began) / len(found)
    return [
        {
            "seed": seed,
            "split": split,
            "arm": arm,
            "steps": config.train.steps,
            **{name: f"{values[name]:.4f}" if name in values else "" for name in METRICS},
            "train_cpu_seconds": f"{trained:.0f}",
            "cpu_seconds": f"{seconds:.0f}",
        }
        for (split, arm), values in found.items()
    ]


def summary(rows: Sequence[dict[str, str]]) -> None:
    """Print the mean and the standard deviation over the seeds."""
    for split, arm in dict.fromkeys((row["split"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["split"], row["arm"]) == (split, arm)]
        for name in METRICS:
            values = [float(row[name]) for row in own if row[name]]
            if values:
                deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
                print(f"{split:6} {arm:18} {name:5} {np.mean(values):.4f} +- {deviation:.4f}")


def main() -> None:
    """Train and measure all runs that have no rows yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=0, help="0: those of the recipe")
    parser.add_argument("--limit", type=int, default=500, help="records of each split")
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=3.0, help="budget of all rows")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    rows = Rows("segmentation_evidence", ("seed",))
    runs = [
        {"folder": options.data, "seed": seed, "steps": options.steps, "limit": options.limit}
        for seed in options.seeds
    ]
    run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)
    summary(rows.rows)


if __name__ == "__main__":
    main()
