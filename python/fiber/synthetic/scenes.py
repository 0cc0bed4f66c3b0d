"""Grounded scenes: images of colored shapes with all kinds of annotations, from one seed.

    fiber data scenes --output runs/scenes --images 20000

`scene_graph` samples the objects, `rendering` draws them, `captions` and `questions` generate the
texts, and `annotations` writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.formats.generated import VERSIONS
from fiber.data.record import AnyPath
from fiber.data.rng import Rng
from fiber.synthetic.generator import generate_dataset
from fiber.synthetic.panoptic import BACKGROUND, Drawn
from fiber.synthetic.recipe import PIXELS, Recipe
from fiber.synthetic.rendering import draw_scene
from fiber.synthetic.scene_graph import Scene, World, sample_scene, shapes_world, stream
from fiber.synthetic.stuff import STUFF, draw_stuff

#: Random number stream for stuff.
_STUFF = 4


@dataclass(frozen=True)
class SceneRecipe(Recipe):
    """Recipe for grounded scenes."""

    seed: int = 0
    image_size: int = 96
    max_objects: int = 3
    #: Vary backgrounds, colors and outlines, as drawings do.
    varied: bool = False
    #: Draw textured regions behind the objects.
    stuff: bool = False

    name = "scenes"
    version = VERSIONS["scenes"]
    tokenizer_images = 800
    vocab_size = 512

    @cached_property
    def world(self) -> World:
        """See `Recipe`."""
        return shapes_world(self.seed)

    def _sample_scene(self, split: str, index: int) -> Scene:
        size, most = self.image_size, self.max_objects
        return sample_scene(self.world, self.seed, split, index, image_size=size, max_objects=most)

    @property
    def stuff_names(self) -> tuple[str, ...]:
        """See `Recipe`."""
        return STUFF if self.stuff else (BACKGROUND,)

    def render(self, split: str, index: int) -> Drawn:
        """See `Recipe`."""
        rng = Rng(self.seed, stream(split, PIXELS), index)
        stuff = self._stuff(split, index) if self.stuff else None
        scene = self.scene(split, index)
        return draw_scene(scene, self.image_size, rng, varied=self.varied, stuff=stuff)

    def _stuff(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_stuff(self.image_size, Rng(self.seed, stream(split, _STUFF), index))

    def parameters(self) -> dict[str, Any]:
        """See `Recipe`."""
        options = {"varied": self.varied, "stuff": self.stuff}
        return {name: value for name, value in options.items() if value}

    def facts(self) -> dict[str, Any]:
        """See `Recipe`."""
        pairs, facts = sorted(self.world.held_out_pairs), sorted(self.world.held_out_facts)
        return {"held_out": {"color_shape": pairs, "relations": facts}}


def generate(
    output: AnyPath,
    *,
    train: int = 20000,
    val: int = 500,
    novel: int = 500,
    image_size: int = 96,
    max_objects: int = 3,
    seed: int = 0,
    varied: bool = False,
    stuff: bool = False,
    **options: Any,
) -> Path:
    """Generate a dataset of grounded scenes, and return its folder.

    Arguments and errors are those of `SceneRecipe` and `generate_dataset`. Every image of `novel`
    shows a held-out pair of color and shape.
    """
    counts = {"train": train, "val": val, "novel": novel}
    recipe = SceneRecipe(seed, image_size, max_objects, varied, stuff)
    return generate_dataset(output, recipe, counts, **options)
