"""What several tests need: finished models of a few thousand weights, and a picture."""

import dataclasses
import signal
from pathlib import Path

import pytest

# A process that a shell starts in the background ignores Ctrl-C, and hands that down to the
# processes of its tests; those that send one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Texts that the little tokenizer of the models is trained on.
TEXTS = [
    "a small red circle to the left of a big blue square",
    "is there a green star above the yellow triangle?",
    "what color is the wooden ring? red. blue. green. yellow",
]
ANSWERS = ("yes", "no", "red", "blue", "green", "yellow", "1", "2", "3", "circle", "square", "star")


@pytest.fixture(scope="session")
def micro_models(tmp_path_factory) -> dict[str, Path]:
    """Folders of finished, untrained models: "coarse" with every head, and "fine"."""
    import torch

    from fiber.checkpoints.model_dir import save_model
    from fiber.config import preset
    from fiber.data import Tokenizer
    from fiber.models.registry import build_model

    # A pair of letters must occur often enough to become a token.
    tokenizer = Tokenizer.train(TEXTS * 10, 320)
    folder = tmp_path_factory.mktemp("micro")
    config = preset("micro").with_vocabulary(tokenizer.vocab_size)
    heads = dataclasses.replace(config.image_text, num_answers=len(ANSWERS))
    config = dataclasses.replace(config, image_text=heads)
    torch.manual_seed(0)
    save_model(build_model(config), folder / "coarse", tokenizer, ANSWERS)
    save_model(build_model(config.fine()), folder / "fine", tokenizer)
    return {"coarse": folder / "coarse", "fine": folder / "fine"}


@pytest.fixture(scope="session")
def scene_picture(tmp_path_factory) -> Path:
    """A JPEG of 90 x 70 pixels with a red circle and a blue square."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (90, 70), (200, 190, 170))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 12, 34, 36), (220, 40, 40))
    draw.rectangle((48, 24, 82, 58), (40, 60, 210))
    path = tmp_path_factory.mktemp("picture") / "scene.jpg"
    picture.save(path, quality=95)
    return path
