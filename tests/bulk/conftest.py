"""A folder of images with broken ones, and models to run over it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fiber
from fiber.inference import Model
from tests.models.xdecoder.small_model import small_model

#: Broken images of `mixed_images`, and what their reasons mention.
BROKEN = {"03-text.jpg": "starts with bytes", "07-cut.jpg": "", "12-empty.png": "empty"}


def save_images(folder: Path, count: int = 20) -> None:
    """Images of several sizes, one with alpha, and three broken ones."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for number in range(count):
        height, width = 40 + 8 * (number % 3), 64
        pixels = draws.integers(0, 256, (height, width, 4 if number == 5 else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "03-text.jpg").write_bytes(b"this is no image")
    Image.fromarray(draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "07-cut.jpg")
    cut = (folder / "07-cut.jpg").read_bytes()
    (folder / "07-cut.jpg").write_bytes(cut[:300])
    (folder / "12-empty.png").write_bytes(b"")


@pytest.fixture(scope="session")
def mixed_images(made_once) -> Path:
    """A folder of 20 images and three broken ones."""
    return made_once("mixed_images", save_images)


@pytest.fixture(scope="session")
def questions(made_once, mixed_images) -> Path:
    """JSON lines with a question on each file of `mixed_images`."""

    def make(folder: Path) -> None:
        shutil.copytree(mixed_images, folder / "images")
        names = sorted(each.name for each in (folder / "images").iterdir())
        lines = [
            {"image": name, "question": f"what is above {number}?", "answer": "red"}
            for number, name in enumerate(names)
        ]
        (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return made_once("bulk_questions", make)


@pytest.fixture(scope="session")
def coarse(micro_models) -> Model:
    return fiber.load(micro_models["coarse"], device="cpu")


@pytest.fixture(scope="session")
def fine(micro_models) -> Model:
    return fiber.load(micro_models["fine"], device="cpu")


@pytest.fixture(scope="session")
def segmenter() -> Model:
    return small_model()
