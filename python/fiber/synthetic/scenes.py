"""Grounded scenes: pictures of coloured shapes with texts of every kind, made from one seed.

    fiber data scenes --output runs/scenes --images 20000

Picture i of a split depends on (seed, split, i) only: neither on how many pictures there are nor on
how many processes draw them. What is shown is in `scene_graphs`, how it looks in `scene_pictures`,
what is said in `scene_texts` and `scene_questions`, and the files are those of `annotations`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.data.rng import Draws
from fiber.synthetic.annotations import Picture
from fiber.synthetic.dataset_dir import (
    PictureJob,
    Progress,
    check_arguments,
    is_finished,
    tokenizer_fingerprint,
    write_description,
    write_pictures,
    write_tokenizer,
)
from fiber.synthetic.descriptions import all_texts, describe_scene
from fiber.synthetic.rendering import draw_scene, save_jpeg
from fiber.synthetic.scene_graph import SHAPES, Scene, World, sample_scene, shapes_world, stream

#: Rises when the same seed gives other data.
VERSION = 3

_PIXELS = 1
_TOKENIZER_PICTURES = 800


@dataclass(frozen=True)
class SceneRecipe:
    """What decides every picture of a data set."""

    seed: int = 0
    image_size: int = 96
    max_objects: int = 4


def generate(
    output: str | PathLike[str],
    *,
    train: int = 20000,
    val: int = 500,
    novel: int = 500,
    image_size: int = 96,
    max_objects: int = 4,
    seed: int = 0,
    workers: int = 0,
    tokenizer: str | PathLike[str] | None = None,
    vocab_size: int = 512,
    progress: Progress | None = None,
) -> Path:
    """Make a data folder of grounded scenes, or keep the one that is there.

    Args:
        output: the folder; it appears under this name only when it is whole.
        train: pictures of the training split.
        val: new pictures of what training shows.
        novel: pictures that each show a held-out pair of colour and shape.
        image_size: side of the pictures in pixels, 48 or more.
        max_objects: most things in a picture, 1 to 9.
        seed: decides everything, the held-out compositions too.
        workers: processes that draw; 0 draws in this one. The files are the same.
        tokenizer: folder or file of a tokenizer to copy; None trains one on the texts.
        vocab_size: most tokens of the trained tokenizer.
        progress: called with (pictures done, pictures in all).

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of range, or the folder holds another data set.
        FileNotFoundError: if there is no tokenizer where `tokenizer` says.
    """
    counts = {"train": train, "val": val, "novel": novel}
    check_arguments(counts, image_size, max_objects)
    folder = Path(output)
    parameters = {
        "generator": "scenes",
        "version": VERSION,
        "seed": seed,
        "counts": counts,
        "image_size": image_size,
        "max_objects": max_objects,
        "tokenizer": tokenizer_fingerprint(tokenizer, vocab_size),
    }
    if is_finished(folder, parameters):
        return folder
    recipe = SceneRecipe(seed, image_size, max_objects)
    world = shapes_world(seed)
    with explain_write_errors(folder, DISK_FULL), new_directory(folder) as partial:
        pictures = (describe_picture(recipe, "train", i)[0] for i in range(_TOKENIZER_PICTURES))
        texts = [text for picture in pictures for text in all_texts(picture)]
        write_tokenizer(partial, tokenizer, texts, vocab_size)
        write_pictures(
            partial,
            counts,
            make_pictures,
            recipe,
            class_names=SHAPES,
            info=f"fiber scenes, version {VERSION}, seed {seed}",
            workers=workers,
            progress=progress,
        )
        write_description(
            partial,
            parameters,
            held_out={
                "color_shape": [list(pair) for pair in sorted(world.held_out_pairs)],
                "relations": [list(fact) for fact in sorted(world.held_out_facts)],
            },
        )
    return folder


def describe_picture(recipe: SceneRecipe, split: str, index: int) -> tuple[Picture, Scene]:
    """Return one picture's texts and its scene, without drawing it: its boxes are empty."""
    picture = describe_scene(
        _world(recipe.seed),
        lambda number: _scene(recipe, split, number),
        seed=recipe.seed,
        split=split,
        index=index,
        image_size=recipe.image_size,
    )
    return picture, _scene(recipe, split, index)


def make_pictures(job: PictureJob) -> list[Picture]:
    """Draw and describe the pictures of a job."""
    recipe: SceneRecipe = job.recipe
    pictures = []
    for index in range(job.start, job.stop):
        picture, scene = describe_picture(recipe, job.split, index)
        draws = Draws(recipe.seed, stream(job.split, _PIXELS), index)
        pixels, picture.boxes_xyxy = draw_scene(scene, recipe.image_size, draws)
        save_jpeg(pixels, f"{job.images}/{picture.file_name}")
        pictures.append(picture)
    return pictures


# Statements look back at what the pictures before showed.
@lru_cache(maxsize=256)
def _scene(recipe: SceneRecipe, split: str, index: int) -> Scene:
    return sample_scene(
        _world(recipe.seed),
        recipe.seed,
        split,
        index,
        image_size=recipe.image_size,
        max_objects=recipe.max_objects,
    )


@lru_cache(maxsize=4)
def _world(seed: int) -> World:
    return shapes_world(seed)
