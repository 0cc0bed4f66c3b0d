"""All texts of an image: those of its scene, and those of the pair that it belongs to."""

from __future__ import annotations

from collections.abc import Callable

from fiber.data.rng import Rng
from fiber.synthetic.annotations import AnnotatedImage, Statement
from fiber.synthetic.captions import captions, expressions
from fiber.synthetic.dataset_dir import file_name
from fiber.synthetic.questions import (
    PairStatement,
    opposite_pair,
    questions,
    statements,
    swapped_captions,
)
from fiber.synthetic.scene_graph import Scene, World, stream

_TEXTS, _PAIRS = 2, 3
#: Number of earlier images that are searched for the opposite pair of a statement.
_LOOK_BACK = 64


def describe_scene(
    world: World,
    scene_of: Callable[[int], Scene],
    *,
    seed: int,
    split: str,
    index: int,
    image_size: int,
) -> AnnotatedImage:
    """Return an image with all its texts and without boxes.

    Args:
        world: vocabulary, and what is held out.
        scene_of: returns the scene of an index; called for this image and earlier ones.
        seed: of the data set.
        split: of the image.
        index: of the image. An odd one forms a pair with the previous image, and has the texts
            about both, so that both exist.
        image_size: side of the image in pixels.
    """
    novel, scene = split == "novel", scene_of(index)
    rng = Rng(seed, stream(split, _TEXTS), index)
    image = AnnotatedImage(
        image_id=index,
        file_name=file_name(split, index),
        image_size=(image_size, image_size),
        boxes_xyxy=[],
        category_ids=[world.nouns.index(thing.noun) + 1 for thing in scene.things],
        captions=captions(world, scene.things, rng, novel),
        expressions=expressions(world, scene.things, rng, novel),
        questions=questions(world, scene, rng, novel),
    )
    if index % 2 == 1:
        left = scene_of(index - 1)
        rng = Rng(seed, stream(split, _PAIRS), index)
        image.partner = file_name(split, index - 1)
        pairs = statements(world, left, scene, rng, novel)
        image.statements = [_with_opposite(world, s, scene_of, split, index) for s in pairs]
        if scene.swap:
            image.swapped_captions = swapped_captions(left, scene)
    return image


def _with_opposite(
    world: World,
    claim: PairStatement,
    scene_of: Callable[[int], Scene],
    split: str,
    index: int,
) -> Statement:
    """Add a pair of images for which the opposite is true, if one is found."""
    earlier = range(index - 2, max(-1, index - 2 - _LOOK_BACK), -1)
    pair = opposite_pair(world, claim, scene_of, index, earlier)
    names = pair and (file_name(split, pair[0]), file_name(split, pair[1]))
    return claim.statement._replace(opposite=names)


def all_texts(image: AnnotatedImage) -> list[str]:
    """Return every text of an image, for training a tokenizer."""
    entries = [*image.captions, *image.expressions, *image.questions, *image.statements]
    return [entry.text for entry in entries]
