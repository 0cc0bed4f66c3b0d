"""Stamps: real cut-outs pasted onto photographs, with exact boxes and all kinds of annotations.

    fiber data stamps --output runs/stamps --images 8000

The files have the same formats as those of `fiber.synthetic.scenes`, so the same commands read
them. Nouns come from the captions of the cut-outs. One eighth of the noun families is held out and
occurs only in images of `novel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fiber.data.formats.generated import VERSIONS
from fiber.data.record import AnyPath
from fiber.data.rng import Rng
from fiber.synthetic.generator import generate_dataset
from fiber.synthetic.panoptic import Drawn, bounds
from fiber.synthetic.recipe import PIXELS, Recipe
from fiber.synthetic.scene_graph import (
    TWIN_EVERY,
    Scene,
    Thing,
    World,
    place,
    relation,
    stream,
    swapped,
)
from fiber.synthetic.stamp_assets import (
    StampCollection,
    debian_backgrounds,
    debian_stamps,
    family_of,
    read_collection,
)

#: Half of a stamp's longer side, relative to the image's side.
RADII = (0.14, 0.24)

_SCENE, _HELD_OUT = 0, 254
# Maximum magnification of a stamp, and maximum size of a cached photograph relative to the image.
_MAX_MAGNIFICATION, _PHOTO_FACTOR = 1.5, 4


@dataclass(frozen=True)
class StampRecipe(Recipe):
    """Recipe for stamps on photographs."""

    #: Folder of RGBA PNG files, each with its caption in a .txt file; None means Debian's
    #: tuxpaint-stamps-default. Missing packages are downloaded with apt-get and cached.
    stamps: AnyPath | None = None
    #: Folder of photographs; None means photographs from two Debian packages.
    backgrounds: AnyPath | None = None

    name = "stamps"
    version = VERSIONS["stamps"]
    tokenizer_images = 2000
    vocab_size = 1500

    @cached_property
    def collection(self) -> StampCollection:
        """Stamps and photographs."""
        stamps = debian_stamps() if self.stamps is None else Path(self.stamps)
        photos = debian_backgrounds() if self.backgrounds is None else [Path(self.backgrounds)]
        return read_collection(stamps, photos)

    @cached_property
    def world(self) -> World:
        """See `Recipe`."""
        return stamps_world(self.collection, self.seed)

    def _sample_scene(self, split: str, index: int) -> Scene:
        return sample_stamp_scene(self, split, index)

    def render(self, split: str, index: int) -> Drawn:
        """See `Recipe`."""
        rng = Rng(self.seed, stream(split, PIXELS), index)
        return draw_stamps(self, self.scene(split, index), rng)

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
    **options: Any,
) -> Path:
    """Generate a dataset of stamps on photographs, and return its folder.

    Arguments and errors are those of `StampRecipe` and `generate_dataset`. Every image of `novel`
    shows an object with a held-out noun.
    """
    counts = {"train": train, "val": val, "novel": novel}
    recipe = StampRecipe(seed, image_size, max_objects, stamps, backgrounds)
    return generate_dataset(output, recipe, counts, **options)


def stamps_world(collection: StampCollection, seed: int) -> World:
    """Return the world of a collection's nouns, with one eighth of their families held out.

    Raises ValueError if there are fewer than four families.
    """
    families = {noun: family_of(noun) for noun in collection.nouns}
    names = sorted(set(families.values()))
    if len(names) < 4:
        raise ValueError(
            f"the stamps show {len(names)} kinds of objects ({', '.join(names)}); expected 4 or"
            " more"
        )
    chosen = set(Rng(seed, _HELD_OUT, 0).shuffled(names)[: max(1, len(names) // 8)])
    held_out = frozenset(("", noun) for noun, family in families.items() if family in chosen)
    return World(collection.nouns, held_out_pairs=held_out, families=families)


def sample_stamp_scene(recipe: StampRecipe, split: str, index: int) -> Scene:
    """Sample the scene of an image, independently of other images."""
    pair, most = index // 2, recipe.max_objects
    twin = pair % TWIN_EVERY == 0 and most >= 2
    rng = Rng(recipe.seed, stream(split, _SCENE), pair * 2 if twin else index)
    counted = not twin and rng.bernoulli(0.2)
    copies = 1 + rng.integer(most) if counted else 1
    low = max(copies, 2 if twin else 1)
    count = low + rng.integer(most - low + 1)
    nouns = _sample_nouns(recipe.world, rng, count - copies + 1, split == "novel")
    if not counted and not twin and count > 2 and rng.bernoulli(0.4):
        # Two objects of a kind, distinguished only by a relation.
        nouns[-1] = nouns[0]
    nouns = [nouns[0]] * (copies - 1) + nouns
    collection = recipe.collection
    cutouts = [rng.choice(collection.by_noun[noun]) for noun in nouns]
    things = []
    for noun, cutout in zip(nouns, cutouts, strict=True):
        native = max(collection.cutouts[cutout].size) / 2 * _MAX_MAGNIFICATION
        radius = min(rng.uniform(*RADII) * recipe.image_size, native)
        things.append(Thing(noun, radius=radius, cutout=cutout))

    def accept(placed: Sequence[Thing]) -> bool:
        return not twin or relation(placed[0], placed[1]) is not None

    scene = Scene(
        place(things, recipe.image_size, rng, accept),
        counted=("noun", nouns[0]) if counted else None,
        swap="place" if twin else "",
    )
    return swapped(scene) if twin and index % 2 == 1 else scene


def _sample_nouns(world: World, rng: Rng, count: int, novel: bool) -> list[str]:
    """Sample nouns of different families. If `novel`, the first is held out, otherwise none is."""
    held_out = sorted(noun for _, noun in world.held_out_pairs)
    shown = [noun for _, noun in world.shown_pairs]
    nouns: list[str] = []
    for number in range(count):
        pool = held_out if novel and (number == 0 or rng.bernoulli(0.15)) else shown
        seen = {world.family(noun) for noun in nouns}
        free = [noun for noun in pool if world.family(noun) not in seen]
        free = free or [noun for noun in shown if world.family(noun) not in seen]
        # With very few families, nouns are repeated.
        nouns.append(rng.choice(free or nouns))
    return nouns


def draw_stamps(recipe: StampRecipe, scene: Scene, rng: Rng) -> Drawn:
    """Paste the cut-outs of a scene onto a crop of a photograph."""
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
    things = Image.new("L", (side, side))
    for number, thing in enumerate(scene.things, 1):
        stamp = _stamp(collection.cutouts[thing.cutout].path, side)
        stamp = _resize(stamp, 2 * thing.radius / max(stamp.size), Image.Resampling.BICUBIC)
        if rng.bernoulli():
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x, y = round(thing.x - stamp.width / 2), round(thing.y - stamp.height / 2)
        alpha = stamp.getchannel("A")
        image.paste(stamp, (x, y), alpha)
        visible = np.asarray(alpha) > 127
        things.paste(number, (x, y), Image.fromarray(visible.astype(np.uint8) * 255))
        x0, y0, x1, y1 = bounds(visible) or (0, 0, *stamp.size)
        boxes.append((x + x0, y + y0, x + x1, y + y1))
    return Drawn(np.asarray(image), boxes, np.asarray(things), np.zeros((side, side), np.uint8))


def _resize(
    image: Image.Image, scale: float, resampling: Image.Resampling, least: int = 1
) -> Image.Image:
    """Resize an image by a factor, keeping both sides at least `least` pixels long."""
    size = max(least, round(image.width * scale)), max(least, round(image.height * scale))
    return image.resize(size, resampling, reducing_gap=2.0)


@lru_cache(maxsize=64)
def _photo(path: str, side: int) -> Image.Image:
    """Read a photograph, downscaled so that its shorter side is at most `side` pixels."""
    with Image.open(path) as file:
        file.draft("RGB", (side, side))
        photo = file.convert("RGB")
    scale = side / min(photo.size)
    return _resize(photo, scale, Image.Resampling.BICUBIC, side) if scale < 1 else photo


@lru_cache(maxsize=1024)
def _stamp(path: str, side: int) -> Image.Image:
    """Read the opaque part of a cut-out, downscaled so that no side exceeds `side` pixels."""
    with Image.open(path) as file:
        stamp = file.convert("RGBA")
    stamp = stamp.crop(bounds(np.asarray(stamp.getchannel("A")) > 127))
    scale = side / max(stamp.size)
    return _resize(stamp, scale, Image.Resampling.LANCZOS) if scale < 1 else stamp
