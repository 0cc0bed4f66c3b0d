"""A second reader of scenes: what phrases fit, which answers are right, written apart."""

import re

from fiber.synthetic.scene_graph import COLORS, MATERIALS, SHAPES, SIZES, relation

WORDS = {"size": SIZES, "material": MATERIALS, "color": COLORS, "noun": SHAPES}
NUMBERS = {"two": 2, "three": 3, "four": 4}
PLURALS = {"crosses": "cross", "objects": "object", **{f"{s}s": s for s in SHAPES if s != "cross"}}
RELATION = re.compile(r" (left of|right of|above|below) ")


def matches(thing, phrase):
    """Whether a thing is what "a small red star" or "the dotted object" says: a second reader."""
    words = phrase.removeprefix("the ").removeprefix("a ").removeprefix("an ").split()
    for word in words:
        word = PLURALS.get(word, word)
        if word in NUMBERS or word == "object":
            continue
        kind = next(kind for kind, values in WORDS.items() if word in values)
        if getattr(thing, kind) != word:
            return False
    return True


def texts_of(picture):
    entries = picture.captions + picture.expressions + picture.questions + picture.statements
    return [entry.text for entry in entries] + list((picture.swapped_captions or ("", ""))[:2])


def meant(things, expression):
    """The things that an expression may mean; near a diagonal a relation is left open."""
    head, *rest = RELATION.split(expression)
    found = [thing for thing in things if matches(thing, head)]
    if rest:
        (landmark,) = [thing for thing in things if matches(thing, rest[1])]
        found = [t for t in found if t is not landmark and relation(t, landmark) in (rest[0], None)]
    return found


def answer(things, question):
    """Answer a question from the scene: a second opinion."""
    text = question.removesuffix("?")
    if text.startswith("is there a "):
        return "yes" if any(matches(t, text[9:]) for t in things) else "no"
    if text.startswith("how many "):
        phrase = text.removeprefix("how many ").removesuffix(" are there")
        return str(sum(matches(t, phrase) for t in things))
    if text.startswith("is the "):
        first, found, second = RELATION.split(text[3:])
        (one,) = [t for t in things if matches(t, first)]
        (two,) = [t for t in things if matches(t, second)]
        assert relation(one, two) is not None
        return "yes" if relation(one, two) == found else "no"
    kind, phrase = re.fullmatch(r"what (\w+) is (.*)", text).groups()
    kind = {"shape": "noun", "pattern": "material"}.get(kind, kind)
    if not phrase.startswith("the "):
        found, phrase = re.fullmatch(r"(left of|right of|above|below) (.*)", phrase).groups()
        (landmark,) = [t for t in things if matches(t, phrase)]
        (target,) = [t for t in things if t is not landmark and relation(t, landmark) == found]
    else:
        (target,) = [t for t in things if matches(t, phrase)]
    return getattr(target, kind)


def is_true(text, left, right):
    def shows(things, phrase):
        return any(matches(thing, phrase) for thing in things)

    if " more objects " in text:
        more = len(left) - len(right)
        return more > 0 if text.startswith("the left") else more < 0
    if text.startswith("both pictures show "):
        phrase = text.removeprefix("both pictures show ")
        return shows(left, phrase) and shows(right, phrase)
    if text.startswith("only one picture shows "):
        phrase = text.removeprefix("only one picture shows ")
        return shows(left, phrase) != shows(right, phrase)
    parts = text.split(" and the right picture shows ")
    if len(parts) == 2:
        return shows(left, parts[0].removeprefix("the left picture shows ")) and shows(
            right, parts[1]
        )
    side = left if text.startswith("the left") else right
    return shows(side, text.partition(" shows ")[2])


def caption_holds(caption, things):
    parts = RELATION.split(caption)
    if len(parts) == 3:
        one, two = ([t for t in things if matches(t, parts[i])] for i in (0, 2))
        return any(relation(a, b) == parts[1] for a in one for b in two)
    return all(any(matches(t, part) for t in things) for part in caption.split(" and "))
