"""Questions about a scene, statements about two scenes, and captions with swapped words.

True and false texts are equally frequent. If a scene allows both true and false texts, the truth
value is sampled first, then a text with that truth value. Other answers are balanced by the
symmetry of the scenes (see `scene_graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import permutations

from fiber.data.rng import Rng
from fiber.synthetic.annotations import Question, Statement
from fiber.synthetic.captions import (
    ANY_NOUN,
    concerns_held_out,
    describe,
    minimal_descriptions,
    plural,
    with_article,
    word_kinds,
)
from fiber.synthetic.scene_graph import RELATIONS, Pair, Scene, Thing, World, relation


def questions(world: World, scene: Scene, rng: Rng, novel: bool, count: int = 3) -> list[Question]:
    """Return up to `count` questions, each from a different `group`.

    If `novel`, questions concern only held-out objects and facts.
    """
    left = {kind: weight for kind, (weight, _) in _QUESTIONS.items()}
    if scene.counted is None:
        del left["count"]
    out: list[Question] = []
    while left and len(out) < count:
        kind = rng.weighted_choice(list(left), list(left.values()))
        del left[kind]
        question = _QUESTIONS[kind][1](world, scene, rng, novel)
        if question is not None:
            out.append(question)
    return out


def _target(
    world: World, scene: Scene, rng: Rng, novel: bool, kinds: tuple[str, ...]
) -> tuple[Thing, str] | None:
    """Sample an object and a phrase that identifies it.

    The phrase uses only the first of `kinds` if possible.
    """
    kinds = tuple(kind for kind in kinds if kind in word_kinds(world))
    things = [t for t in scene.things if not novel or world.is_held_out(t)]
    thing = rng.choice(things)
    options = minimal_descriptions(scene.things, thing, kinds)
    if not options:
        return None
    if (kinds[0],) in options:
        return thing, describe(thing, (kinds[0],))
    return thing, describe(thing, rng.choice(options))


def _ask_color(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    found = _target(world, scene, rng, novel, ("noun", "size", "material"))
    if found is None or len(world.colors) == 1:
        return None
    return Question(f"what color is the {found[1]}?", found[0].color, "color")


def _ask_shape(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    if len(world.colors) == 1:
        if novel or len(scene.things) != 1:
            return None
        return Question("what does the picture show?", scene.things[0].noun, "shape")
    found = _target(world, scene, rng, novel, ("color", "size", "material"))
    return found and Question(f"what shape is the {found[1]}?", found[0].noun, "shape")


def _ask_attribute(
    kind: str, word: str, world: World, scene: Scene, rng: Rng, novel: bool
) -> Question | None:
    """Ask for the size or the material of an object."""
    if kind not in word_kinds(world):
        return None
    found = _target(world, scene, rng, novel, ("noun", "color"))
    return found and Question(f"what {word} is the {found[1]}?", getattr(found[0], kind), kind)


def _ask_count(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    if scene.counted is None:
        return None
    kind, word = scene.counted
    answer = sum(getattr(thing, kind) == word for thing in scene.things)
    words = plural(word) if kind == "noun" else f"{word} {plural(ANY_NOUN)}"
    return Question(f"how many {words} are there?", str(answer), "count")


def _ask_exists(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    """Ask whether an object with a given color, noun or both is in the image."""
    shown = {thing.pair for thing in scene.things}
    levels = ("pair",) if novel or len(world.colors) == 1 else ("pair", "pair", "noun", "color")
    level = rng.choice(levels)
    if level == "pair":
        pairs = sorted(world.held_out_pairs) if novel else world.shown_pairs
        present = [pair for pair in pairs if pair in shown]
        absent = _near_pairs(world, pairs, shown, rng)
    else:
        words = world.nouns if level == "noun" else world.colors
        pairs = [_with_word((word, word), level) for word in words]
        there = {_with_word(pair, level) for pair in shown}
        present = [pair for pair in pairs if pair in there]
        absent = [pair for pair in pairs if pair not in there]
    chosen = _sample_truth(present, absent, rng)
    if chosen is None:
        return None
    pair, truth = chosen
    return Question(f"is there {pair_phrase(pair)}?", "yes" if truth else "no", "exists")


def _near_pairs(world: World, pairs: Sequence[Pair], shown: set[Pair], rng: Rng) -> list[Pair]:
    """Return pairs that are not in the image, but whose color or noun (or both) is."""
    colors, nouns = {pair[0] for pair in shown}, {pair[1] for pair in shown}
    absent = _without(world, pairs, shown)
    both = [pair for pair in absent if pair[0] in colors and pair[1] in nouns]
    either = [pair for pair in absent if pair[0] in colors or pair[1] in nouns]
    return both if both and rng.bernoulli(0.7) else either


def _without(world: World, pairs: Iterable[Pair], shown: set[Pair]) -> list[Pair]:
    """Return the pairs that are certainly not shown. Nouns are compared by family."""
    families = {(color, world.family(noun)) for color, noun in shown}
    return [pair for pair in pairs if (pair[0], world.family(pair[1])) not in families]


def _with_word(pair: Pair, level: str) -> Pair:
    """Return a pair with only the color or only the noun."""
    return (pair[0], ANY_NOUN) if level == "color" else ("", pair[1])


def pair_phrase(pair: Pair) -> str:
    """Return "a red star" for ("red", "star"), and "a star" for ("", "star")."""
    return with_article(" ".join(pair).strip())


def _sample_truth(
    true: Sequence[Pair], false: Sequence[Pair], rng: Rng
) -> tuple[Pair, bool] | None:
    """Sample a truth value, then a pair with that truth value. Return None if a list is empty."""
    if not true or not false:
        return None
    truth = rng.bernoulli()
    return rng.choice(true if truth else false), truth


def _ask_relation(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    return (_ask_where if rng.bernoulli() else _ask_neighbor)(world, scene, rng, novel)


def _ask_where(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    """Ask, for example, "is the star left of the ring?", with balanced answers."""
    things = scene.things
    kinds = tuple(kind for kind in word_kinds(world) if kind in ("color", "noun"))
    if scene.asked_fact is not None:
        noun, asked, other_noun = scene.asked_fact
        nouns = [thing.noun for thing in things]
        thing, other = things[nouns.index(noun)], things[nouns.index(other_noun)]
        answer = "yes" if relation(thing, other) == asked else "no"
        return Question(f"is the {noun} {asked} the {other_noun}?", answer, "relation")
    options = [
        (thing, found, other)
        for thing, other in permutations(things, 2)
        if (found := relation(thing, other))
        and (not novel or concerns_held_out(world, thing, found, other))
    ]
    if not options:
        return None
    thing, found, other = rng.choice(options)
    first = minimal_descriptions(things, thing, kinds)
    second = minimal_descriptions(things, other, kinds)
    if not first or not second:
        return None
    wrong = [r for r in RELATIONS if r != found]
    if not novel:
        wrong = [r for r in wrong if not world.is_held_out_fact(thing.noun, r, other.noun)]
    truth = rng.bernoulli()
    asked = found if truth else rng.choice(wrong)
    words = describe(thing, rng.choice(first)), describe(other, rng.choice(second))
    text = f"is the {words[0]} {asked} the {words[1]}?"
    return Question(text, "yes" if truth else "no", "relation")


def _ask_neighbor(world: World, scene: Scene, rng: Rng, novel: bool) -> Question | None:
    """Ask, for example, "what shape is left of the ring?" if there is exactly one such object."""
    things = scene.things
    kinds = tuple(kind for kind in word_kinds(world) if kind in ("color", "noun"))
    options = []
    for other in things:
        where = [relation(thing, other) for thing in things if thing is not other]
        for asked in RELATIONS:
            if where.count(asked) != 1 or None in where:
                continue
            thing = next(t for t in things if t is not other and relation(t, other) == asked)
            # Training answers never include held-out nouns.
            is_unknown = len(world.colors) == 1 and world.is_held_out(thing)
            is_asked = not novel or concerns_held_out(world, thing, asked, other)
            if thing.noun != other.noun and is_asked and not is_unknown:
                options.append((thing, asked, other))
    if not options:
        return None
    thing, asked, other = rng.choice(options)
    words = minimal_descriptions(things, other, kinds)
    if not words:
        return None
    what = "what" if len(world.colors) == 1 else "what shape"
    landmark = describe(other, rng.choice(words))
    return Question(f"{what} is {asked} the {landmark}?", thing.noun, "relation")


#: Sampling weight and function of each kind of question.
_QUESTIONS: dict[str, tuple[float, Callable[[World, Scene, Rng, bool], Question | None]]] = {
    "color": (5.0, _ask_color),
    "shape": (4.0, _ask_shape),
    "exists": (4.0, _ask_exists),
    "relation": (5.0, _ask_relation),
    "size": (2.0, partial(_ask_attribute, "size", "size")),
    "material": (2.0, partial(_ask_attribute, "material", "pattern")),
    "count": (12.0, _ask_count),
}


def opposite_pair(
    world: World,
    pair: Pair | None,
    scene_of: Callable[[int], Scene],
    index: int,
    others: Iterable[int],
) -> tuple[int, int] | None:
    """Find two images that reverse the truth of a statement about images `index - 1` and `index`.

    `pair` is the `Statement.pair` of the statement. If it is None, the images are swapped.
    Otherwise, an image that shows the pair is kept on its side, and the other image is replaced
    with the first of `others` that reverses the truth.
    """
    if pair is None:
        return index, index - 1
    left, right = (pair in _every_pair(scene_of(number)) for number in (index - 1, index))
    for other in others:
        pairs = _every_pair(scene_of(other))
        if _without(world, [pair], pairs) if left and right else pair in pairs:
            return (index - 1, other) if left else (other, index)
    return None


def _every_pair(scene: Scene) -> set[Pair]:
    """Return the pairs shown in a scene, and their variants with only the color or the noun."""
    pairs = {thing.pair for thing in scene.things}
    return pairs | {_with_word(pair, level) for pair in pairs for level in ("color", "noun")}


def statements(
    world: World, left: Scene, right: Scene, rng: Rng, novel: bool, count: int = 2
) -> list[Statement]:
    """Return up to `count` statements, each of a different kind, about two images."""
    out: list[Statement] = []
    for kind in rng.shuffled(("both", "one", "side", "each", "more")):
        if len(out) == count:
            break
        if kind == "more":
            found = None if novel else _state_more(left, right, rng)
        else:
            found = _state_shown(world, kind, left, right, rng, novel)
        if found is not None:
            out.append(found)
    return out


def _state_more(left: Scene, right: Scene, rng: Rng) -> Statement | None:
    difference = len(left.things) - len(right.things)
    if difference == 0:
        return None
    says_left = rng.bernoulli()
    sides = ("left", "right") if says_left else ("right", "left")
    text = f"the {sides[0]} picture shows more objects than the {sides[1]} picture"
    return Statement(text, (difference > 0) == says_left, "more")


def _state_shown(
    world: World, kind: str, left: Scene, right: Scene, rng: Rng, novel: bool
) -> Statement | None:
    """State which of the two images shows an object, or that both do."""
    level = "pair" if novel or len(world.colors) == 1 else rng.choice(("pair", "noun", "color"))
    shown = []
    for scene in (left, right):
        pairs = {t.pair for t in scene.things if not novel or world.is_held_out(t)}
        shown.append(pairs if level == "pair" else {_with_word(pair, level) for pair in pairs})
    both = sorted(shown[0] & shown[1])
    only_left = sorted(_without(world, shown[0], shown[1]))
    only_right = sorted(_without(world, shown[1], shown[0]))
    if kind in ("both", "one"):
        one = sorted(only_left + only_right)
        chosen = _sample_truth(*((both, one) if kind == "both" else (one, both)), rng)
        start = "both pictures show" if kind == "both" else "only one picture shows"
        if chosen is None:
            return None
        pair, truth = chosen
        return Statement(f"{start} {pair_phrase(pair)}", truth, kind, pair)
    if not only_left or not only_right:
        return None
    if kind == "side":
        says_left, truth = rng.bernoulli(), rng.bernoulli()
        pair = rng.choice(only_left if says_left == truth else only_right)
        side = "left" if says_left else "right"
        return Statement(f"the {side} picture shows {pair_phrase(pair)}", truth, kind)
    first, second = pair_phrase(rng.choice(only_left)), pair_phrase(rng.choice(only_right))
    truth = rng.bernoulli()
    if not truth:
        first, second = second, first
    text = f"the left picture shows {first} and the right picture shows {second}"
    return Statement(text, truth, kind)


def swapped_captions(scene: Scene, other: Scene) -> tuple[str, str, str]:
    """Return captions with the same words for the two images of a pair, and the kind of swap."""
    texts = []
    for first, second in (scene.things[:2], other.things[:2]):
        # Nouns keep their order, so only colors are swapped.
        word = "and" if scene.swap == "color" else relation(first, second)
        texts.append(f"{pair_phrase(first.pair)} {word} {pair_phrase(second.pair)}")
    return texts[0], texts[1], scene.swap
