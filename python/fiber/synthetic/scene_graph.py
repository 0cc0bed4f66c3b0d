"""Scene graphs: which things a picture shows, where they are and what is held out.

A thing has a noun and up to three more words (size, material, colour). Some (colour, noun) pairs
and some spatial facts (noun, relation, noun) are held out: pictures of the splits `train` and `val`
never show them, every picture of `novel` shows a held-out pair.

Balance comes from symmetry. Each colour and each noun is in exactly one held-out pair, attributes
are drawn without looking at positions, and positions without looking at colours, so that any
renaming of colours (nouns renamed with them) leaves the distribution of scenes as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fiber.data.rng import Draws

SPLITS = ("train", "val", "novel")
RELATIONS = ("left of", "right of", "above", "below")
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SIZES = ("small", "large")
MATERIALS = ("plain", "striped", "dotted", "glossy")

#: Radius of a thing as a part of the picture's side: 14-17 and 24-29 pixels across of 96.
RADII = {"small": (0.076, 0.090), "large": (0.128, 0.152)}

# Streams of draws: what a sample's random numbers are used for.
_SCENE, _HELD_OUT = 0, 255
# One quarter of the pairs of pictures (2m, 2m + 1) are the same scene with two words swapped.
_TWIN_EVERY = 4
# A fact such as "left of" needs one axis to exceed the other by this factor.
_CONE = 1.3


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a picture. An empty word means that the data set does not use it."""

    noun: str
    color: str = ""
    size: str = ""
    material: str = ""
    #: Centre and radius in pixels.
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, noun)."""
        return self.color, self.noun


@dataclass(frozen=True, slots=True)
class Scene:
    """The things of one picture, and what its texts should use them for."""

    things: tuple[Thing, ...]
    #: ("noun" | "color", word): the texts may ask how many there are; the answer is balanced.
    counted: tuple[str, str] | None = None
    #: "color" or "place": the other picture of the pair has things 0 and 1 swapped in this way.
    swap: str = ""
    #: Held-out fact about things 0 and 1 to ask about; as often true as false (novel only).
    asked_fact: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class World:
    """The words of a data set and what is held out of its training split."""

    nouns: tuple[str, ...]
    colors: tuple[str, ...] = ("",)
    sizes: tuple[str, ...] = ("",)
    materials: tuple[str, ...] = ("",)
    held_out_pairs: frozenset[tuple[str, str]] = frozenset()
    held_out_facts: frozenset[tuple[str, str, str]] = frozenset()
    #: Nouns of one family may be true of the same thing ("ball", "tennis ball"): where one is seen,
    #: nothing is said about another. Nouns that are not here are alone.
    families: Mapping[str, str] = field(default_factory=dict)
    #: All (colour, noun) pairs that training may show, in a fixed order.
    shown_pairs: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [(color, noun) for noun in self.nouns for color in self.colors]
        shown = tuple(pair for pair in pairs if pair not in self.held_out_pairs)
        object.__setattr__(self, "shown_pairs", shown)

    def is_held_out(self, thing: Thing) -> bool:
        """Whether the thing's colour and noun are a held-out pair."""
        return thing.pair in self.held_out_pairs

    def family(self, noun: str) -> str:
        """Return the name of a noun's family."""
        return self.families.get(noun, noun)

    def is_held_out_fact(self, noun: str, relation: str, other: str) -> bool:
        """Whether "noun relation other" is held out, in either of its two wordings."""
        facts = self.held_out_facts
        return (noun, relation, other) in facts or (other, CONVERSE[relation], noun) in facts


