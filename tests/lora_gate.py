"""How much of full fine-tuning LoRA reaches, on two cores.

    python -m tests.lora_gate WORK                    # both tasks, three seeds
    python -m tests.lora_gate WORK --tasks detection  # one of them

Tasks start from the model in the package, which has seen neither:

- questions: `small_vqa` from `scenes/coarse`, on scenes with inverted images, as in a negative;
- detection: `small_detection` from `scenes/fine`, with two shapes that scenes lack.

Prints the metric of the validation split at the start, after LoRA and after full fine-tuning of as
many steps, and the share (LoRA - start) / (full - start). "blind" is what needs no image: the most
frequent answer to each question, and the boxes that match most boxes of the training split. The
exit code is 1 if a share is below `LEAST`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import fiber
from fiber.config_io import replace_fields
from fiber.data.rng import Rng
from fiber.evaluation.box_baselines import frequent_boxes
from fiber.metrics.detection import ScoredBoxes, TrueBoxes, average_precision
from fiber.synthetic import scenes
from fiber.synthetic.rendering import background, bounds
from fiber.training.config.run import RunConfig, load_recipe

#: Least share of the gain of full fine-tuning.
LEAST = 0.5
#: Images to train and to validate on.
TRAIN, VAL = 600, 200
#: Samples of a step.
BATCH_SIZE = 32
#: Side of an image in pixels.
SIDE = 96
#: Splits of the second task.
SPLITS = {"train": TRAIN, "valid": VAL}
#: Shapes of the second task: corners in the unit square.
NEW_SHAPES = {
    "arrow": ((0, 0.35), (0.55, 0.35), (0.55, 0), (1, 0.5), (0.55, 1), (0.55, 0.65), (0, 0.65)),
    "house": ((0.5, 0), (1, 0.45), (0.85, 0.45), (0.85, 1), (0.15, 1), (0.15, 0.45), (0, 0.45)),
}


class Task(NamedTuple):
    """One of the tasks."""

    base: str
    steps: int
    config: Callable[[], RunConfig]
    make_data: Callable[[Path], None]
    blind: Callable[[Path], float]
    evaluation: str
    metric: str
    split: str


def write_negatives(folder: Path) -> None:
    """Generate scenes, and invert their images."""
    scenes.generate(folder, train=TRAIN, val=VAL, novel=8)
    for path in (each for each in folder.rglob("*") if each.suffix in (".png", ".jpg")):
        with Image.open(path) as image:
            pixels = 255 - np.asarray(image.convert("RGB"))
        Image.fromarray(pixels).save(path)


def write_new_shapes(folder: Path) -> None:
    """Draw one or two of the new shapes on backgrounds of scenes, in COCO format."""
    for number, (split, count) in enumerate(SPLITS.items()):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            rng = Rng(0, number, index)
            pixels = background(SIDE, rng).clip(0, 255)
            for half in range(rng.choice((1, 2))):
                kind = rng.choice(tuple(NEW_SHAPES))
                mask = draw_mask(NEW_SHAPES[kind], half, rng)
                bright = rng.choice((0, 1, 2))
                low_high = [(180, 255) if channel == bright else (0, 90) for channel in range(3)]
                pixels[mask] = [rng.uniform(*each) for each in low_high]
                x0, y0, x1, y1 = map(float, bounds(mask) or ())
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                ids = {"id": len(annotations) + 1, "image_id": index, "iscrowd": 0}
                annotations.append(ids | box | {"category_id": 1 + list(NEW_SHAPES).index(kind)})
            name = f"{index}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            images.append({"id": index, "file_name": name, "width": SIDE, "height": SIDE})
        categories = [{"id": n, "name": kind} for n, kind in enumerate(NEW_SHAPES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def draw_mask(corners: tuple[tuple[float, float], ...], half: int, rng: Rng) -> np.ndarray:
    """Return the (SIDE, SIDE) bool mask of a shape in the left (0) or right half of an image."""
    size = rng.uniform(0.28, 0.44) * SIDE
    left = half * SIDE / 2 + rng.uniform(0, SIDE / 2 - size)
    top = rng.uniform(0, SIDE - size)
    image = Image.new("1", (SIDE, SIDE))
    places = [(left + size * x, top + size * y) for x, y in corners]
    ImageDraw.Draw(image).polygon(places, fill=1)
    return np.asarray(image)


def blind_accuracy(folder: Path) -> float:
    """Return the accuracy of the most frequent answer to each question, by the training split."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for split in ("train", "val"):
        counts = found[split] = defaultdict(Counter)
        asked, answered = (
            json.loads((folder / f"vqa_{name}_{split}.json").read_text())[name]
            for name in ("questions", "annotations")
        )
        answers = {each["question_id"]: each["multiple_choice_answer"] for each in answered}
        for each in asked:
            counts[each["question"]][answers[each["question_id"]]] += 1
    every = sum(found["train"].values(), Counter[str]())
    right = total = 0
    for question, counts in found["val"].items():
        guess = found["train"].get(question, every).most_common(1)[0][0]
        right, total = right + counts[guess], total + counts.total()
    return right / total


