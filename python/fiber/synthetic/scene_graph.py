"""Scene graphs: the objects in an image, their positions, and what is held out.

An object has a noun and up to three attributes (size, material, color). Some (color, noun) pairs
and some spatial facts (noun, relation, noun) are held out: they never occur in the splits `train`
and `val`, and every image of `novel` has a held-out pair.

Scenes are balanced by symmetry. Each color and each noun is in exactly one held-out pair.
Attributes are sampled independently of positions, and positions independently of colors. Therefore,
any permutation of colors (with nouns permuted accordingly) leaves the distribution of scenes
unchanged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from fiber.data.rng import Rng

SPLITS = ("train", "val", "novel")
RELATIONS = ("left of", "right of", "above", "below")
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SIZES = ("small", "large")
MATERIALS = ("plain", "striped")

#: Radius of an object relative to the image's side; at 96 pixels, diameters are 21-25 and 35-40.
RADII = {"small": (0.11, 0.13), "large": (0.18, 0.21)}

#: In every fourth pair of images (2m, 2m + 1), the images differ only by a swap of two objects or
#: of their colors.
TWIN_EVERY = 4

# Random number streams.
_SCENE, _HELD_OUT = 0, 255
# For a relation such as "left of", the offset on one axis must exceed the other by this factor.
_CONE = 1.3


#: (color, noun).
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object in an image. An empty attribute is not used by the dataset."""

    noun: str
    color: str = ""
    size: str = ""
    material: str = ""
    #: Center and radius in pixels.
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    #: Index of the stamp in `StampCollection.cutouts`.
    cutout: int = -1

    @property
    def pair(self) -> Pair:
        """Color and noun."""
        return self.color, self.noun


@dataclass(frozen=True, slots=True)
class Scene:
    """The objects in an image and how its texts should refer to them."""

    things: tuple[Thing, ...]
    #: ("noun" or "color", word) that questions may ask to count, with balanced answers.
    counted: tuple[str, str] | None = None
    #: "color" or "place": what objects 0 and 1 swap in the other image of the pair.
    swap: str = ""
    #: Held-out fact about objects 0 and 1 to ask about (novel only), true and false equally often.
    asked_fact: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class World:
    """The words of a dataset, and what is held out from its training split."""

    nouns: tuple[str, ...]
    colors: tuple[str, ...] = ("",)
    sizes: tuple[str, ...] = ("",)
    materials: tuple[str, ...] = ("",)
    held_out_pairs: frozenset[Pair] = frozenset()
    held_out_facts: frozenset[tuple[str, str, str]] = frozenset()
    #: Family of each noun. Nouns of a family may apply to the same object ("ball", "tennis ball"),
    #: so if one is shown, texts do not mention another. Default: the noun itself.
    families: Mapping[str, str] = field(default_factory=dict)
    #: All (color, noun) pairs that training images may show, in a fixed order.
    shown_pairs: tuple[Pair, ...] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [(color, noun) for noun in self.nouns for color in self.colors]
        shown = tuple(pair for pair in pairs if pair not in self.held_out_pairs)
        object.__setattr__(self, "shown_pairs", shown)

    def is_held_out(self, thing: Thing) -> bool:
        """Return whether the object's color and noun are a held-out pair."""
        return thing.pair in self.held_out_pairs

    def family(self, noun: str) -> str:
        """Return the family of a noun."""
        return self.families.get(noun, noun)

    def is_held_out_fact(self, noun: str, relation: str, other: str) -> bool:
        """Return whether "noun relation other", or its converse, is held out."""
        facts = self.held_out_facts
        return (noun, relation, other) in facts or (other, CONVERSE[relation], noun) in facts


