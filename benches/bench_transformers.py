"""Boxes of fifteen labels in an image, by pipelines of transformers.

Command: python benches/bench_transformers.py
Peer: transformers' own pipeline for zero-shot detection on the same model, which passes the image
through the network once for each label. `fiber-ground` asks for each label alone, too, and finds
the same boxes, which is checked; `fiber-detect` joins the labels in prompts. `--preset base` is a
model of the published size with random weights, which takes minutes.
"""

import argparse
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw
from rows import interleave, refuse_debug_build, report

import fiber
import fiber.hf  # registers the pipelines
from fiber.checkpoints.model_dir import save_model
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.models.registry import build_model

STOCK = "zero-shot-object-detection"
LABELS = (
    *("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"),
    *("red", "green", "blue", "yellow", "small", "big", "object"),
)


def write_model(folder: Path, name: str | None) -> None:
    """Write the packaged detector, or one of a preset's sizes with random weights."""
    if name is None:
        fiber.load("scenes/fine", device="cpu").save(folder)
        return
    tokenizer = Tokenizer.train([". ".join(LABELS)] * 10, 400)
    config = preset(name, stage="fine").with_vocabulary(tokenizer.vocab_size)
    config = dataclasses.replace(config, weight_start="fan_in")
    torch.manual_seed(0)
    save_model(build_model(config), folder, tokenizer)


def draw_image() -> Image.Image:
    """Draw a circle and a square, 1280 x 960 pixels."""
    image = Image.new("RGB", (1280, 960), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((110, 160, 400, 450), fill="red")
    pen.rectangle((800, 530, 1120, 850), fill="blue")
    return image


def check_alike(ground: Any, stock: Any, image: Image.Image) -> None:
    """Stop unless both find the same best score of each label."""
    found = {each["label"]: each["score"] for each in ground(image, candidate_labels=LABELS)}
    best: dict[str, float] = {}
    for each in stock(image, candidate_labels=list(LABELS), threshold=0.0):
        best[each["label"]] = max(each["score"], best.get(each["label"], 0.0))
    assert found.keys() == best.keys() == set(LABELS)
    worst = max(abs(found[label] - best[label]) for label in LABELS)
    assert worst < 1e-3, f"scores differ by {worst}"
    print(f"scores of {len(LABELS)} labels differ by at most {worst:.1e}")


def main() -> None:
    """Check that the pipelines agree, then measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--preset", help="random weights of these sizes; default: scenes/fine")
    options = parser.parse_args()
    refuse_debug_build()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    image = draw_image()
    with tempfile.TemporaryDirectory() as made:
        write_model(Path(made, "model"), options.preset)
        pipelines = {
            task: transformers.pipeline(task, model=str(Path(made, "model")), device="cpu")
            for task in ("fiber-detect", "fiber-ground", STOCK)
        }
    check_alike(pipelines["fiber-ground"], pipelines[STOCK], image)

    def milliseconds(task: str) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            pipelines[task](image, candidate_labels=list(LABELS))
            return 1000 * (time.perf_counter() - began)

        return measure

    values = interleave({task: milliseconds(task) for task in pipelines}, options.rounds)
    named = f"{options.preset or 'scenes/fine'}, {len(LABELS)} labels"
    report(
        "transformers",
        "ms",
        {f"{task}, {named}": found for task, found in values.items()},
        peer=f"{STOCK}, {named}",
    )


if __name__ == "__main__":
    main()
