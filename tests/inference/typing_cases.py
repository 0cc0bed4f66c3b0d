"""Static types of `Model`'s methods and of networks, checked by pyright (`make lint`).

Nothing here runs.
"""

from pathlib import Path
from typing import assert_type

import numpy as np

from fiber.config import FiberConfig
from fiber.inference import Answer, Hit, Model
from fiber.models.abilities import (
    CentersEmbeddings,
    ClassifiesEntailment,
    EmbedsAlone,
    FindsBoxes,
    RanksCaptions,
    ScoresPairs,
    StartsAtAnswerPriors,
)
from fiber.models.caption_abilities import WritesCaptions
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.registry import ModelConfig
from fiber.postprocess import Detections


def one_image(model: Model, image: Path) -> None:
    """One image gives one result."""
    assert_type(model.ground(image, "a dog"), Detections)
    assert_type(model.detect("a.jpg", ["dog"]), Detections)
    assert_type(model.answer(image, "what?"), list[Answer])
    assert_type(model.caption(np.zeros((8, 8, 3), np.uint8)), str)
    assert_type(model.match(image, "a dog"), float)
    assert_type(model.match(image, ["a dog", "a cat"]), np.ndarray)
    assert_type(model.reason((image, "b.jpg"), "both show dogs"), bool)
    assert_type(model.embed_images(image), np.ndarray)


def several_images(model: Model, images: list[Path]) -> None:
    """A list gives a list."""
    assert_type(model.ground(images, "a dog"), list[Detections])
    assert_type(model.detect(images), list[Detections])
    assert_type(model.answer(images, "what?"), list[list[Answer]])
    assert_type(model.caption(images), list[str])
    assert_type(model.match(images, "a dog"), np.ndarray)
    assert_type(model.reason([("a.jpg", "b.jpg")], "both show dogs"), list[bool])
    assert_type(model.search("a dog", images), list[Hit])
    assert_type(model.embed_texts(["a dog"]), np.ndarray)


def abilities(fiber: FiberImageText, detector: FiberDetector, meter: MeterImageText) -> None:
    """Networks have the methods of their abilities, with these arguments and results."""
    scores: list[ScoresPairs] = [fiber, meter]
    embeds: EmbedsAlone = fiber
    writes: WritesCaptions = fiber
    finds: FindsBoxes = detector
    ranks: RanksCaptions = meter
    classifies: ClassifiesEntailment = meter
    priors: list[StartsAtAnswerPriors] = [fiber, meter]
    centers: CentersEmbeddings = fiber
    print(scores, embeds, writes, finds, ranks, classifies, priors, centers)


def configs(fiber: FiberConfig, meter: MeterConfig) -> list[ModelConfig]:
    """Configs have what the registry asks of them."""
    return [fiber, meter]