def shapes_world(seed: int) -> World:
    """Return the world of colored shapes.

    The seed determines what is held out. One eighth of the (color, shape) pairs are held out, one
    for each color and each shape. Of the 112 facts (28 pairs of shapes, four relations), 12 are
    held out, three for each shape.
    """
    rng = Rng(seed, _HELD_OUT, 0)
    nouns = rng.shuffled(SHAPES)
    pairs = zip(rng.shuffled(COLORS), nouns, strict=True)
    # Arrange the shapes on a circle; each meets its two neighbors and its opposite.
    count = len(nouns)
    meetings = [(i, (i + 1) % count) for i in range(count)]
    meetings += [(i, i + count // 2) for i in range(count // 2)]
    facts = set()
    for index, (first, second) in enumerate(meetings):
        if rng.bernoulli():
            first, second = second, first
        facts.add((nouns[first], ("left of", "above")[index % 2], nouns[second]))
    return World(SHAPES, COLORS, SIZES, MATERIALS, frozenset(pairs), frozenset(facts))


def relation(thing: Thing, other: Thing) -> str | None:
    """Return the relation of `thing` to `other`, or None if they are nearly diagonal."""
    right, down = thing.x - other.x, thing.y - other.y
    if abs(right) >= _CONE * abs(down):
        return "right of" if right > 0 else "left of"
    if abs(down) >= _CONE * abs(right):
        return "below" if down > 0 else "above"
    return None


def shows_held_out_fact(world: World, things: Sequence[Thing]) -> bool:
    """Return whether any two of the objects are in a held-out relation."""
    return any(
        (found := relation(thing, other)) and world.is_held_out_fact(thing.noun, found, other.noun)
        for other, thing in combinations(things, 2)
    )


def place(
    things: Sequence[Thing], side: int, rng: Rng, accept: Callable[[Sequence[Thing]], bool]
) -> tuple[Thing, ...]:
    """Place objects in an image of side x side pixels, without overlap.

    Radii shrink by 5% after every 60 failed attempts. `accept` may reject arrangements.

    Raises:
        ValueError: if the objects do not fit even when much smaller.
    """
    shrink = 1.0
    for tries in range(1, 2000):
        placed: list[Thing] = []
        for thing in things:
            radius = thing.radius * shrink
            # Placed objects are not moved, so trying more random positions would rarely help.
            for _ in range(12):
                x = rng.uniform(radius + 1, side - radius - 1)
                y = rng.uniform(radius + 1, side - radius - 1)
                if all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 1 for o in placed):
                    placed.append(dataclasses.replace(thing, x=x, y=y, radius=radius))
                    break
            else:
                break
        if len(placed) == len(things) and accept(placed):
            return tuple(placed)
        if tries % 60 == 0:
            shrink *= 0.95
    raise ValueError(f"no room for {len(things)} objects in an image of {side} x {side} pixels")


def sample_scene(
    world: World, seed: int, split: str, index: int, *, image_size: int = 96, max_objects: int = 3
) -> Scene:
    """Sample the scene of an image, independently of other images.

    Images 2m and 2m + 1 form a pair. In every fourth pair, the second image is the first one with
    two objects, or their colors, swapped.
    """
    novel, pair = split == "novel", index // 2
    twin = pair % TWIN_EVERY == 0 and max_objects >= 2
    rng = Rng(seed, stream(split, _SCENE), pair * 2 if twin else index)
    if twin:
        scene = _twin(world, rng, novel, image_size, max_objects)
        return scene if index % 2 == 0 else swapped(scene)
    if novel:
        return _novel(world, rng, image_size, max_objects)
    if len(world.colors) > 1:
        kind = rng.random()
        if kind < 0.2:
            return _counting(world, rng, image_size, max_objects)
        if kind < 0.6 and max_objects >= 3:
            return _comparing(world, rng, image_size, max_objects)
    things = _sample_things(world, rng, _sample_count(rng, 1, max_objects), world.shown_pairs, [])
    return Scene(_place(world, things, image_size, rng))


def stream(split: str, purpose: int) -> int:
    """Return the random number stream for a split and a purpose below 16."""
    return SPLITS.index(split) * 16 + purpose


def swapped(scene: Scene) -> Scene:
    """Return the other scene of a pair, with objects 0 and 1 swapped according to `swap`."""
    first, second, *others = scene.things
    names = ("color",) if scene.swap == "color" else ("color", "noun", "cutout")
    things = (
        dataclasses.replace(thing, **{name: getattr(other, name) for name in names})
        for thing, other in ((first, second), (second, first))
    )
    return dataclasses.replace(scene, things=(*things, *others))


def _sample_count(rng: Rng, low: int, high: int) -> int:
    """Sample the number of objects. Most images have three or more."""
    counts = range(min(low, high), high + 1)
    return rng.weighted_choice(counts, [min(count, 3) ** 2 for count in counts])


def _sample_things(
    world: World,
    rng: Rng,
    count: int,
    pairs: Sequence[Pair],
    fixed: Sequence[Pair],
    allowed: Callable[[Pair], bool] = lambda pair: True,
) -> list[Thing]:
    """Sample distinct objects, many of which share a color or a noun with another object.

    The first objects have the `fixed` pairs. The others have pairs from `pairs` that are `allowed`.
    """
    things: list[Thing] = []
    while len(things) < count:
        if len(things) < len(fixed):
            pair = fixed[len(things)]
        else:
            pair = rng.choice(pairs)
            if things and rng.bernoulli(0.8):
                # A distractor with the color or, more often, the noun of another object.
                model, shared = rng.choice(things), int(rng.bernoulli(0.8))
                alike = [p for p in pairs if p[shared] == model.pair[shared] and p != model.pair]
                pair = rng.choice(alike or pairs)
            if not allowed(pair):
                continue
        color, noun = pair
        size, material = rng.choice(world.sizes), rng.choice(world.materials)
        # The radius is relative to the image's side until the object is placed.
        thing = Thing(noun, color, size, material, radius=rng.uniform(*RADII[size]))
        words = (thing.pair, thing.size, thing.material)
        if all(words != (o.pair, o.size, o.material) for o in things):
            things.append(thing)
    return things


def _place(
    world: World,
    things: Sequence[Thing],
    side: int,
    rng: Rng,
    accept: Callable[[Sequence[Thing]], bool] | None = None,
) -> tuple[Thing, ...]:
    """Scale objects to the image and place them. By default, held-out facts are rejected."""
    scaled = [dataclasses.replace(thing, radius=thing.radius * side) for thing in things]
    accept = accept or (lambda placed: not shows_held_out_fact(world, placed))
    return place(scaled, side, rng, accept)


def _counting(world: World, rng: Rng, side: int, max_objects: int) -> Scene:
    """Sample a scene in which a word applies to k objects, with k uniform in [1, max_objects]."""
    kind, shared = rng.choice((("color", 0), ("noun", 1)))
    word = rng.choice((world.colors, world.nouns)[shared])
    answer = 1 + rng.integer(max_objects)
    count = answer + rng.integer(max_objects - answer + 1)
    having = [pair for pair in world.shown_pairs if pair[shared] == word]
    # Objects with the same pair must differ in size or material.
    most = len(world.sizes) * len(world.materials)
    fixed: list[Pair] = []
    while len(fixed) < answer:
        pair = rng.choice(having)
        if fixed.count(pair) < most:
            fixed.append(pair)
    pairs = world.shown_pairs
    things = _sample_things(world, rng, count, pairs, fixed, lambda pair: pair[shared] != word)
    return Scene(_place(world, things, side, rng), counted=(kind, word))


def _comparing(world: World, rng: Rng, side: int, max_objects: int) -> Scene:
    """Sample a scene with two similar objects that differ by their relations to a third one.

    Objects 0 and 1 share their noun or, less often, their color; object 2 shares neither.
    """
    shared = int(rng.bernoulli(0.7))
    first = rng.choice(world.shown_pairs)
    alike = [p for p in world.shown_pairs if p[shared] == first[shared] and p != first]
    second = rng.choice(alike)
    apart = [p for p in world.shown_pairs if p[0] not in (first[0], second[0])]
    third = rng.choice([p for p in apart if p[1] not in (first[1], second[1])])
    fixed = [first, second, third]
    count = 3 + rng.integer(max_objects - 2)
    things = _sample_things(
        world, rng, count, world.shown_pairs, fixed, lambda pair: _apart(pair, fixed)
    )

    def accept(placed: Sequence[Thing]) -> bool:
        where = [relation(thing, placed[2]) for thing in placed[:2]]
        return None not in where and where[0] != where[1] and not shows_held_out_fact(world, placed)

    return Scene(_place(world, things, side, rng, accept))


def _twin(world: World, rng: Rng, novel: bool, side: int, max_objects: int) -> Scene:
    """Sample a scene whose description changes when two objects are swapped."""
    held_out = sorted(world.held_out_pairs)
    use_color = len(world.colors) > 1 and max_objects >= (3 if novel else 2)
    swap = "color" if use_color and rng.bernoulli() else "place"
    # Swapping the colors of two held-out pairs gives shown pairs, so a third object is held out.
    num_held_out = (3 if swap == "color" else 1) if novel else 0
    count = _sample_count(rng, max(2, num_held_out), min(max_objects, 3))
    while True:
        fixed = [rng.choice(held_out) for _ in range(num_held_out)]
        fixed += [rng.choice(world.shown_pairs) for _ in range(2 - num_held_out)]
        (color, noun), (other_color, other_noun) = fixed[:2]
        if noun == other_noun or (color == other_color and len(world.colors) > 1):
            continue
        crossed = {(color, other_noun), (other_color, noun)}
        if not novel and swap == "color" and crossed & world.held_out_pairs:
            continue
        # No third object may make the caption of the other image true.
        if all(_apart(pair, fixed[:2]) for pair in fixed[2:]):
            break
    pairs = tuple(held_out) + world.shown_pairs if novel else world.shown_pairs
    things = _sample_things(world, rng, count, pairs, fixed, lambda pair: _apart(pair, fixed[:2]))
    scene = Scene(tuple(things), swap=swap)

    def accept(placed: Sequence[Thing]) -> bool:
        if relation(placed[0], placed[1]) is None:
            return False
        if novel:
            return True
        other = swapped(dataclasses.replace(scene, things=tuple(placed)))
        return not (shows_held_out_fact(world, placed) or shows_held_out_fact(world, other.things))

    return dataclasses.replace(scene, things=_place(world, things, side, rng, accept))


def _apart(pair: Pair, others: Sequence[Pair]) -> bool:
    """Return whether none of the other pairs has the same noun."""
    return all(pair[1] != other[1] for other in others)


def _novel(world: World, rng: Rng, side: int, max_objects: int) -> Scene:
    """Sample a scene with a held-out pair and, in about 60% of cases, a held-out fact."""
    held_out = sorted(world.held_out_pairs)
    everything = tuple(held_out) + world.shown_pairs
    fixed = [rng.choice(held_out)]
    count = _sample_count(rng, 2, max_objects)
    noun = fixed[0][1]
    facts = sorted(fact for fact in world.held_out_facts if noun in (fact[0], fact[2]))
    if count < 2 or not facts or not rng.bernoulli(0.6):
        pairs = held_out if rng.bernoulli(0.3) else everything
        things = _sample_things(world, rng, count, everything, [*fixed, rng.choice(pairs)][:count])
        return Scene(_place(world, things, side, rng, lambda placed: True))
    fact = rng.choice(facts)
    partner = fact[2] if fact[0] == noun else fact[0]
    fixed.append(rng.choice([pair for pair in everything if pair[1] == partner]))
    things = _sample_things(world, rng, count, everything, fixed, lambda pair: _apart(pair, fixed))
    holds = rng.bernoulli()

    def accept(placed: Sequence[Thing]) -> bool:
        left, right = (placed[0], placed[1]) if fact[0] == noun else (placed[1], placed[0])
        found = relation(left, right)
        return found is not None and (found == fact[1]) == holds

    return Scene(_place(world, things, side, rng, accept), asked_fact=fact)
