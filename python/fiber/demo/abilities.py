"""Decide what the demo's model has learned, by task and by kind of word.

A kind of word is the group of a referring expression or question, such as "color": a word of this
kind tells the object from the others in the image, or is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: Standard errors between a model's accuracy and its best baseline for an ability to count.
STANDARD_ERRORS = 3
#: Fewer predictions than these are named, since their standard errors are large.
FEW = 30
LEARNED, PARTLY, NOT_LEARNED = "learned", "partly learned", "not learned"
#: From the best to the worst.
VERDICTS = (LEARNED, PARTLY, NOT_LEARNED)

#: Tasks of `Ability.task`, as in "finds an object by its color".
EXPRESSIONS, QUESTIONS, PAIRS = "expressions", "questions", "pairs"
_STARTS = {
    EXPRESSIONS: "find the object that a phrase names by its ",
    QUESTIONS: "answer questions about ",
    PAIRS: "",
}
#: Display names of the groups of expressions and questions and of whole tasks, in display order.
KINDS = {
    EXPRESSIONS: {
        "color": "color",
        "noun": "shape",
        "size": "size",
        "material": "pattern",
        "composed": "combined properties",
        "relation": "position relative to another object",
    },
    PAIRS: {
        "retrieval": "rank the right picture among the first ten for a caption",
        "matching": "tell whether a caption fits a picture",
    },
    QUESTIONS: {
        "color": "color",
        "shape": "shape",
        "size": "size",
        "material": "pattern",
        "exists": "presence",
        "relation": "relative position",
        "count": "number",
    },
}


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Accuracy on a task or on one kind of word, with its baselines."""

    #: `EXPRESSIONS`, `QUESTIONS` or `PAIRS`.
    task: str
    #: Group in the annotations, or "retrieval" or "matching" for the tasks of `PAIRS`.
    group: str
    name: str
    #: "val" or "novel".
    split: str
    #: Number of predictions that were scored.
    count: int
    model: float
    chance: float
    #: Best baseline without the image, estimated from the training split.
    blind: float
    #: First expression or question of the group.
    example: str = ""

    @property
    def guess(self) -> float:
        """The better baseline."""
        return max(self.chance, self.blind)

    @property
    def margin(self) -> float:
        """Difference from the better baseline that counts; see `margin_of`."""
        return margin_of(self.model, self.guess, self.count)

    @property
    def verdict(self) -> str:
        """`LEARNED`, `PARTLY` or `NOT_LEARNED`; see `judge`."""
        return judge(self.model, self.guess, self.count)


def margin_of(model: float, guess: float, count: int) -> float:
    """Return three binomial standard errors of `count` predictions.

    The standard error is the larger of those of the two accuracies.
    """
    variance = max(rate * (1 - rate) for rate in (model, guess))
    return STANDARD_ERRORS * math.sqrt(max(variance, 0.0) / max(count, 1))


def judge(model: float, guess: float, count: int) -> str:
    """Return `LEARNED`, `PARTLY` or `NOT_LEARNED`.

    Partly learned means above the margin, but less than half of the way from the better baseline to
    100%, in percents as shown.
    """
    if model <= guess + margin_of(model, guess, count):
        return NOT_LEARNED
    model_percents, guess_percents = whole_percents(model), whole_percents(guess)
    return LEARNED if 2 * (model_percents - guess_percents) >= 100 - guess_percents else PARTLY


def kind_name(task: str, group: str, data: str) -> str:
    """Return the display name of a group of expressions or questions."""
    if group in ("noun", "shape") and data != "scenes":
        return "name"
    return KINDS[task].get(group, group)


def sorted_groups(task: str, groups: Sequence[str]) -> list[str]:
    """Return distinct groups in display order, without records that have none."""
    known = [group for group in KINDS[task] if group in groups]
    return known + sorted({group for group in groups if group} - set(known))


def whole_percents(value: float) -> int:
    """Round a fraction to percents, halves up, but to 100 only if it is 1."""
    return 100 if value == 1 else min(math.floor(100 * value + 0.5), 99)


def percent(value: float) -> str:
    """Format a fraction, as in "69%"."""
    return f"{whole_percents(value)}%"


def with_verdict(abilities: Sequence[Ability], verdict: str) -> list[list[Ability]]:
    """Return abilities, each on all of its splits, whose worst verdict on a split is `verdict`."""
    found = []
    for task, group in dict.fromkeys((a.task, a.group) for a in abilities):
        splits = [a for a in abilities if (a.task, a.group) == (task, group)]
        if max((a.verdict for a in splits), key=VERDICTS.index) == verdict:
            found.append(splits)
    return found


def is_seen_only(splits: Sequence[Ability]) -> bool:
    """Return whether an ability is learned, at least partly, on `val` but not on every split."""
    verdicts = {ability.split: ability.verdict for ability in splits}
    return verdicts.get("val", NOT_LEARNED) != NOT_LEARNED and NOT_LEARNED in verdicts.values()


def describe(abilities: Sequence[Sequence[Ability]]) -> list[str]:
    """List abilities by task, as in "answer questions about size (93%, 90%; guess 51%, 49%)".

    In brackets are the accuracy and the better baseline on each split, and the least number of
    predictions on a split, if these are few.
    """
    parts = []
    for task, start in _STARTS.items():
        found = []
        for splits in abilities:
            if splits[0].task == task:
                own = ", ".join(percent(ability.model) for ability in splits)
                guesses = ", ".join(percent(ability.guess) for ability in splits)
                least = min(ability.count for ability in splits)
                few = f"; only {least} asked" if least < FEW else ""
                found.append(f"{splits[0].name} ({own}; guess {guesses}{few})")
        if found:
            parts.append(start + _join(found))
    return parts


def summarize(
    abilities: Sequence[Ability],
    *,
    novel: str,
    untrained: Collection[str] = (),
    has_evidence: bool,
) -> list[tuple[str, str, list[str]]]:
    """State what the model has learned, as (CSS class, heading, texts).

    The worse of the verdicts on `val` and on `novel`, of which `novel` is the display name, counts.
    `untrained` lists the groups that the model was not trained on.
    """
    missing = with_verdict(abilities, NOT_LEARNED)
    skipped = [splits for splits in missing if splits[0].group in untrained]
    seen = [splits for splits in missing if is_seen_only(splits) and splits not in skipped]
    missing = [splits for splits in missing if splits not in (*skipped, *seen)]
    learned, partly = (with_verdict(abilities, verdict) for verdict in (LEARNED, PARTLY))
    lists = (
        ("learned", "It has learned to", learned),
        ("partly", "It has partly learned to", partly),
        ("partly", f"It has learned, or partly learned, but not for {novel}, to", seen),
        ("not", "It has not learned to", missing),
        ("not", "It was not trained to", skipped),
    )
    summary = [(style, heading, describe(found)) for style, heading, found in lists if found]
    if not (learned or partly or seen):
        nothing = "It has learned nothing that is clearly above guessing"
        summary.insert(0, ("not", nothing, []))
    if (missing or seen) and has_evidence:
        text = (
            "This is a short run. docs/evidence.md has what was learned in other ones, and in how"
            " much time"
        )
        summary.append(("more", text, []))
    return summary


def _join(parts: Sequence[str]) -> str:
    """Join words as in "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
