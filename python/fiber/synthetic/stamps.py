"""Stamps: real cut-outs pasted on photographs, with texts of every kind and exact boxes.

    fiber data stamps --output runs/stamps --images 8000

The same files as `fiber.synthetic.scenes` writes, for the same commands.
Nouns come from the cut-outs' captions; one family of nouns in eight is held out: only pictures of
`novel` show it. Picture i of a split depends on (seed, split, i) and the pictures found only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

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
from fiber.synthetic.rendering import PixelBox, save_jpeg
from fiber.synthetic.scene_graph import Scene, Thing, World, place, relation, stream
from fiber.synthetic.stamp_assets import (
    Collection,
    debian_backgrounds,
    debian_stamps,
    family_of,
    opaque_box,
    read_collection,
)

#: Rises when the same seed and pictures give other data.
VERSION = 2

#: Half of a stamp's longer side as a part of the picture's side.
RADII = (0.14, 0.24)

_SCENE, _PIXELS, _HELD_OUT = 0, 1, 254
_TOKENIZER_PICTURES = 2000
# Every fourth pair of pictures is the same scene with two things swapped.
_TWIN_EVERY = 4
# A stamp is enlarged no more than this, a photograph is stored no larger than this times the side.
_MOST_ENLARGED, _PHOTO_FACTOR = 1.5, 4


@dataclass(frozen=True)
class StampRecipe:
    """What decides every picture of a data set."""

    seed: int
    image_size: int
    max_objects: int
    stamps: Path
    backgrounds: tuple[Path, ...]


@dataclass(frozen=True)
class StampScene:
    """A scene with the cut-out of each of its things, as indices of `Collection.cutouts`."""

    scene: Scene
    cutouts: tuple[int, ...]


def generate(
    output: str | PathLike[str],
    *,
    train: int = 8000,
    val: int = 500,
    novel: int = 500,
    image_size: int = 160,
    max_objects: int = 4,
    backgrounds: str | PathLike[str] | None = None,
    stamps: str | PathLike[str] | None = None,
    seed: int = 0,
    workers: int = 0,
    tokenizer: str | PathLike[str] | None = None,
    vocab_size: int = 1500,
    progress: Progress | None = None,
) -> Path:
    """Make a data folder of stamps on photographs, or keep the one that is there.

    Args:
        output: the folder; it appears under this name only when it is whole.
        train: pictures of the training split.
        val: new pictures of the same nouns.
        novel: pictures that each show a held-out noun.
        image_size: side of the pictures in pixels, 48 or more.
        max_objects: most things in a picture, 1 to 9.
        backgrounds: folder of photographs; None takes those of two Debian packages.
        stamps: folder of RGBA PNG files, each beside a .txt with its caption; None takes Debian's
            tuxpaint-stamps-default. What is not here is fetched with apt-get and kept in the cache.
        seed: decides everything, the held-out nouns too.
        workers: processes that draw; 0 draws in this one. The files are the same.
        tokenizer: folder or file of a tokenizer to copy; None trains one on the texts.
        vocab_size: most tokens of the trained tokenizer.
        progress: called with (pictures done, pictures in all).

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of range, the folder holds another data set, or there are
            too few nouns.
        FileNotFoundError: if pictures are missing and cannot be fetched, with how to get them.
    """
    counts = {"train": train, "val": val, "novel": novel}
    check_arguments(counts, image_size, max_objects)
    folder = Path(output)
    recipe = StampRecipe(
        seed,
        image_size,
        max_objects,
        stamps=debian_stamps() if stamps is None else Path(stamps),
        backgrounds=tuple(debian_backgrounds() if backgrounds is None else [Path(backgrounds)]),
    )
    collection, world = _open(recipe)
    parameters = {
        "generator": "stamps",
        "version": VERSION,
        "seed": seed,
        "counts": counts,
        "image_size": image_size,
        "max_objects": max_objects,
        "pictures": collection.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer, vocab_size),
    }
    if is_finished(folder, parameters):
        return folder
    with explain_write_errors(folder, DISK_FULL), new_directory(folder) as partial:
        pictures = (describe_picture(recipe, "train", i)[0] for i in range(_TOKENIZER_PICTURES))
        texts = [text for picture in pictures for text in all_texts(picture)]
        write_tokenizer(partial, tokenizer, texts, vocab_size)
        write_pictures(
            partial,
            counts,
            make_pictures,
            recipe,
            class_names=collection.nouns,
            info=f"fiber stamps, version {VERSION}, seed {seed}",
            workers=workers,
            progress=progress,
        )
        write_description(
            partial,
            parameters,
            held_out={"nouns": sorted(noun for _, noun in world.held_out_pairs)},
            found={
                "stamps": len(collection.cutouts),
                "nouns": len(collection.nouns),
                "photographs": len(collection.backgrounds),
                "left_out": dict(collection.left_out),
            },
        )
    return folder


def stamps_world(collection: Collection, seed: int) -> World:
    """Return the world of a collection's nouns; one family in eight, at least one, is held out.

    Raises:
        ValueError: if there are fewer than four families of nouns.
    """
    families = {noun: family_of(noun) for noun in collection.nouns}
    names = sorted(set(families.values()))
    if len(names) < 4:
        raise ValueError(
            f"the stamps show {len(names)} kinds of things ({', '.join(names)}); expected 4 or more"
        )
    chosen = set(Draws(seed, _HELD_OUT, 0).shuffled(names)[: max(1, len(names) // 8)])
    held_out = frozenset(("", noun) for noun, family in families.items() if family in chosen)
    return World(collection.nouns, held_out_pairs=held_out, families=families)


def sample_stamp_scene(
    recipe: StampRecipe, collection: Collection, world: World, split: str, index: int
) -> StampScene:
    """Draw what picture `index` of a split shows. It depends on nothing else."""
    pair, twin = index // 2, index // 2 % _TWIN_EVERY == 0 and recipe.max_objects >= 2
    draws = Draws(recipe.seed, stream(split, _SCENE), pair * 2 if twin else index)
    novel, most = split == "novel", recipe.max_objects
    counted = not twin and draws.coin(0.2)
    copies = 1 + draws.below(most) if counted else 1
    low = max(copies, 2 if twin else 1)
    count = low + draws.below(most - low + 1)
    nouns = _draw_nouns(world, draws, count - copies + 1, novel)
    if not counted and not twin and count > 2 and draws.coin(0.4):
        # Two of a kind: only a relation tells which is meant.
        nouns[-1] = nouns[0]
    nouns = [nouns[0]] * (copies - 1) + nouns
    cutouts = tuple(draws.choice(collection.by_noun[noun]) for noun in nouns)
    things = []
    for noun, cutout in zip(nouns, cutouts, strict=True):
        native = max(collection.cutouts[cutout].size) / 2 * _MOST_ENLARGED
        radius = min(draws.between(*RADII) * recipe.image_size, native)
        things.append(Thing(noun, radius=radius))
    side = (recipe.image_size, recipe.image_size)

    def accept(placed: Sequence[Thing]) -> bool:
        return not twin or relation(placed[0], placed[1]) is not None

    scene = Scene(
        place(things, side, draws, accept),
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


def _draw_nouns(world: World, draws: Draws, count: int, novel: bool) -> list[str]:
    """Draw nouns of different families; the first is held out if novel, else none is."""
    held_out = sorted(noun for _, noun in world.held_out_pairs)
    shown = [noun for _, noun in world.shown_pairs]
    nouns: list[str] = []
    for number in range(count):
        pool = held_out if novel and (number == 0 or draws.coin(0.15)) else shown
        seen = {world.family(noun) for noun in nouns}
        free = [noun for noun in pool if world.family(noun) not in seen]
        free = free or [noun for noun in shown if world.family(noun) not in seen]
        # Where there are very few kinds of things, one is shown again.
        nouns.append(draws.choice(free or nouns))
    return nouns


def describe_picture(recipe: StampRecipe, split: str, index: int) -> tuple[Picture, StampScene]:
    """Return one picture's texts and its scene, without drawing it: its boxes are empty."""
    _, world = _open(recipe)
    picture = describe_scene(
        world,
        lambda number: _scene(recipe, split, number).scene,
        seed=recipe.seed,
        split=split,
        index=index,
        image_size=recipe.image_size,
    )
    return picture, _scene(recipe, split, index)


