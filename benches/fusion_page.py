"""Table and chart of the forms of fusion in docs/evidence.md, from the rows of `fusion.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from fusion import ARMS, EQUAL_FLOPS, SEEDS
from page_tables import (
    NOT_MEASURED,
    Row,
    by_arm,
    compared,
    complete,
    floats,
    groups,
    machines,
    read,
    table,
    values_of,
)

CHART = Path(__file__).parents[1] / "docs" / "images" / "fusion.svg"
FIRST = ARMS[0]
#: Metrics of the table by column of the rows, without the split.
METRICS = {
    "vqa/accuracy": "VQA: all questions",
    "vqa/color/accuracy": "VQA: color",
    "vqa/shape/accuracy": "VQA: shape",
    "vqa/exists/accuracy": "VQA: presence",
    "vqa/relation/accuracy": "VQA: relations",
    "nlvr2/accuracy": "NLVR2",
    "matching/accuracy": "matching",
    "winoground/text": "swapped words: text",
    "winoground/image": "swapped words: image",
    "winoground/group": "swapped words: group",
}
#: Metrics of the chart, on val.
DRAWN = (
    "vqa/accuracy",
    "vqa/exists/accuracy",
    "vqa/relation/accuracy",
    "nlvr2/accuracy",
    "matching/accuracy",
)


def complete_arms(rows: Sequence[Row]) -> list[str]:
    """Return the arms that have a row of each seed."""
    return complete(rows, [*ARMS, *(f"{arm}{EQUAL_FLOPS}" for arm in ARMS[1:])], len(SEEDS))


def forms() -> str:
    """Every metric by form of fusion."""
    rows = read("fusion")
    arms = complete_arms(rows)
    if arms[: len(ARMS)] != list(ARMS):
        return NOT_MEASURED
    rows = [row for row in rows if row["arm"] in arms]
    costs = [
        [arm, own[0]["steps"], own[0]["parameters"], own[0]["gflop_per_step"], _seconds(own)]
        for (arm,), own in groups(rows, "arm").items()
    ]
    verdicts = [
        f"- *{FIRST}* against *{arm}*: {compared(rows, METRICS, FIRST, arm)}."
        for arm in arms
        if arm != FIRST
    ]
    return (
        by_arm(rows, METRICS, arms)
        + "\n"
        + table(["arm", "steps", "parameters", "GFLOP per step", "CPU seconds"], costs)
        + "\n"
        + "\n".join(verdicts)
        + "\n"
        + machines(rows)
    )


def draw(rows: Sequence[Row]) -> None:
    """Draw the means of the arms on val, with the least and the greatest of the seeds.

    Nothing is drawn until every arm of equal steps is complete.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    arms = [arm for arm in complete_arms(rows) if EQUAL_FLOPS not in arm]
    if arms != list(ARMS):
        return
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        values = [values_of(rows, metric, "val", arm)[0] for metric in DRAWN]
        heights = [mean(own) for own in values]
        reach = [
            [height - min(own) for height, own in zip(heights, values, strict=True)],
            [max(own) - height for height, own in zip(heights, values, strict=True)],
        ]
        places = [place + (number - (len(arms) - 1) / 2) * width for place in range(len(DRAWN))]
        axes.bar(places, heights, width, yerr=reach, capsize=2, label=arm)
    axes.set_xticks(range(len(DRAWN)), [METRICS[metric] for metric in DRAWN])
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy on val")
    axes.legend(ncols=len(arms), loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    # The same rows make the same file.
    with rc_context({"svg.hashsalt": CHART.name}):
        FigureCanvasSVG(figure).print_svg(CHART, metadata={"Date": None})


def _seconds(rows: Sequence[Row]) -> str:
    return f"{mean(floats(rows, 'train_cpu_seconds')):.0f}"
