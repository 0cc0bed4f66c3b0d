"""COCO's twelve numbers of a set of COCO val2017's size, from boxes in memory.

Command: python benches/bench_coco_ap.py
Peers: pycocotools, the reference, and faster-coco-eval, which is compiled. 5,000 pictures, 80
classes, 7 true boxes of up to three classes and 100 detections a picture, drawn. Each side starts
from what it takes: the peers from the lists of a results file and the index of an annotation file,
ours from arrays of each picture. The index of the annotations and the drawing are not timed.
Seconds are those of the processor, all threads together, which other work on the machine does not
lengthen. Before, the twelve numbers of all sides are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rows import interleave, refuse_debug_build, report

from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision

PEER = "pycocotools"
CLASSES, TRUTHS, DETECTIONS = 80, 7, 100
#: In the peers' order.
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_at_1", "ar_at_10", "ar_at_100", "ar_small", "ar_medium", "ar_large"),
)


def draw(pictures: int) -> tuple[list[ScoredBoxes], list[TrueBoxes]]:
    """Draw true boxes, and detections near them and anywhere."""
    random = np.random.default_rng(0)
    found, true = [], []
    for _ in range(pictures):
        count = int(random.poisson(TRUTHS))
        boxes = anywhere(random, count)
        # Few classes in a picture, as in photographs.
        kinds = random.integers(0, CLASSES, 3)
        labels = random.choice(kinds, count)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * random.uniform(0.4, 1, count)
        true.append(TrueBoxes(boxes, labels.tolist(), random.random(count) < 0.02, areas))
        near = np.repeat(boxes, 4, axis=0)[:DETECTIONS]
        near = near + random.normal(0, 6, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        far = anywhere(random, DETECTIONS - len(near))
        guessed = np.concatenate(
            [np.repeat(labels, 4)[:DETECTIONS], random.integers(0, CLASSES, len(far))]
        )
        scores = np.concatenate([random.random(len(near)), random.random(len(far)) ** 2])
        found.append(ScoredBoxes(np.concatenate([near, far]), scores, guessed.tolist()))
    return found, true


def anywhere(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw (count, 4) boxes of all sizes."""
    sides = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
    start = random.uniform(0, 1, (count, 2)) * (np.array([640, 480]) - np.minimum(sides, 400))
    return np.concatenate([start, start + sides], axis=1)


def entries(found: list[ScoredBoxes], true: list[TrueBoxes]) -> tuple[dict, list[dict]]:
    """Write the same as an annotation file and a results file."""
    annotations, results = [], []
    for image, (some, own) in enumerate(zip(found, true, strict=True), start=1):
        for box, label, crowd, area in zip(*own, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
                | {"bbox": sides_of(box), "area": float(area), "iscrowd": int(crowd)}
            )
        for box, score, label in zip(*some, strict=True):
            results.append(
                {"image_id": image, "category_id": label + 1, "bbox": sides_of(box)}
                | {"score": float(score)}
            )
    dataset = {
        "info": {},
        "images": [{"id": i + 1, "height": 480, "width": 640} for i in range(len(true))],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
        "annotations": annotations,
    }
    return dataset, results


def sides_of(box: np.ndarray) -> list[float]:
    """(x, y, width, height)."""
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def peer(kind: Any, evaluation: Any, dataset: dict, results: list[dict]) -> list[float]:
    """Run a peer of pycocotools' face."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = kind()
        coco.dataset = dataset
        coco.createIndex()
        # It adds to the entries that it is given.
        some = [dict(entry) for entry in results]
        began = time.process_time()
        run = evaluation(coco, coco.loadRes(some), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        seconds = time.process_time() - began
    return [seconds, *(float(value) for value in run.stats[:12])]


def main() -> None:
    """Compare, then time."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    refuse_debug_build()
    import faster_coco_eval
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, true = draw(chosen.pictures)
    dataset, results = entries(found, true)

    def ours() -> list[float]:
        began = time.process_time()
        numbers = average_precision(found, true)
        return [time.process_time() - began, *(numbers[name] for name in NAMES)]

    sides: dict[str, Callable[[], list[float]]] = {
        PEER: lambda: peer(COCO, COCOeval, dataset, results),
        "faster-coco-eval": lambda: peer(
            faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, dataset, results
        ),
        "ours": ours,
    }
    numbers = {name: side()[1:] for name, side in sides.items()}
    for name, values in numbers.items():
        worst = max(abs(a - b) for a, b in zip(values, numbers[PEER], strict=True))
        print(f"{name}: differs from {PEER} by at most {worst:.1e}")
        if not worst < 1e-9 or math.isnan(worst):
            sys.exit(f"{name} does not agree with {PEER}: {values}, {numbers[PEER]}")
    timed = {name: (lambda side=side: side()[0]) for name, side in sides.items()}
    report("coco_ap", "CPU s", interleave(timed, chosen.rounds), PEER)


if __name__ == "__main__":
    main()
