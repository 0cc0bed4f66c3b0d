"""Recipes of generated datasets: scenes, texts and pixels of every image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

from fiber.data.rng import Rng
from fiber.synthetic.annotations import AnnotatedImage, Statement
from fiber.synthetic.captions import captions, expressions
from fiber.synthetic.panoptic import BACKGROUND, Drawn
from fiber.synthetic.questions import opposite_pair, questions, statements, swapped_captions
from fiber.synthetic.scene_graph import Scene, World, stream

IMAGES_PER_FOLDER = 1000
#: Random number stream for pixels.
PIXELS = 1
_TEXTS, _PAIRS = 2, 3
#: Number of earlier images to search for a statement's opposite pair.
_LOOK_BACK = 64


def file_name(split: str, index: int) -> str:
    """Return the path of an image, relative to the image folder."""
    return f"{split}/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.jpg"


@dataclass(frozen=True)
class Recipe(ABC):
    """Picklable parameters that determine the images of a dataset.

    Image i of a split depends only on the recipe, the split and i.

    Raises:
        ValueError: if `image_size` or `max_objects` is out of range.
    """

    #: Random seed, which also determines what is held out.
    seed: int
    #: Side length of the images in pixels, at least 48.
    image_size: int
    #: Maximum number of objects in an image, 1 to 9.
    max_objects: int

    #: Name of the generator.
    name: ClassVar[str]
    #: Incremented when the same parameters start to produce different data.
    version: ClassVar[int]
    #: Number of training images whose texts are used to train a new tokenizer.
    tokenizer_images: ClassVar[int]
    #: Maximum vocabulary size of a new tokenizer.
    vocab_size: ClassVar[int]

    def __post_init__(self) -> None:
        if self.image_size < 48:
            raise ValueError(f"image_size must be at least 48 pixels, got {self.image_size}")
        if not 1 <= self.max_objects <= 9:
            raise ValueError(f"max_objects must be in [1, 9], got {self.max_objects}")

    @cached_property
    @abstractmethod
    def world(self) -> World:
        """Words of the dataset, and what is held out."""

    @abstractmethod
    def _sample_scene(self, split: str, index: int) -> Scene: ...

    @abstractmethod
    def render(self, split: str, index: int) -> Drawn:
        """Draw an image."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return information for `dataset.json`, such as what is held out."""

    def parameters(self) -> dict[str, Any]:
        """Return additional parameters that determine the data, for `dataset.json`."""
        return {}

    @property
    def stuff_names(self) -> tuple[str, ...]:
        """Names of the kinds of stuff."""
        return (BACKGROUND,)

    def scene(self, split: str, index: int) -> Scene:
        """Return the scene of an image."""
        return _scene(self, split, index)

    def describe(self, split: str, index: int) -> AnnotatedImage:
        """Return an image with all its texts, but without boxes.

        An image with an odd index forms a pair with the previous image, and has the texts about
        both images.
        """
        world, novel, scene = self.world, split == "novel", self.scene(split, index)
        rng = Rng(self.seed, stream(split, _TEXTS), index)
        image = AnnotatedImage(
            image_id=index,
            file_name=file_name(split, index),
            image_size=(self.image_size, self.image_size),
            boxes_xyxy=[],
            category_ids=[world.nouns.index(thing.noun) + 1 for thing in scene.things],
            captions=captions(world, scene.things, rng, novel),
            expressions=expressions(world, scene.things, rng, novel),
            questions=questions(world, scene, rng, novel),
        )
        if index % 2 == 1:
            left = self.scene(split, index - 1)
            rng = Rng(self.seed, stream(split, _PAIRS), index)
            image.partner = file_name(split, index - 1)
            found = statements(world, left, scene, rng, novel)
            image.statements = [self._with_opposite(each, split, index) for each in found]
            if scene.swap:
                image.swapped_captions = swapped_captions(left, scene)
        return image

    def _with_opposite(self, statement: Statement, split: str, index: int) -> Statement:
        """Add images for which a statement has the opposite truth value, if any are found."""
        earlier = range(index - 2, max(-1, index - 2 - _LOOK_BACK), -1)
        scene_of = partial(self.scene, split)
        found = opposite_pair(self.world, statement.pair, scene_of, index, earlier)
        names = found and (file_name(split, found[0]), file_name(split, found[1]))
        return statement._replace(opposite=names)


# Cached, since statements need the scenes of earlier images.
@lru_cache(maxsize=256)
def _scene(recipe: Recipe, split: str, index: int) -> Scene:
    return recipe._sample_scene(split, index)
