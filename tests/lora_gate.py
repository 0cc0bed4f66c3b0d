"""How much of full fine-tuning LoRA reaches, on two cores.

    python -m tests.lora_gate WORK                    # both tasks, three seeds
    python -m tests.lora_gate WORK --tasks detection  # one of them

Tasks start from the model in the package, which has seen neither:

- questions: `small_vqa` from `scenes/coarse`, on scenes that are inverted as in a film negative;
- detection: `small_detection` from `scenes/fine`, with two shapes that scenes lack.

Prints the metric of the validation split at the start, after LoRA and after full fine-tuning of as
many steps, the share (LoRA - start) / (full - start), and what a model reaches that sees no image.
The exit code is 1 if a share is below `LEAST`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import fiber
from fiber.config_io import replace_fields
from fiber.data.rng import Rng
from fiber.synthetic import scenes
from fiber.synthetic.rendering import background, bounds
from fiber.training.config.run import RunConfig, load_recipe

#: Least share of the gain of full fine-tuning.
LEAST = 0.5
#: Images to train and to validate on, and steps of both ways.
IMAGES, STEPS = (600, 200), {"questions": 100, "detection": 120}
#: Samples of a step.
BATCH_SIZE = 32
#: Side of an image in pixels.
SIDE = 96
#: The shapes of the second task: corners in the unit square.
NEW_SHAPES = {
    "arrow": ((0, 0.35), (0.55, 0.35), (0.55, 0), (1, 0.5), (0.55, 1), (0.55, 0.65), (0, 0.65)),
    "house": ((0.5, 0), (1, 0.45), (0.85, 0.45), (0.85, 1), (0.15, 1), (0.15, 0.45), (0, 0.45)),
}


def negatives(folder: Path) -> Path:
    """Generate scenes, and invert their images."""
    if not folder.exists():
        scenes.generate(folder, train=IMAGES[0], val=IMAGES[1], novel=8)
        for path in (each for each in folder.rglob("*") if each.suffix in (".png", ".jpg")):
            with Image.open(path) as image:
                pixels = 255 - np.asarray(image.convert("RGB"))
            Image.fromarray(pixels).save(path)
    return folder


def new_shapes(folder: Path) -> Path:
    """Draw the new shapes on the backgrounds of scenes, in COCO format."""
    for number, (split, count) in enumerate(zip(("train", "valid"), IMAGES, strict=True)):
        own, images, annotations = folder / split, [], []
        if own.exists():
            continue
        own.mkdir(parents=True)
        for index in range(count):
            rng = Rng(0, 1000 + number, index)
            pixels = background(SIDE, rng).clip(0, 255)
            for side in range(1 + rng.bernoulli()):
                kind = rng.choice(tuple(NEW_SHAPES))
                mask, color = _mask(NEW_SHAPES[kind], side, rng), np.array(_color(rng))
                box = bounds(mask)
                assert box is not None
                pixels[mask] = color
                x0, y0, x1, y1 = map(float, box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": 1 + list(NEW_SHAPES).index(kind),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
            name = f"{index}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(own / name)
            images.append({"id": index, "file_name": name, "width": SIDE, "height": SIDE})
        categories = [{"id": n, "name": kind} for n, kind in enumerate(NEW_SHAPES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (own / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def _mask(corners: tuple[tuple[float, float], ...], side: int, rng: Rng) -> np.ndarray:
    """Return the (SIDE, SIDE) bool mask of a shape in the left or right half of an image."""
    size = rng.uniform(0.28, 0.44) * SIDE
    left = side * SIDE / 2 + rng.uniform(0, SIDE / 2 - size)
    top = rng.uniform(0, SIDE - size)
    image = Image.new("1", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    draw.polygon([(left + size * x, top + size * y) for x, y in corners], fill=1)
    return np.asarray(image)


def _color(rng: Rng) -> tuple[float, float, float]:
    bright = rng.choice((0, 1, 2))
    return tuple(rng.uniform(180, 255) if n == bright else rng.uniform(0, 90) for n in range(3))  # type: ignore[return-value]


def most_frequent(folder: Path) -> float:
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
    every = sum((counts for counts in found["train"].values()), Counter())
    right = total = 0
    for question, counts in found["val"].items():
        best = found["train"].get(question, every).most_common(1)[0][0]
        right, total = right + counts[best], total + counts.total()
    return right / total


def detection_config() -> RunConfig:
    """`small_detection` with the sizes of the model in the package."""
    model = fiber.load("scenes/fine").config
    config = replace_fields(load_recipe("small_detection"), {"model": model})
    return replace_fields(
        config,
        {
            "data.transform.shorter_sides": (model.detector.shorter_side,),
            "data.transform.max_size": model.detector.max_size,
        },
    )


def questions_config() -> RunConfig:
    """`small_vqa` with the sizes of the model in the package."""
    return load_recipe("small_vqa")


#: Of each task: base, configuration, data, evaluation and its metric.
TASKS = {
    "questions": ("scenes/coarse", questions_config, negatives, "vqa", "accuracy"),
    "detection": ("scenes/fine", detection_config, new_shapes, "coco", "ap"),
}


def shares(task: str, work: Path, seeds: list[int], changes: dict[str, str]) -> list[float]:
    """Train both ways with each seed; print a line for each, and return the shares."""
    base, build, make_data, evaluation, metric = TASKS[task]
    data, config = make_data(work / f"{task}-data"), build()
    split = "valid" if task == "detection" else "val"

    def score(model: str | Path) -> float:
        return fiber.evaluate(fiber.load(model), evaluation, data=data, split=split)[metric]

    start, found = score(base), []
    blind = f", blind {most_frequent(data):.3f}" if task == "questions" else ", blind 0"
    print(f"{task}: {metric} of {base} at the start {start:.3f}{blind}", flush=True)
    steps = STEPS[task]
    for seed in seeds:
        common = {"train.seed": seed, "train.steps": steps, "train.checkpoint_every": steps}
        common |= {"validation.task": None, "data.batch_size": BATCH_SIZE}
        scores = {}
        for way, own in (("full", {}), ("lora", {"lora.r": 8} | changes)):
            output = work / f"{task}-{way}-{seed}"
            fiber.train(
                replace_fields(config, common | own),
                data=data,
                output=output,
                init=base,
                quiet=True,
                resume=True,
            )
            scores[way] = score(output)
        found.append((scores["lora"] - start) / (scores["full"] - start))
        print(
            f"  seed {seed}: LoRA {scores['lora']:.3f}, full {scores['full']:.3f},"
            f" share {found[-1]:.2f}",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for data and runs; runs in it are reused")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="fields of the runs with LoRA")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    changes = dict(each.split("=", 1) for each in options.set)
    worst = min(min(shares(t, options.work, options.seeds, changes)) for t in options.tasks)
    print(f"least share {worst:.2f}, expected {LEAST} or more")
    return int(worst < LEAST)


if __name__ == "__main__":
    sys.exit(main())
