"""The section of the results page, and the curve, of the rows of `boxes.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from box_measures import GROUPS, NUMBERS
from boxes import (
    BOXED,
    CHANCE,
    COARSE,
    COARSE_FINE,
    FINE,
    FREQUENT,
    LONGER,
    PERCENTS,
    STEPS,
    TEXT_ONLY,
    hours_of,
    is_extra,
)
from boxes import wanted as runs
from few_stamps import KINDS
from page_parts import change, machines, spread, table

#: File name of the curve, in docs/images.
PICTURE = "boxes.png"
#: What a person reads for a number.
NAMES = {
    "phrases/recall_at_1": "phrases, R@1",
    "phrases/recall_at_5": "phrases, R@5",
    "referring/accuracy": "expressions, accuracy",
    "detection/ap50": "detection, AP50",
    "detection/ap": "detection, AP",
}
#: Numbers that have a panel in the curve.
DRAWN = ("phrases/recall_at_1", "referring/accuracy", "detection/ap50")
#: Lines of a panel: the arms with their colours, and what stands beside them.
ARMS = {COARSE_FINE: "tab:blue", FINE: "tab:orange", LONGER: "tab:green"}
BESIDE = {TEXT_ONLY: ":", FREQUENT: "-.", CHANCE: "--"}
#: Data of the rows of stamps with every noun of the collection, which were not learned.
ALL_STAMPS = "all stamps"
#: Seeds that a judgement needs.
SEEDS = 3

INTRODUCTION = f"""## What the coarse stage saves in boxes

