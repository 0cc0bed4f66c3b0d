"""Captions, referring expressions and descriptions of the objects in a scene.

A description is a tuple of word kinds, such as ("color", "noun") for "red star". It applies to
every object described by the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations, permutations

from fiber.data.rng import Rng
from fiber.synthetic.annotations import Phrased, join_pieces
from fiber.synthetic.scene_graph import Thing, World, relation

#: Kinds of words, in the order in which they occur in a phrase.
WORD_KINDS = ("size", "material", "color", "noun")
#: Replaces the noun in descriptions without one.
ANY_NOUN = "object"

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Nouns whose first letter does not determine the article.
_A_BEFORE_VOWEL = ("uni", "us ", "uku", "eu", "ewe", "one")
_AN_BEFORE_CONSONANT = ("hour", "x-ray")
_UNCHANGED = ("sheep", "fish", "deer", "shrimp", "bison", "salmon", "trout", "squash")
_PLURAL_ENDINGS = {
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "man": "men",
    "child": "children",
    "lf": "lves",
    "leaf": "leaves",
    "knife": "knives",
    "mango": "mangoes",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "us": "uses",
}

Description = tuple[str, ...]
#: Text, or a phrase with the indices of the objects that it names.
_Piece = str | tuple[str, tuple[int, ...]]


def with_article(phrase: str) -> str:
    """Prepend "a" or "an", depending on the first sound of a phrase."""
    if phrase.startswith(_AN_BEFORE_CONSONANT):
        return f"an {phrase}"
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(_A_BEFORE_VOWEL)
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(noun: str) -> str:
    """Return the plural of a noun, such as "stars", "crosses", "yellow pansies" or "firemen"."""
    if noun.endswith(_UNCHANGED):
        return noun
    for ending, many in _PLURAL_ENDINGS.items():
        if noun.endswith(ending):
            return noun.removesuffix(ending) + many
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def describe(thing: Thing, description: Description) -> str:
    """Describe an object, as in "small red star" or "red object"."""
    words = [getattr(thing, kind) for kind in WORD_KINDS[:-1] if kind in description]
    words.append(thing.noun if "noun" in description else ANY_NOUN)
    return " ".join(words)


def fits(thing: Thing, other: Thing, description: Description) -> bool:
    """Return whether the description of `other` also applies to `thing`."""
    return all(getattr(thing, kind) == getattr(other, kind) for kind in description)


def word_kinds(world: World) -> Description:
    """Return the kinds of words that describe the objects of a world."""
    words = (world.sizes, world.materials, world.colors, world.nouns)
    return tuple(k for k, values in zip(WORD_KINDS, words, strict=True) if len(values) > 1)


def minimal_descriptions(
    things: Sequence[Thing], target: Thing, kinds: Description, always: Description = ()
) -> list[Description]:
    """Return every minimal description that applies only to the target.

    A description consists of some of `kinds` and all of `always`, and contains at least one word.
    """
    found: list[Description] = []
    for description in _descriptions(kinds, always):
        if not description or any(set(shorter) <= set(description) for shorter in found):
            continue
        if sum(fits(thing, target, description) for thing in things) == 1:
            found.append(description)
    return found


def _descriptions(kinds: Description, always: Description) -> list[Description]:
    """Return all subsets of the kinds, shortest first, each followed by `always`."""
    subsets = (combinations(kinds, length) for length in range(len(kinds) + 1))
    return [(*chosen, *always) for chosen in chain.from_iterable(subsets)]


def captions(world: World, things: Sequence[Thing], rng: Rng, novel: bool) -> list[Phrased]:
    """Return a caption that names all objects and, if possible, one that relates two objects."""
    found = _list_caption(world, things, rng), _relation_caption(world, things, rng, novel)
    return [caption for caption in found if caption is not None]


def _list_caption(world: World, things: Sequence[Thing], rng: Rng) -> Phrased:
    """Name all objects in random order. Objects with the same color and noun share a phrase."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index in rng.shuffled(range(len(things))):
        groups.setdefault(things[index].pair, []).append(index)
    pieces: list[_Piece] = []
    for number, ((color, noun), indices) in enumerate(groups.items()):
        if number:
            pieces.append(" and " if number == len(groups) - 1 else ", ")
        if len(indices) > 1:
            words = f"{_NUMBERS[len(indices)]} {color} {plural(noun)}"
            pieces.append((" ".join(words.split()), tuple(sorted(indices))))
        else:
            pieces.append(_name(world, things, indices[0], rng, 0.5 if len(groups) < 3 else 0.3))
    return join_pieces(pieces, "list")


def _name(
    world: World, things: Sequence[Thing], index: int, rng: Rng, probability: float
) -> tuple[str, tuple[int, ...]]:
    """Name an object by color and noun and, with some probability, also by size or material."""
    kinds = [kind for kind in word_kinds(world) if kind in ("size", "material")]
    extra = (rng.choice(kinds),) if kinds and rng.bernoulli(probability) else ()
    colors = ("color",) if len(world.colors) > 1 else ()
    return with_article(describe(things[index], (*extra, *colors, "noun"))), (index,)


