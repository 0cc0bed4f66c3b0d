"""Plot accuracy by number of boxes, from the rows of `boxes.py`: docs/images/boxes.png.

Command: python benches/plot_boxes.py
One panel per dataset, metric and group: the mean of the seeds and their range, with chance and the
blind baselines as horizontal lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from page_tables import PARTS, Row, floats, read
from results_page import COARSE_FINE, FINE, LONGER, PAGE, PERCENTS

COLORS = {COARSE_FINE: "tab:blue", FINE: "tab:orange", LONGER: "tab:green"}
BASELINES = {"text only": ":", "most frequent box": "-.", "chance": "--"}
METRICS = ("phrases/recall_at_1", "referring/accuracy", "detection/ap50")
COLUMNS = [f"{metric}/{group}" for metric in METRICS for group in ("seen", "unseen")]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot the rows of all datasets into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [data for data in ("scenes", "stamps") if any(row["data"] == data for row in rows)]
    figure, axes = pyplot.subplots(
        len(names),
        len(COLUMNS),
        figsize=(3 * len(COLUMNS), 2.9 * len(names)),
        squeeze=False,
        layout="constrained",
    )
    for row_of_axes, data in zip(axes, names, strict=True):
        for panel, column in zip(row_of_axes, COLUMNS, strict=True):
            _plot_panel(panel, [row for row in rows if row["data"] == data], column)
            metric, group = column.rsplit("/", 1)
            panel.set_title(f"{data}: {PARTS['metrics'][metric]}, {group}", fontsize=7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def line_of(rows: Sequence[Row], arm: str, column: str) -> Mapping[float, list[float]]:
    """Values of the seeds of an arm by mean number of boxes, fewest first."""
    found = {}
    for percent in sorted(PERCENTS, key=int):
        values = floats(rows, column, arm=arm, percent=percent)
        if values:
            found[mean(floats(rows, "boxes", arm=arm, percent=percent))] = values
    return found


def _plot_panel(panel: Any, rows: Sequence[Row], column: str) -> None:
    for arm, color in COLORS.items():
        line = line_of(rows, arm, column)
        boxes, values = list(line), list(line.values())
        panel.plot(boxes, [mean(each) for each in values], "o-", color=color, label=arm)
        ends = [min(each) for each in values], [max(each) for each in values]
        panel.fill_between(boxes, *ends, color=color, alpha=0.2)
    for arm, style in BASELINES.items():
        for value in floats(rows, column, arm=arm)[:1]:
            panel.axhline(value, color="grey", linestyle=style, label=arm)
    marks = list(line_of(rows, FINE, column))
    panel.set_xscale("log")
    panel.set_xticks(marks, [f"{mark:.0f}" for mark in marks], minor=False)
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_xlabel("boxes", fontsize=8)
    panel.tick_params(labelsize=7)


if __name__ == "__main__":
    plot(read("boxes"), PAGE.parent / "images" / "boxes.png")
