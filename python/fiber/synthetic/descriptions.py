"""All that is said about one picture: texts of the scene, and of the pair that it belongs to."""

from __future__ import annotations

from collections.abc import Callable

from fiber.data.rng import Draws
from fiber.synthetic.annotations import Picture, Statement
from fiber.synthetic.captions import captions, expressions
from fiber.synthetic.dataset_dir import file_name
from fiber.synthetic.questions import Claim, opposite_pair, questions, statements, swapped_captions
from fiber.synthetic.scene_graph import Scene, World, stream

_TEXTS, _PAIRS = 2, 3
#: Earlier pictures among which the other pair of a statement is looked for.
_LOOK_BACK = 64


def describe_scene(
    world: World,
    scene_of: Callable[[int], Scene],
    *,
    seed: int,
    split: str,
    index: int,
    image_size: int,
) -> Picture:
    """Return a picture with all its texts; its boxes are not known yet.

    Args:
        world: the words and what is held out.
        scene_of: what the picture of an index shows; asked for this one and for earlier ones.
        seed: of the data set.
        split: of the picture.
        index: of the picture. Odd ones form a pair with the one before; texts about both stand
            with the second one, so that both exist.
        image_size: side of the picture in pixels.
    """
    novel, scene = split == "novel", scene_of(index)
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
    if index % 2 == 1:
        left = scene_of(index - 1)
        draws = Draws(seed, stream(split, _PAIRS), index)
        picture.partner = file_name(split, index - 1)
        claims = statements(world, left, scene, draws, novel)
        picture.statements = [_with_opposite(world, c, scene_of, split, index) for c in claims]
        if scene.swap:
            picture.swapped_captions = swapped_captions(left, scene)
    return picture


def _with_opposite(
    world: World, claim: Claim, scene_of: Callable[[int], Scene], split: str, index: int
) -> Statement:
    """Find another pair of pictures of which the opposite is true."""
    earlier = range(index - 2, max(-1, index - 2 - _LOOK_BACK), -1)
    pair = opposite_pair(world, claim, scene_of, index, earlier)
    names = pair and (file_name(split, pair[0]), file_name(split, pair[1]))
    return claim.statement._replace(opposite=names)


def all_texts(picture: Picture) -> list[str]:
    """Return every text of a picture, for training a tokenizer."""
    entries = [
        *picture.captions,
        *picture.expressions,
        *picture.questions,
        *picture.statements,
    ]
    return [entry.text for entry in entries]