def make_pictures(job: PictureJob) -> list[Picture]:
    """Draw and describe the pictures of a job."""
    recipe: StampRecipe = job.recipe
    pictures = []
    for index in range(job.start, job.stop):
        picture, scene = describe_picture(recipe, job.split, index)
        draws = Draws(recipe.seed, stream(job.split, _PIXELS), index)
        pixels, picture.boxes_xyxy = draw_stamps(recipe, scene, draws)
        save_jpeg(pixels, f"{job.images}/{picture.file_name}")
        pictures.append(picture)
    return pictures


def draw_stamps(
    recipe: StampRecipe, scene: StampScene, draws: Draws
) -> tuple[np.ndarray, list[PixelBox]]:
    """Paste the cut-outs of a scene on a part of a photograph.

    Returns:
        (H, W, 3) uint8 RGB, and one box for each thing: the bounds of its pixels with alpha > 0.5.
    """
    collection, _ = _open(recipe)
    side = recipe.image_size
    photo = _photo(draws.choice(collection.backgrounds), side * _PHOTO_FACTOR)
    part = draws.between(0.35, 1) * min(photo.size)
    left = draws.between(0, photo.width - part)
    top = draws.between(0, photo.height - part)
    picture = photo.resize(
        (side, side), Image.Resampling.BILINEAR, (left, top, left + part, top + part), 2.0
    )
    boxes = []
    for thing, index in zip(scene.scene.things, scene.cutouts, strict=True):
        stamp = _stamp(collection.cutouts[index].path, side)
        scale = 2 * thing.radius / max(stamp.size)
        size = (max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale)))
        stamp = stamp.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        if draws.coin():
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corner = (round(thing.x - size[0] / 2), round(thing.y - size[1] / 2))
        alpha = stamp.getchannel("A")
        picture.paste(stamp, corner, alpha)
        x0, y0, x1, y1 = opaque_box(np.asarray(alpha)) or (0, 0, *size)
        boxes.append((corner[0] + x0, corner[1] + y0, corner[0] + x1, corner[1] + y1))
    return np.asarray(picture), boxes


@lru_cache(maxsize=64)
def _photo(path: str, side: int) -> Image.Image:
    """Read a photograph, its shorter side at most `side` pixels."""
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
    """Read the opaque part of a cut-out, its longer side at most `side` pixels."""
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


# Statements look back at what the pictures before showed.
@lru_cache(maxsize=256)
def _scene(recipe: StampRecipe, split: str, index: int) -> StampScene:
    return sample_stamp_scene(recipe, *_open(recipe), split, index)


@lru_cache(maxsize=4)
def _open(recipe: StampRecipe) -> tuple[Collection, World]:
    """Read the collection of a recipe, once in each process."""
    collection = read_collection(recipe.stamps, recipe.backgrounds)
    return collection, stamps_world(collection, recipe.seed)