The fine stage from a coarse model and from nothing (`benches/boxes.py`), with the boxes of 100, 25
and 5 % of {BOXED} pictures of the training split, at equal steps, so that the number of boxes is
all that differs along a line; *fine only, longer* has the steps of both stages. The coarse stage
reads captions and questions of all training pictures and no box; seeds are those of the fine stage
and of the choice of pictures, and start from one coarse model, or from one that was trained anew
where its folder was gone (the steps below tell). *Seen*: val. *Unseen*: what
novel names of the colours with shapes (scenes) or nouns (stamps) that neither stage was shown; for
expressions and detection of scenes, whose classes are shapes, all of novel, each of whose pictures
shows such a pair. The stamps are one each of {KINDS} nouns, those held out among them, of which no
text of training says a word, not even that they are absent. *Chance* is told all boxes of a picture
and takes them in random order, so that its R@5 is 1 where no picture has more than five; *most
frequent box* sees no picture; *text only* is the fine stage from nothing, with every picture grey
in training and in measuring (one seed).
"""
CANNOT_SHOW = """What this cannot show: *fine only* has the coarse stage's steps less, so that it
may fall behind for want of training and not of captions; *fine only, longer* is the fair one by
steps, though a fine step reads fewer pictures than a coarse one. Coarse models are not compared
with each other: how much another one would differ is not in the ranges. The runs are a few hundred
steps of a small model: what boxes or captions bring only after more of them does not show.
"""


class Point(NamedTuple):
    """Seeds of one arm with one number of boxes."""

    boxes: float
    mean: float
    least: float
    most: float


def section(rows: Sequence[dict[str, str]]) -> list[str]:
    """The section; nothing without a trained run."""
    if not any(row["arm"] in ARMS for row in rows):
        return []
    parts = [INTRODUCTION, f"![accuracy against number of boxes](images/{PICTURE})\n"]
    for data in STEPS:
        own = [row for row in rows if row["data"] == data]
        if any(row["arm"] in ARMS for row in own):
            parts += [f"### {data}, boxes\n", _numbers(own), _judged(own), _cost(own)]
    return [*parts, _all_stamps(rows), CANNOT_SHOW, _state(rows)]


def values(
    rows: Sequence[dict[str, str]], arm: str, column: str, percent: int | None = None
) -> list[float]:
    """A number of an arm, seed by seed; without `percent` those of all parts of the boxes."""
    return [
        float(row[column])
        for row in rows
        if row["arm"] == arm and percent in (None, int(row["percent"])) and row[column]
    ]


def points(rows: Sequence[dict[str, str]], arm: str, column: str) -> list[Point]:
    """The line of an arm, fewest boxes first."""
    line = []
    for percent in sorted(PERCENTS):
        found = values(rows, arm, column, percent)
        if found:
            boxes = values(rows, arm, "boxes", percent)
            numbers = statistics.mean(found), min(found), max(found)
            line.append(Point(statistics.mean(boxes), *numbers))
    return line


def _columns() -> list[tuple[str, str, str]]:
    """All numbers: column of the rows, what a person reads, group."""
    return [
        (f"{number}/{group}", NAMES[number], group) for _, _, number in NUMBERS for group in GROUPS
    ]


def _numbers(own: Sequence[dict[str, str]]) -> str:
    beside = (CHANCE, FREQUENT, TEXT_ONLY)
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in own)]
    lines = []
    for column, name, group in _columns():
        for percent in PERCENTS:
            first = percent == PERCENTS[0]
            lines.append(
                [
                    name if first else "",
                    group if first else "",
                    *(spread(values(own, arm, column)) if first else "" for arm in beside),
                    f"{percent} %",
                    *(spread(values(own, arm, column, percent)) for arm in arms),
                ]
            )
    return table(["number", "group", *beside, "boxes", *arms], lines)


def _judged(own: Sequence[dict[str, str]]) -> str:
    """Name the differences that the coarse stage makes, by the rule of the ablation above."""
    verdicts = []
    for without in (FINE, LONGER):
        for percent in PERCENTS:
            if not all(_is_whole(own, arm, percent) for arm in (COARSE_FINE, without)):
                continue
            found = []
            for column, name, group in _columns():
                pair = [values(own, arm, column, percent) for arm in (without, COARSE_FINE)]
                apart = change(*pair)
                if apart:
                    found.append(f"{name} ({group}) {apart}")
            verdicts.append(
                f"- {COARSE_FINE} beside {without}, {percent} % of the boxes:"
                f" {'; '.join(found) or 'no difference found'}"
            )
    if not verdicts:
        return f"Fewer than {SEEDS} seeds have run: no difference is judged yet.\n"
    saved = [line for line in (_saved(own, without) for without in (FINE, LONGER)) if line]
    return (
        f"Differences by the rule of the ablation above; of the {len(verdicts) * len(_columns())}"
        " comparisons luck alone sets one in ten apart:\n\n" + "\n".join([*verdicts, *saved]) + "\n"
    )


def _saved(own: Sequence[dict[str, str]], without: str) -> str:
    """Say with what part of the boxes each arm reaches what all boxes reach without the coarse one.

    That of the arm without it stands beside: where fewer boxes are as good for it, none are saved.
    """
    needed = [(arm, percent) for arm in (COARSE_FINE, without) for percent in PERCENTS]
    if not all(_is_whole(own, arm, percent) for arm, percent in needed):
        return ""
    said = []
    for column, name, group in _columns():
        goal = statistics.mean(values(own, without, column, PERCENTS[0]))
        parts = []
        for arm in (COARSE_FINE, without):
            reached = [
                percent
                for percent in PERCENTS
                if statistics.mean(values(own, arm, column, percent)) >= goal
            ]
            parts.append(f"{min(reached)} %" if reached else "never")
        said.append(f"{name} ({group}) {' and '.join(parts)}")
    return (
        f"- least part of the boxes with which the means of {COARSE_FINE} and of {without} itself"
        f" reach that of {without} with {PERCENTS[0]} %: {'; '.join(said)}"
    )


def _is_whole(own: Sequence[dict[str, str]], arm: str, percent: int) -> bool:
    rows = [row for row in own if row["arm"] == arm and int(row["percent"]) == percent]
    return len(rows) >= SEEDS


def _cost(own: Sequence[dict[str, str]]) -> str:
    """Say how long the models were trained, and whether the coarse one learned."""
    said = []
    for row, starts in _coarse(own):
        said.append(
            f"{row['steps']} coarse steps of {row['batch_size']}, after which text finds picture"
            f" among 1000 captions of val with R@10 {row['coarse_text_to_image_recall_at_10']}"
            f" (runs from it: {starts})"
        )
    for arm in (FINE, LONGER):
        steps = {f"{row['steps']} of {row['batch_size']}" for row in own if row["arm"] == arm}
        if steps:
            said.append(f"{', '.join(sorted(steps))} ({arm})")
    boxes = [
        f"{percent} %: {statistics.mean(found):.0f}"
        for percent in PERCENTS
        for found in [_boxes(own, percent)]
        if found
    ]
    return f"Steps: {'; '.join(dict.fromkeys(said))}. Boxes: {', '.join(boxes)}.\n"


def _boxes(own: Sequence[dict[str, str]], percent: int) -> list[float]:
    """Boxes that each run with a part of them was trained with."""
    return [boxes for arm in ARMS for boxes in values(own, arm, "boxes", percent)]


def _coarse(own: Sequence[dict[str, str]]) -> list[tuple[dict[str, str], int]]:
    """The coarse models, each with the number of runs that started from it.

    One whose folder was gone was trained once more, for the runs behind it.
    """
    found: list[tuple[dict[str, str], int]] = []
    for row in own:
        if row["arm"] == COARSE:
            found.append((row, 0))
        elif row["arm"] == COARSE_FINE and found:
            last, starts = found[-1]
            found[-1] = last, starts + 1
    return found


def _all_stamps(rows: Sequence[dict[str, str]]) -> str:
    """Say what was learned of stamps with every noun that there is; nothing without such rows."""
    own = [row for row in rows if row["data"] == ALL_STAMPS]
    said = []
    for number in DRAWN:
        column = f"{number}/seen"
        beside = [f"{CHANCE} {row[column]}" for row in own if row["arm"] == CHANCE]
        arms = [
            f"{row['arm']}, {row['percent']} % of the boxes {row[column]}"
            for row in own
            if row["arm"] in ARMS
        ]
        said.append(f"{NAMES[number]} (seen): {', '.join([*beside, *arms])}")
    steps = {row["steps"]: None for row in own if row["arm"] in ARMS}
    if not steps:
        return ""
    return (
        "Stamps of all nouns of the collection, hundreds of them, are too much for runs of this"
        f" length (data *{ALL_STAMPS}* of the rows, {', '.join(steps)} fine steps, seed 0):"
        f" {'; '.join(said)}. So the stamps above show few nouns.\n"
    )


def _state(rows: Sequence[dict[str, str]]) -> str:
    """Say how many runs there are, what they cost, and what was spent beside the comparison."""
    counted = [row for row in rows if not is_extra(row)]
    trained = [row for row in counted if row["arm"] in (*ARMS, TEXT_ONLY)]
    wanted = [job for _, job in runs([*range(SEEDS)], [*STEPS]) if job.arm not in (CHANCE, LONGER)]
    extras = []
    for name, own in (
        (LONGER, [row for row in rows if row["arm"] == LONGER]),
        (ALL_STAMPS, [row for row in rows if row["data"] == ALL_STAMPS]),
    ):
        if own:
            extras.append(f"{name}: {hours_of(own):.1f}")
    beside = f" (besides, {', '.join(extras)})" if extras else ""
    return (
        f"{len(trained)} of {len(wanted)} fine runs, {hours_of(counted):.1f} CPU hours"
        f"{beside}: {machines(rows)}.\n"
    )


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Draw accuracy against the number of boxes: mean of the seeds, and their range.

    Args:
        rows: of `boxes.py`.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [
        data for data in STEPS if any(row["data"] == data and row["arm"] in ARMS for row in rows)
    ]
    panels = [(number, group) for number in DRAWN for group in GROUPS]
    figure, axes = pyplot.subplots(
        len(trained),
        len(panels),
        figsize=(3 * len(panels), 2.9 * len(trained)),
        squeeze=False,
        layout="constrained",
    )
    for row_of_axes, data in zip(axes, trained, strict=True):
        own = [row for row in rows if row["data"] == data]
        for panel, (number, group) in zip(row_of_axes, panels, strict=True):
            column = f"{number}/{group}"
            for arm, color in ARMS.items():
                line = points(own, arm, column)
                x = [point.boxes for point in line]
                panel.plot(x, [point.mean for point in line], "o-", color=color, label=arm)
                ends = [point.least for point in line], [point.most for point in line]
                panel.fill_between(x, *ends, color=color, alpha=0.2)
            for arm, style in BESIDE.items():
                for value in values(own, arm, column)[:1]:
                    panel.axhline(value, color="grey", linestyle=style, label=arm)
            panel.set_xscale("log")
            # Seeds choose other pictures, so that arms with more of them have other means.
            counts = [_boxes(own, percent) for percent in PERCENTS]
            marks = [statistics.mean(found) for found in counts if found]
            panel.set_xticks(marks, [f"{mark:.0f}" for mark in marks], minor=False)
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.set_title(f"{data}: {NAMES[number]}, {group}", fontsize=8)
            panel.set_xlabel("boxes", fontsize=8)
            panel.tick_params(labelsize=7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