def shapes_world(seed: int) -> World:
    """Return the world of coloured shapes; the seed decides what is held out.

    One pair in 8 is held out: each colour with one shape, each shape with one colour. Of the 112
    facts (28 pairs of shapes, four relations) 12 are held out, three for each shape.
    """
    draws = Draws(seed, _HELD_OUT, 0)
    nouns = draws.shuffled(SHAPES)
    pairs = zip(draws.shuffled(COLORS), nouns, strict=True)
    # Neighbours on a circle of shapes, and opposite ones: each shape meets three others.
    count = len(nouns)
    meetings = [(i, (i + 1) % count) for i in range(count)]
    meetings += [(i, i + count // 2) for i in range(count // 2)]
    facts = set()
    for index, (first, second) in enumerate(meetings):
        if draws.coin():
            first, second = second, first
        facts.add((nouns[first], ("left of", "above")[index % 2], nouns[second]))
    return World(SHAPES, COLORS, SIZES, MATERIALS, frozenset(pairs), frozenset(facts))


def relation(thing: Thing, other: Thing) -> str | None:
    """Return where `thing` is as seen from `other`, or None where it is near a diagonal."""
    right, down = thing.x - other.x, thing.y - other.y
    if abs(right) >= _CONE * abs(down):
        return "right of" if right > 0 else "left of"
    if abs(down) >= _CONE * abs(right):
        return "below" if down > 0 else "above"
    return None


def shows_held_out_fact(world: World, things: Sequence[Thing]) -> bool:
    """Whether any two of the things stand in a held-out relation."""
    for index, thing in enumerate(things):
        for other in things[:index]:
            found = relation(thing, other)
            if found and world.is_held_out_fact(thing.noun, found, other.noun):
                return True
    return False


def place(
    things: Sequence[Thing],
    image_size: tuple[int, int],
    draws: Draws,
    accept: Callable[[Sequence[Thing]], bool],
) -> tuple[Thing, ...]:
    """Find places where things neither overlap nor leave the picture.

    Args:
        things: with radii set; they shrink a little whenever 60 tries found no place.
        image_size: (height, width) in pixels.
        draws: where the places come from.
        accept: tells whether an arrangement will do.

    Raises:
        ValueError: if even much smaller things find no place.
    """
    height, width = image_size
    shrink = 1.0
    for tries in range(1, 2000):
        placed: list[Thing] = []
        for thing in things:
            radius = thing.radius * shrink
            # The things placed before are left where they are; a few darts find a gap or none.
            for _ in range(12):
                x = draws.between(radius + 1, width - radius - 1)
                y = draws.between(radius + 1, height - radius - 1)
                if all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 1 for o in placed):
                    placed.append(dataclasses.replace(thing, x=x, y=y, radius=radius))
                    break
            else:
                break
        if len(placed) == len(things) and accept(placed):
            return tuple(placed)
        if tries % 60 == 0:
            shrink *= 0.95
    raise ValueError(f"no room for {len(things)} things in a picture of {height} x {width} pixels")


def sample_scene(
    world: World, seed: int, split: str, index: int, *, image_size: int = 96, max_objects: int = 4
) -> Scene:
    """Draw the scene of picture `index` of a split. It depends on nothing else.

    Pictures 2m and 2m + 1 form a pair. In every fourth pair the second picture is the first one
    with the colours of two things swapped, or with the two things swapped.
    """
    novel = split == "novel"
    pair = index // 2
    if pair % _TWIN_EVERY == 0 and max_objects >= 2:
        base = Draws(seed, stream(split, _SCENE), pair * 2)
        scene = _twin(world, base, novel, image_size, max_objects)
        return scene if index % 2 == 0 else swapped(scene)
    draws = Draws(seed, stream(split, _SCENE), index)
    if novel:
        return _novel(world, draws, image_size, max_objects)
    if draws.coin(0.25) and len(world.colors) > 1:
        return _counting(world, draws, image_size, max_objects)
    things = _draw_things(world, draws, _draw_count(draws, 1, max_objects), world.shown_pairs, [])
    return Scene(_place(world, things, image_size, draws))


def stream(split: str, purpose: int) -> int:
    """Return the number of the stream of draws for a split and a purpose below 16."""
    return SPLITS.index(split) * 16 + purpose


def swapped(scene: Scene) -> Scene:
    """Return the other picture of a pair of scenes: things 0 and 1 swapped as `swap` says."""
    first, second, *others = scene.things
    if scene.swap == "color":
        new_first = dataclasses.replace(first, color=second.color)
        new_second = dataclasses.replace(second, color=first.color)
    else:
        new_first = dataclasses.replace(first, color=second.color, noun=second.noun)
        new_second = dataclasses.replace(second, color=first.color, noun=first.noun)
    return dataclasses.replace(scene, things=(new_first, new_second, *others))


def _draw_count(draws: Draws, low: int, high: int) -> int:
    """Draw how many things; one thing alone is rare."""
    counts = range(min(low, high), high + 1)
    return draws.weighted(counts, [min(count, 3) for count in counts])


def _draw_thing(world: World, draws: Draws, pair: tuple[str, str]) -> Thing:
    """Draw the size and the material; the radius is a part of the picture's side until placed."""
    size = draws.choice(world.sizes)
    return Thing(
        noun=pair[1],
        color=pair[0],
        size=size,
        material=draws.choice(world.materials),
        radius=draws.between(*RADII[size]),
    )


def _draw_things(
    world: World,
    draws: Draws,
    count: int,
    pairs: Sequence[tuple[str, str]],
    fixed: Sequence[tuple[str, str]],
    allowed: Callable[[tuple[str, str]], bool] = lambda pair: True,
) -> list[Thing]:
    """Draw things, no two with all words alike; many share a colour or a noun with another.

    The first things have the `fixed` pairs, the others are drawn of `pairs` until one is `allowed`.
    """
    things: list[Thing] = []
    while len(things) < count:
        if len(things) < len(fixed):
            pair = fixed[len(things)]
        else:
            pair = draws.choice(pairs)
            if things and draws.coin(0.6):
                # A distractor: it has the colour or the noun of a thing that is already there.
                model, shared = draws.choice(things), draws.below(2)
                alike = [p for p in pairs if p[shared] == model.pair[shared] and p != model.pair]
                pair = draws.choice(alike or pairs)
            if not allowed(pair):
                continue
        thing = _draw_thing(world, draws, pair)
        words = (thing.pair, thing.size, thing.material)
        if all(words != (o.pair, o.size, o.material) for o in things):
            things.append(thing)
    return things


def _place(
    world: World,
    things: Sequence[Thing],
    side: int,
    draws: Draws,
    accept: Callable[[Sequence[Thing]], bool] | None = None,
) -> tuple[Thing, ...]:
    """Scale things to the picture and place them; by default no held-out fact may be seen."""
    scaled = [dataclasses.replace(thing, radius=thing.radius * side) for thing in things]
    return place(
        scaled,
        (side, side),
        draws,
        accept or (lambda placed: not shows_held_out_fact(world, placed)),
    )


def _counting(world: World, draws: Draws, side: int, max_objects: int) -> Scene:
    """Draw a scene in which a word holds for 1 .. max_objects things, each as often."""
    kind, shared = draws.choice((("color", 0), ("noun", 1)))
    word = draws.choice((world.colors, world.nouns)[shared])
    answer = 1 + draws.below(max_objects)
    count = answer + draws.below(max_objects - answer + 1)
    having = [pair for pair in world.shown_pairs if pair[shared] == word]
    fixed = [draws.choice(having) for _ in range(answer)]
    things = _draw_things(
        world, draws, count, world.shown_pairs, fixed, lambda pair: pair[shared] != word
    )
    return Scene(_place(world, things, side, draws), counted=(kind, word))


def _twin(world: World, draws: Draws, novel: bool, side: int, max_objects: int) -> Scene:
    """Draw a scene that is still allowed, and tells another story, when two things are swapped."""
    held_out = sorted(world.held_out_pairs)
    use_color = len(world.colors) > 1 and max_objects >= (3 if novel else 2)
    swap = "color" if use_color and draws.coin() else "place"
    # A swapped colour makes two shown pairs of two held-out ones: a third thing stays held out.
    num_held_out = (3 if swap == "color" else 1) if novel else 0
    count = _draw_count(draws, max(2, num_held_out), min(max_objects, 3))
    while True:
        fixed = [draws.choice(held_out) for _ in range(num_held_out)]
        fixed += [draws.choice(world.shown_pairs) for _ in range(2 - num_held_out)]
        (color, noun), (other_color, other_noun) = fixed[:2]
        if noun == other_noun or (color == other_color and len(world.colors) > 1):
            continue
        if not novel and swap == "color":
            crossed = {(color, other_noun), (other_color, noun)}
            if crossed & world.held_out_pairs:
                continue
        # No third thing may make the other picture's caption true.
        alone = [pair for pair in fixed[2:] if _apart(pair, fixed[:2])]
        if len(alone) < len(fixed) - 2:
            continue
        break
    pairs = tuple(held_out) + world.shown_pairs if novel else world.shown_pairs
    things = _draw_things(world, draws, count, pairs, fixed, lambda pair: _apart(pair, fixed[:2]))
    scene = Scene(tuple(things), swap=swap)

    def accept(placed: Sequence[Thing]) -> bool:
        if relation(placed[0], placed[1]) is None:
            return False
        if novel:
            return True
        other = swapped(dataclasses.replace(scene, things=tuple(placed)))
        return not (shows_held_out_fact(world, placed) or shows_held_out_fact(world, other.things))

    return dataclasses.replace(scene, things=_place(world, things, side, draws, accept))


def _apart(pair: tuple[str, str], others: Sequence[tuple[str, str]]) -> bool:
    """Whether the pair's noun is in none of the others."""
    return all(pair[1] != other[1] for other in others)


def _novel(world: World, draws: Draws, side: int, max_objects: int) -> Scene:
    """Draw a scene with a held-out pair; three fifths are about a held-out fact too."""
    held_out = sorted(world.held_out_pairs)
    everything = tuple(held_out) + world.shown_pairs
    fixed = [draws.choice(held_out)]
    count = _draw_count(draws, 2, max_objects)
    noun = fixed[0][1]
    facts = sorted(fact for fact in world.held_out_facts if noun in (fact[0], fact[2]))
    if count < 2 or not facts or not draws.coin(0.6):
        pairs = held_out if draws.coin(0.3) else everything
        things = _draw_things(
            world, draws, count, everything, [*fixed, draws.choice(pairs)][:count]
        )
        return Scene(_place(world, things, side, draws, lambda placed: True))
    fact = draws.choice(facts)
    partner = fact[2] if fact[0] == noun else fact[0]
    fixed.append(draws.choice([pair for pair in everything if pair[1] == partner]))
    things = _draw_things(world, draws, count, everything, fixed, lambda pair: _apart(pair, fixed))
    holds = draws.coin()

    def accept(placed: Sequence[Thing]) -> bool:
        left, right = (placed[0], placed[1]) if fact[0] == noun else (placed[1], placed[0])
        found = relation(left, right)
        return found is not None and (found == fact[1]) == holds

    return Scene(_place(world, things, side, draws, accept), asked_fact=fact)
