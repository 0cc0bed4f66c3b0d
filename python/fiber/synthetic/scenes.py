"""Grounded scenes: images of colored shapes with all kinds of annotations, from one seed.

    fiber data scenes --output runs/scenes --images 20000

`scene_graph` samples the objects, `rendering` draws them, `captions` and `questions` make the
texts, and `annotations` writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fiber.data.record import AnyPath
from fiber.data.rng import Rng
from fiber.synthetic.dataset_dir import check_arguments
from fiber.synthetic.generator import Progress, generate_dataset
from fiber.synthetic.recipe import Recipe
from fiber.synthetic.rendering import PixelBox, draw_scene
from fiber.synthetic.scene_graph import Scene, World, sample_scene, shapes_world, stream

_PIXELS = 1


@dataclass(frozen=True)
class SceneRecipe(Recipe):
    """Recipe of grounded scenes."""

    seed: int = 0
    image_size: int = 96
    max_objects: int = 4

    name = "scenes"
    version = 3
    tokenizer_images = 800

    @property
    def world(self) -> World:
        """See `Recipe`."""
        return _world(self.seed)

    def scene(self, split: str, index: int) -> Scene:
        """See `Recipe`."""
        return _scene(self, split, index)

    def render(self, split: str, index: int) -> tuple[np.ndarray, list[PixelBox]]:
        """See `Recipe`."""
        rng = Rng(self.seed, stream(split, _PIXELS), index)
        return draw_scene(self.scene(split, index), self.image_size, rng)

    def facts(self) -> dict[str, Any]:
        """See `Recipe`."""
        pairs, facts = self.world.held_out_pairs, self.world.held_out_facts
        return {
            "held_out": {
                "color_shape": [list(pair) for pair in sorted(pairs)],
                "relations": [list(fact) for fact in sorted(facts)],
            }
        }


def generate(
    output: AnyPath,
    *,
    train: int = 20000,
    val: int = 500,
    novel: int = 500,
    image_size: int = 96,
    max_objects: int = 4,
    seed: int = 0,
    workers: int = 0,
    tokenizer: AnyPath | None = None,
    vocab_size: int = 512,
    progress: Progress | None = None,
) -> Path:
    """Generate a data folder of grounded scenes, or keep the one that is there.

    Args:
        output: the folder; written atomically.
        train: number of training images.
        val: number of validation images, from the distribution of the training images.
        novel: number of images with a held-out pair of color and shape.
        image_size: side of the images in pixels, 48 or more.
        max_objects: maximum number of objects in an image, 1 to 9.
        seed: determines everything, including the held-out compositions.
        workers: number of processes; 0 renders in this one. The files are the same.
        tokenizer: tokenizer to copy (file or folder); None trains one on the texts.
        vocab_size: maximum size of a trained vocabulary.
        progress: called with (images done, images in total).

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of range, or the folder has another data set.
        FileNotFoundError: if `tokenizer` has no tokenizer.
    """
    counts = {"train": train, "val": val, "novel": novel}
    check_arguments(counts, image_size, max_objects)
    return generate_dataset(
        output,
        SceneRecipe(seed, image_size, max_objects),
        counts,
        workers=workers,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        progress=progress,
    )


# Statements search previous images.
@lru_cache(maxsize=256)
def _scene(recipe: SceneRecipe, split: str, index: int) -> Scene:
    return sample_scene(
        recipe.world,
        recipe.seed,
        split,
        index,
        image_size=recipe.image_size,
        max_objects=recipe.max_objects,
    )


@lru_cache(maxsize=4)
def _world(seed: int) -> World:
    return shapes_world(seed)
