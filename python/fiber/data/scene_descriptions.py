"""All that is said about one picture: texts of the scene, and of the pair that it belongs to."""

from __future__ import annotations

from fiber.data.annotations import Picture
from fiber.data.draws import Draws
from fiber.data.folders import file_name
from fiber.data.scene_graphs import Scene, World, stream
from fiber.data.scene_questions import questions, statements, swapped_captions
from fiber.data.scene_texts import captions, expressions

_TEXTS, _PAIRS = 2, 3


def describe_scene(
    world: World,
    scene: Scene,
    left: Scene | None,
    *,
    seed: int,
    split: str,
    index: int,
    image_size: int,
) -> Picture:
    """Return a picture with all its texts; its boxes are not known yet.

    Args:
        world: the words and what is held out.
        scene: what the picture shows.
        left: what picture index - 1 shows, where index is odd. The texts about both stand with the
            second one, so that both exist.
        seed: of the data set.
        split: of the picture.
        index: of the picture.
        image_size: side of the picture in pixels.
    """
    novel = split == "novel"
    draws = Draws(seed, stream(split, _TEXTS), index)
    picture = Picture(
        image_id=index,
        file_name=file_name(split, index),
        image_size=(image_size, image_size),
        boxes_xyxy=[],
        category_ids=[world.nouns.index(thing.noun) + 1 for thing in scene.things],
        captions=captions(world, scene.things, draws, novel),
        expressions=expressions(world, scene.things, draws, novel),
        questions=questions(world, scene, draws, novel),
    )
    if left is not None:
        draws = Draws(seed, stream(split, _PAIRS), index)
        picture.partner = file_name(split, index - 1)
        picture.statements = statements(world, left, scene, draws, novel)
        if scene.swap:
            picture.swapped_captions = swapped_captions(left, scene)
    return picture


def all_texts(picture: Picture) -> list[str]:
    """Return every text of a picture, for training a tokenizer."""
    entries = [
        *picture.captions,
        *picture.expressions,
        *picture.questions,
        *picture.statements,
    ]
    return [entry.text for entry in entries]