def _relation_caption(
    world: World, things: Sequence[Thing], rng: Rng, novel: bool
) -> Phrased | None:
    """Describe the relation of two objects, each with a unique pair of color and noun."""
    pairs = [thing.pair for thing in things]
    alone = [index for index, pair in enumerate(pairs) if pairs.count(pair) == 1]
    options = [
        (first, found, second)
        for first, second in permutations(alone, 2)
        if (found := relation(things[first], things[second]))
    ]
    if novel:
        options = [o for o in options if concerns_held_out(world, things[o[0]], o[1], things[o[2]])]
    if not options:
        return None
    first, found, second = rng.choice(options)
    pieces: list[_Piece] = []
    others = [index for index in alone if index not in (first, second)]
    if others and rng.bernoulli():
        pieces += [_name(world, things, rng.choice(others), rng, 0.3), ", and "]
    pieces += [_name(world, things, first, rng, 0.3), f" {found} "]
    pieces.append(_name(world, things, second, rng, 0.3))
    return join_pieces(pieces, "relation")


def concerns_held_out(world: World, thing: Thing, found: str, other: Thing) -> bool:
    """Return whether a spatial fact, or one of its objects, is held out."""
    is_new = world.is_held_out(thing) or world.is_held_out(other)
    return is_new or world.is_held_out_fact(thing.noun, found, other.noun)


def expressions(
    world: World, things: Sequence[Thing], rng: Rng, novel: bool, count: int = 4
) -> list[Phrased]:
    """Return referring expressions that each uniquely identify one object, without extra words.

    Most expressions contain the noun ("the small star"), but some do not ("the red object"). The
    group is the kind of the word that suffices to tell the object from the others ("size",
    "material", "color" or "noun"), "composed" if this takes several words, or "relation" if it
    takes a different object. The first span is the head phrase, such as "the star" in "the star
    left of the ring".
    """
    if len(things) < 2:
        return []
    targets = [i for i, thing in enumerate(things) if not novel or world.is_held_out(thing)]
    out: list[Phrased] = []
    while targets and len(out) < count:
        # A noun often suffices; objects that need more words are more instructive.
        nouns = [thing.noun for thing in things]
        weights = [1.0 if nouns.count(nouns[index]) == 1 else 8.0 for index in targets]
        index = rng.weighted_choice(targets, weights)
        targets.remove(index)
        named = rng.bernoulli(0.7)
        for by_noun in (named, not named):
            if found := _expressions_for(world, things, index, rng, by_noun):
                out += found
                break
    return out[:count]


def _expressions_for(
    world: World, things: Sequence[Thing], index: int, rng: Rng, named: bool
) -> list[Phrased]:
    """Refer to one object by a relation and by its attributes, using its noun if `named`."""
    adjectives = tuple(kind for kind in word_kinds(world) if kind != "noun")
    always = ("noun",) if named or not adjectives else ()
    related = _related_expressions(things, index, adjectives, always)
    out = [rng.choice(related)] if related else []
    options = minimal_descriptions(things, things[index], adjectives, always)
    if options:
        description = rng.weighted_choice(options, [1.0 if len(d) == 1 else 4.0 for d in options])
        piece = (f"the {describe(things[index], description)}", (index,))
        out.append(join_pieces([piece], _group(things, things[index], description)))
    return out


def _group(things: Sequence[Thing], target: Thing, description: Description) -> str:
    """Return the word kind that suffices to identify the target, or "composed"."""
    for kind in description:
        if sum(fits(thing, target, (kind,)) for thing in things) == 1:
            return kind
    return "composed"


def _related_expressions(
    things: Sequence[Thing], index: int, adjectives: Description, always: Description
) -> list[Phrased]:
    """Return every expression that relates the object to another and needs all of its words."""
    target = things[index]
    out: list[Phrased] = []
    for other_index, landmark in enumerate(things):
        found = relation(target, landmark) if other_index != index else None
        if found is None:
            continue
        rivals = [t for i, t in enumerate(things) if i not in (index, other_index)]
        used: list[Description] = []
        for description in _descriptions(adjectives, always):
            if any(set(shorter) <= set(description) for shorter in used):
                continue
            alike = [rival for rival in rivals if fits(rival, target, description)]
            where = [relation(rival, landmark) for rival in alike]
            # The relation must be decisive, which it is not for objects near a diagonal.
            if found in where or None in where:
                continue
            used.append(description)
            if not alike or (description and fits(landmark, target, description)):
                continue
            for words in minimal_descriptions(things, landmark, adjectives, ("noun",))[:2]:
                head = (f"the {describe(target, description)}", (index,))
                tail = (f"the {describe(landmark, words)}", (other_index,))
                out.append(join_pieces([head, f" {found} ", tail], "relation"))
    return out
