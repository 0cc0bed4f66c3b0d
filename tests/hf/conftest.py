"""Folders of small models of every family, and an image to ask them about."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import transformers

with warnings.catch_warnings():
    # Of torch and of transformers, when they are imported.
    warnings.simplefilter("ignore")
    import fiber.hf
from PIL import Image, ImageDraw

import fiber
from fiber.checkpoints.model_dir import save_model
from fiber.data import Tokenizer
from fiber.models.registry import build_model
from tests.conftest import ANSWERS, TEXTS
from tests.models.small_networks import NETWORKS, network
from tests.models.xdecoder.small_model import small_model

#: A family and kind for each head: both stages of FIBER, and METER with its encoders and fusions.
NAMES = tuple(NETWORKS)
#: The circle and the square of `drawing`.
BOXES = ((40.0, 60.0, 150.0, 170.0), (300.0, 200.0, 420.0, 320.0))


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """No progress bars and hints of transformers between the tests."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def folders(made_once) -> dict[str, Path]:
    """A model folder for each of `NETWORKS`, as `Model.save` writes it."""
    root = made_once("hf_models", save_models)
    return {name: root / name.replace(" ", "_") for name in NAMES}


def save_models(root: Path) -> None:
    for name in NAMES:
        folder = root / name.replace(" ", "_")
        if name == "X-Decoder":
            small_model().save(folder)
            continue
        if name in ("coarse", "fine"):
            fiber.load(f"scenes/{name}", device="cpu").save(folder)
            continue
        tokenizer, config = _tokenizer(name, root), network(name).config
        config = config.with_vocabulary(tokenizer.vocab_size).with_answers(len(ANSWERS))
        torch.manual_seed(0)
        save_model(build_model(config), folder, tokenizer, ANSWERS)


def _tokenizer(name: str, root: Path) -> Tokenizer:
    if name != "METER BERT":
        return Tokenizer.train(TEXTS * 10, 320)
    from fiber.checkpoints.vocabulary.wordpiece import read_vocab_txt

    special = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(code) for code in range(97, 123)]
    words = sorted({word for text in TEXTS for word in text.rstrip("?").replace(".", "").split()})
    lines = [*special, "[MASK]", "?", ".", *letters, *(f"##{each}" for each in letters), *words]
    (root / "vocab.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return read_vocab_txt(root / "vocab.txt")


@pytest.fixture(scope="session")
def drawing() -> Image.Image:
    """A red circle and a blue square on white, 480 x 360 pixels."""
    picture = Image.new("RGB", (480, 360), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse(BOXES[0], fill="red")
    pen.rectangle(BOXES[1], fill="blue")
    return picture


def own_network(folder: Path) -> Any:
    """Return the network that `fiber.load` reads."""
    return fiber.load(folder, device="cpu").network


def same_config(left: Any, right: Any) -> bool:
    return dataclasses.asdict(left) == dataclasses.asdict(right)


@pytest.fixture
def fiber_hf() -> Any:
    return fiber.hf