def blind_ap(folder: Path) -> float:
    """Return the AP of boxes of each class that match most boxes of the training split."""
    boxes: dict[str, list[dict[int, list[Any]]]] = {}
    for split, count in SPLITS.items():
        content = json.loads((folder / split / "_annotations.coco.json").read_text())
        boxes[split] = [defaultdict(list) for _ in range(count)]
        for each in content["annotations"]:
            x, y, width, height = each["bbox"]
            found = boxes[split][each["image_id"]]
            found[each["category_id"]].append([x, y, x + width, y + height])
    guesses, scores, labels = [], [], []
    for label in (1, 2):
        chosen = frequent_boxes([box for found in boxes["train"] for box in found[label]], k=10)
        guesses += chosen.boxes_xyxy.tolist()
        scores += chosen.shares.tolist()
        labels += [label] * len(chosen.shares)
    truths = [
        TrueBoxes(
            [box for each in found.values() for box in each],
            [label for label, each in found.items() for _ in each],
        )
        for found in boxes["valid"]
    ]
    return average_precision([ScoredBoxes(guesses, scores, labels)] * len(truths), truths)["ap"]


def detection_config() -> RunConfig:
    """Return `small_detection` with the sizes of the model in the package."""
    model: Any = fiber.load("scenes/fine").config
    sides = {"shorter_sides": (model.detector.shorter_side,), "max_size": model.detector.max_size}
    changes = {f"data.transform.{name}": value for name, value in sides.items()}
    return replace_fields(load_recipe("small_detection"), {"model": model, **changes})


TASKS = {
    "questions": Task(
        base="scenes/coarse",
        steps=100,
        config=lambda: load_recipe("small_vqa"),
        make_data=write_negatives,
        blind=blind_accuracy,
        evaluation="vqa",
        metric="accuracy",
        split="val",
    ),
    "detection": Task(
        base="scenes/fine",
        steps=120,
        config=detection_config,
        make_data=write_new_shapes,
        blind=blind_ap,
        evaluation="coco",
        metric="ap",
        split="valid",
    ),
}


def shares(name: str, work: Path, seeds: list[int], lora: dict[str, Any]) -> list[float]:
    """Train both ways with each seed; print a line for each, and return the shares."""
    task, data = TASKS[name], work / f"{name}-data"
    if not data.exists():
        task.make_data(data)

    def score(model: str | Path) -> float:
        found = fiber.evaluate(fiber.load(model), task.evaluation, data=data, split=task.split)
        return found[task.metric]

    def train(way: str, seed: int, changes: dict[str, Any]) -> float:
        output = work / f"{name}-{way}-{seed}"
        settings = {"train.seed": seed, "train.steps": task.steps, "train.checkpoint_every": 0}
        settings |= {"validation.task": None, "data.batch_size": BATCH_SIZE, **changes}
        config = replace_fields(task.config(), settings)
        fiber.train(config, data=data, output=output, init=task.base, quiet=True, resume=True)
        return score(output)

    start, found = score(task.base), []
    title = f"{name}: {task.metric} of {task.base}, {task.steps} steps of {BATCH_SIZE} samples"
    print(f"{title}: start {start:.3f}, blind {task.blind(data):.3f}", flush=True)
    for seed in seeds:
        ours, full = train("lora", seed, lora), train("full", seed, {})
        found.append((ours - start) / (full - start))
        print(f"  seed {seed}: LoRA {ours:.3f}, full {full:.3f}, share {found[-1]:.2f}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for data and runs; runs in it are reused")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr-multiplier", type=float, help="default: that of `LoraConfig`")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lora: dict[str, Any] = {"lora.r": 8}
    if options.lr_multiplier is not None:
        lora["lora.lr_multiplier"] = options.lr_multiplier
    worst = min(min(shares(task, options.work, options.seeds, lora)) for task in options.tasks)
    print(f"least share {worst:.2f}, expected {LEAST} or more")
    return int(worst < LEAST)


if __name__ == "__main__":
    sys.exit(main())
