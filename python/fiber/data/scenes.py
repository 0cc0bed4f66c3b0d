"""Grounded scenes: pictures of coloured shapes with texts of every kind, made from one seed.

    fiber data scenes --output runs/scenes --images 20000

Picture i of a split depends on (seed, split, i) only: neither on how many pictures there are nor on
how many processes draw them. What is shown is in `scene_graphs`, how it looks in `scene_pictures`,
what is said in `scene_texts` and `scene_questions`, and the files are those of `annotations`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

from fiber.data.annotations import Picture, encode, write_split
from fiber.data.draws import Draws
from fiber.data.folders import (
    Progress,
    is_finished,
    new_folder,
    run_jobs,
    write_description,
    write_tokenizer,
)
from fiber.data.scene_graphs import (
    SHAPES,
    SPLITS,
    Scene,
    World,
    sample_scene,
    shapes_world,
    stream,
)
from fiber.data.scene_pictures import PixelBox, draw_scene, save_jpeg
from fiber.data.scene_questions import questions, statements, swapped_captions
from fiber.data.scene_texts import captions, expressions

#: Rises when the same seed gives other data.
VERSION = 1

_PIXELS, _TEXTS, _PAIRS = 1, 2, 3
_PER_JOB = 200
_PER_FOLDER = 1000
_TOKENIZER_PICTURES = 800


@dataclass(frozen=True)
class _Job:
    """Some pictures of one split, for one process."""

    folder: str
    seed: int
    split: str
    start: int
    stop: int
    image_size: int
    max_objects: int


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
        vocab_size: tokens of the trained tokenizer.
        progress: called with (pictures done, pictures in all).

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of range, or the folder holds another data set.
    """
    counts = {"train": train, "val": val, "novel": novel}
    for split, count in counts.items():
        if not 0 <= count < 10**6:
            raise ValueError(f"{split} is {count} pictures; expected 0 to 999,999")
    if image_size < 48:
        raise ValueError(f"image_size is {image_size}; expected 48 pixels or more")
    if not 1 <= max_objects <= 9:
        raise ValueError(f"max_objects is {max_objects}; expected 1 to 9")
    folder = Path(output)
    parameters = {
        "generator": "scenes",
        "version": VERSION,
        "seed": seed,
        "counts": counts,
        "image_size": image_size,
        "max_objects": max_objects,
        "tokenizer": f"trained, {vocab_size} tokens" if tokenizer is None else _digest(tokenizer),
    }
    if is_finished(folder, parameters):
        return folder
    world = shapes_world(seed)
    with new_folder(folder) as partial:
        texts = [t for i in range(_TOKENIZER_PICTURES) for t in picture_texts(seed, i, max_objects)]
        write_tokenizer(partial, tokenizer, texts, vocab_size)
        _write_splits(partial, counts, seed, image_size, max_objects, workers, progress)
        write_description(
            partial,
            parameters,
            held_out={
                "color_shape": [list(pair) for pair in sorted(world.held_out_pairs)],
                "relations": [list(fact) for fact in sorted(world.held_out_facts)],
            },
        )
    return folder


def picture_texts(seed: int, index: int, max_objects: int = 4) -> list[str]:
    """Return every text of picture `index` of the training split."""
    picture, _ = describe_picture(seed, "train", index, max_objects=max_objects)
    return [
        entry.text
        for entries in (
            picture.captions,
            picture.expressions,
            picture.questions,
            picture.statements,
        )
        for entry in entries
    ]


def describe_picture(
    seed: int, split: str, index: int, *, image_size: int = 96, max_objects: int = 4
) -> tuple[Picture, Scene]:
    """Return one picture's texts and its scene, without drawing it: its boxes are empty."""
    world = _world(seed)
    size = {"image_size": image_size, "max_objects": max_objects}
    scene = sample_scene(world, seed, split, index, **size)
    draws = Draws(seed, stream(split, _TEXTS), index)
    novel = split == "novel"
    picture = Picture(
        image_id=index,
        file_name=file_name(split, index),
        image_size=(image_size, image_size),
        boxes_xyxy=[],
        category_ids=[SHAPES.index(thing.noun) + 1 for thing in scene.things],
        captions=captions(world, scene.things, draws, novel),
        expressions=expressions(world, scene.things, draws, novel),
        questions=questions(world, scene, draws, novel),
    )
    if index % 2 == 1:
        # The texts of a pair stand with its second picture, so that both of them exist.
        left = sample_scene(world, seed, split, index - 1, **size)
        draws = Draws(seed, stream(split, _PAIRS), index)
        picture.partner = file_name(split, index - 1)
        picture.statements = statements(world, left, scene, draws, novel)
        if scene.swap:
            picture.swapped_captions = swapped_captions(left, scene)
    return picture, scene


def file_name(split: str, index: int) -> str:
    """Return the path of a picture below the folder of pictures."""
    return f"{split}/{index // _PER_FOLDER:03d}/{index:06d}.jpg"


@lru_cache(maxsize=4)
def _world(seed: int) -> World:
    return shapes_world(seed)


def _draw(job: _Job, scene: Scene, path: str, index: int) -> list[PixelBox]:
    draws = Draws(job.seed, stream(job.split, _PIXELS), index)
    pixels, boxes = draw_scene(scene, job.image_size, draws)
    save_jpeg(pixels, path)
    return boxes


def _make_pictures(job: _Job) -> tuple[int, dict[str, list[str]]]:
    """Draw and describe the pictures of a job; return their number and annotations."""
    pictures = []
    size = {"image_size": job.image_size, "max_objects": job.max_objects}
    for index in range(job.start, job.stop):
        picture, scene = describe_picture(job.seed, job.split, index, **size)
        path = f"{job.folder}/images/{picture.file_name}"
        picture.boxes_xyxy = _draw(job, scene, path, index)
        pictures.append(picture)
    return len(pictures), encode(pictures, job.split)


def _write_splits(
    folder: Path,
    counts: dict[str, int],
    seed: int,
    image_size: int,
    max_objects: int,
    workers: int,
    progress: Progress | None,
) -> None:
    """Draw all splits and write their annotation files."""
    jobs = []
    for split in SPLITS:
        for start in range(0, max(counts[split], 1), _PER_FOLDER):
            (folder / "images" / file_name(split, start)).parent.mkdir(parents=True)
        for start in range(0, counts[split], _PER_JOB):
            stop = min(start + _PER_JOB, counts[split])
            jobs.append(_Job(str(folder), seed, split, start, stop, image_size, max_objects))
    done, results = 0, run_jobs(_make_pictures, jobs, workers)
    info = f"fiber scenes, version {VERSION}, seed {seed}"
    for split in SPLITS:
        sections = encode([], split)
        for _ in (job for job in jobs if job.split == split):
            number, entries = next(results)
            for section, lines in entries.items():
                sections[section] += lines
            done += number
            if progress is not None:
                progress(done, sum(counts.values()))
        write_split(folder, split, sections, SHAPES, info)


def _digest(tokenizer: str | PathLike[str]) -> str:
    """Return a short fingerprint of a tokenizer's files."""
    path = Path(tokenizer)
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    files = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{path} holds no tokenizer; expected tokenizer.json, or vocab.json and merges.txt"
        )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
