"""Stamps: real cut-outs pasted on photographs, with all kinds of annotations and exact boxes.

    fiber data stamps --output runs/stamps --images 8000

The files are those of `fiber.synthetic.scenes`, for the same commands. Nouns come from the captions
of the cut-outs. One eighth of the families of nouns is held out: only images of `novel` have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fiber.data.record import AnyPath
from fiber.data.rng import Rng
from fiber.synthetic.dataset_dir import check_arguments
from fiber.synthetic.generator import Progress, generate_dataset
from fiber.synthetic.recipe import Recipe
from fiber.synthetic.rendering import PixelBox
from fiber.synthetic.scene_graph import Scene, Thing, World, place, relation, stream
from fiber.synthetic.stamp_assets import (
    StampCollection,
    debian_backgrounds,
    debian_stamps,
    family_of,
    opaque_box,
    read_collection,
)

#: Half of a stamp's longer side, relative to the image's side.
RADII = (0.14, 0.24)

_SCENE, _PIXELS, _HELD_OUT = 0, 1, 254
# Every fourth pair of images is the same scene with two things swapped.
_TWIN_EVERY = 4
# Maximum magnification of a stamp, and maximum size of a cached photograph relative to the image.
_MAX_MAGNIFICATION, _PHOTO_FACTOR = 1.5, 4


@dataclass(frozen=True)
class StampScene:
    """A scene with the cut-out of each of its things, as indices of `StampCollection.cutouts`."""

    scene: Scene
    cutouts: tuple[int, ...]


@dataclass(frozen=True)
class StampRecipe(Recipe):
    """Recipe of stamps on photographs."""

    stamps: Path
    backgrounds: tuple[Path, ...]

    name = "stamps"
    version = 2
    tokenizer_images = 2000

    @property
    def collection(self) -> StampCollection:
        """Stamps and photographs, read once per process."""
        return _open(self)[0]

    @property
    def world(self) -> World:
        """See `Recipe`."""
        return _open(self)[1]

    def scene(self, split: str, index: int) -> Scene:
        """See `Recipe`."""
        return self.stamp_scene(split, index).scene

    def stamp_scene(self, split: str, index: int) -> StampScene:
        """Return the objects of an image and their cut-outs."""
        return _stamp_scene(self, split, index)

    def render(self, split: str, index: int) -> tuple[np.ndarray, list[PixelBox]]:
        """See `Recipe`."""
        rng = Rng(self.seed, stream(split, _PIXELS), index)
        return draw_stamps(self, self.stamp_scene(split, index), rng)

    def parameters(self) -> dict[str, Any]:
        """See `Recipe`."""
        return {"pictures": self.collection.fingerprint()}

    def facts(self) -> dict[str, Any]:
        """See `Recipe`."""
        collection = self.collection
        return {
            "held_out": {"nouns": sorted(noun for _, noun in self.world.held_out_pairs)},
            "found": {
                "stamps": len(collection.cutouts),
                "nouns": len(collection.nouns),
                "photographs": len(collection.backgrounds),
                "left_out": dict(collection.skipped),
            },
        }


def generate(
    output: AnyPath,
    *,
    train: int = 8000,
    val: int = 500,
    novel: int = 500,
    image_size: int = 160,
    max_objects: int = 4,
    backgrounds: AnyPath | None = None,
    stamps: AnyPath | None = None,
    seed: int = 0,
    workers: int = 0,
    tokenizer: AnyPath | None = None,
    vocab_size: int = 1500,
    progress: Progress | None = None,
) -> Path:
    """Generate a data folder of stamps on photographs, or keep the one that is there.

    Args:
        output: the folder; written atomically.
        train: number of training images.
        val: number of validation images, with the same nouns.
        novel: number of images with a held-out noun.
        image_size: side of the images in pixels, 48 or more.
        max_objects: maximum number of objects in an image, 1 to 9.
        backgrounds: folder of photographs; default: those of two Debian packages.
        stamps: folder of RGBA PNG files, each with a .txt with its caption; default: Debian's
            tuxpaint-stamps-default. Missing packages are downloaded with apt-get and cached.
        seed: determines everything, including the held-out nouns.
        workers: number of processes; 0 renders in this one. The files are the same.
        tokenizer: tokenizer to copy (file or folder); None trains one on the texts.
        vocab_size: maximum size of a trained vocabulary.
        progress: called with (images done, images in total).

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of range, the folder has another data set, or there are
            too few nouns.
        FileNotFoundError: if stamps or photographs are missing and cannot be downloaded, with how
            to get them.
    """
    counts = {"train": train, "val": val, "novel": novel}
    check_arguments(counts, image_size, max_objects)
    recipe = StampRecipe(
        seed,
        image_size,
        max_objects,
        stamps=debian_stamps() if stamps is None else Path(stamps),
        backgrounds=tuple(debian_backgrounds() if backgrounds is None else [Path(backgrounds)]),
    )
    return generate_dataset(
        output,
        recipe,
        counts,
        workers=workers,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        progress=progress,
    )


def stamps_world(collection: StampCollection, seed: int) -> World:
    """Return the world of a collection's nouns; an eighth of their families is held out.

    Raises:
        ValueError: if there are fewer than four families of nouns.
    """
    families = {noun: family_of(noun) for noun in collection.nouns}
    names = sorted(set(families.values()))
    if len(names) < 4:
        raise ValueError(
            f"the stamps have {len(names)} kinds of things ({', '.join(names)}); expected 4 or more"
        )
    chosen = set(Rng(seed, _HELD_OUT, 0).shuffled(names)[: max(1, len(names) // 8)])
    held_out = frozenset(("", noun) for noun, family in families.items() if family in chosen)
    return World(collection.nouns, held_out_pairs=held_out, families=families)


def sample_stamp_scene(
    recipe: StampRecipe, collection: StampCollection, world: World, split: str, index: int
) -> StampScene:
    """Sample the scene of an image. It does not depend on other images."""
    pair, twin = index // 2, index // 2 % _TWIN_EVERY == 0 and recipe.max_objects >= 2
    rng = Rng(recipe.seed, stream(split, _SCENE), pair * 2 if twin else index)
    novel, most = split == "novel", recipe.max_objects
    counted = not twin and rng.bernoulli(0.2)
    copies = 1 + rng.integer(most) if counted else 1
    low = max(copies, 2 if twin else 1)
    count = low + rng.integer(most - low + 1)
    nouns = _sample_nouns(world, rng, count - copies + 1, novel)
    if not counted and not twin and count > 2 and rng.bernoulli(0.4):
        # Two of a kind, distinguished by a relation only.
        nouns[-1] = nouns[0]
    nouns = [nouns[0]] * (copies - 1) + nouns
    cutouts = tuple(rng.choice(collection.by_noun[noun]) for noun in nouns)
    things = []
    for noun, cutout in zip(nouns, cutouts, strict=True):
        native = max(collection.cutouts[cutout].size) / 2 * _MAX_MAGNIFICATION
        radius = min(rng.uniform(*RADII) * recipe.image_size, native)
        things.append(Thing(noun, radius=radius))
    side = (recipe.image_size, recipe.image_size)

    def accept(placed: Sequence[Thing]) -> bool:
        return not twin or relation(placed[0], placed[1]) is not None

    scene = Scene(
        place(things, side, rng, accept),
        counted=("noun", nouns[0]) if counted else None,
        swap="place" if twin else "",
    )
    if twin and index % 2 == 1:
        first, second, *others = scene.things
        swapped = (
            dataclasses.replace(first, noun=second.noun),
            dataclasses.replace(second, noun=first.noun),
        )
        scene = dataclasses.replace(scene, things=(*swapped, *others))
        cutouts = (cutouts[1], cutouts[0], *cutouts[2:])
    return StampScene(scene, cutouts)


def _sample_nouns(world: World, rng: Rng, count: int, novel: bool) -> list[str]:
    """Sample nouns of different families; the first is held out if novel, otherwise none is."""
    held_out = sorted(noun for _, noun in world.held_out_pairs)
    shown = [noun for _, noun in world.shown_pairs]
    nouns: list[str] = []
    for number in range(count):
        pool = held_out if novel and (number == 0 or rng.bernoulli(0.15)) else shown
        seen = {world.family(noun) for noun in nouns}
        free = [noun for noun in pool if world.family(noun) not in seen]
        free = free or [noun for noun in shown if world.family(noun) not in seen]
        # With very few kinds of things, one is repeated.
        nouns.append(rng.choice(free or nouns))
    return nouns


def draw_stamps(
    recipe: StampRecipe, scene: StampScene, rng: Rng
) -> tuple[np.ndarray, list[PixelBox]]:
    """Paste the cut-outs of a scene on a crop of a photograph.

    Returns:
        (H, W, 3) uint8 RGB, and the box of each thing: the bounds of its pixels with alpha > 0.5.
    """
    collection = recipe.collection
    side = recipe.image_size
    photo = _photo(rng.choice(collection.backgrounds), side * _PHOTO_FACTOR)
    part = rng.uniform(0.35, 1) * min(photo.size)
    left = rng.uniform(0, photo.width - part)
    top = rng.uniform(0, photo.height - part)
    image = photo.resize(
        (side, side), Image.Resampling.BILINEAR, (left, top, left + part, top + part), 2.0
    )
    boxes = []
    for thing, index in zip(scene.scene.things, scene.cutouts, strict=True):
        stamp = _stamp(collection.cutouts[index].path, side)
        scale = 2 * thing.radius / max(stamp.size)
        size = (max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale)))
        stamp = stamp.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        if rng.bernoulli():
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corner = (round(thing.x - size[0] / 2), round(thing.y - size[1] / 2))
        alpha = stamp.getchannel("A")
        image.paste(stamp, corner, alpha)
        x0, y0, x1, y1 = opaque_box(np.asarray(alpha)) or (0, 0, *size)
        boxes.append((corner[0] + x0, corner[1] + y0, corner[0] + x1, corner[1] + y1))
    return np.asarray(image), boxes


@lru_cache(maxsize=64)
def _photo(path: str, side: int) -> Image.Image:
    """Read a photograph, downscaled to a shorter side of at most `side` pixels."""
    with Image.open(path) as file:
        file.draft("RGB", (side, side))
        photo = file.convert("RGB")
    scale = side / min(photo.size)
    if scale < 1:
        size = (max(side, round(photo.width * scale)), max(side, round(photo.height * scale)))
        photo = photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return photo


@lru_cache(maxsize=1024)
def _stamp(path: str, side: int) -> Image.Image:
    """Read the opaque part of a cut-out, downscaled to a longer side of at most `side` pixels."""
    with Image.open(path) as file:
        stamp = file.convert("RGBA")
    box = opaque_box(np.asarray(stamp.getchannel("A")))
    assert box is not None
    stamp = stamp.crop(box)
    scale = side / max(stamp.size)
    if scale < 1:
        size = (max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale)))
        stamp = stamp.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return stamp


# Statements search previous images.
@lru_cache(maxsize=256)
def _stamp_scene(recipe: StampRecipe, split: str, index: int) -> StampScene:
    return sample_stamp_scene(recipe, *_open(recipe), split, index)


@lru_cache(maxsize=4)
def _open(recipe: StampRecipe) -> tuple[StampCollection, World]:
    collection = read_collection(recipe.stamps, recipe.backgrounds)
    return collection, stamps_world(collection, recipe.seed)
