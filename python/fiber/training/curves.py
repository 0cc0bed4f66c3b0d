"""Curves of a run: `metrics.jsonl` drawn as `curves.png`."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path
from typing import Any

from fiber.atomic_io import write_file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def draw_curves(entries: list[dict[str, Any]], path: Path) -> bool:
    """Draw one panel for each loss, one for the learning rates and one for what was validated.

    Args:
        entries: lines of `metrics.jsonl`.
        path: the PNG to write.

    Returns:
        Whether it was written: without matplotlib, or without entries, it is not.
    """
    if not entries:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(
            f"{path.name} was not drawn: matplotlib is not installed;"
            " pip install 'fiber-vl[train]' brings it",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    # The object interface draws without a display and leaves the caller's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for entry in entries for name in entry["losses"]))
    chosen_by = [entry for entry in entries if "validation" in entry]
    panels = len(names) + 1 + bool(chosen_by)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        points = [(e["step"], e["losses"][name]) for e in entries if name in e["losses"]]
        axis.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1)
        axis.set_title(name, fontsize=9)
    for name in entries[-1]["learning_rates"]:
        axes[len(names)].plot(
            [e["step"] for e in entries],
            [e["learning_rates"].get(name, math.nan) for e in entries],
            linewidth=1,
            label=name,
        )
    axes[len(names)].set_title("learning rate", fontsize=9)
    axes[len(names)].legend(fontsize=7)
    if chosen_by:
        scores = [entry["validation"]["score"] for entry in chosen_by]
        axes[panels - 1].plot([entry["step"] for entry in chosen_by], scores, marker=".")
        axes[panels - 1].set_title("score on held-out records", fontsize=9)
    for axis in axes[panels:]:
        axis.axis("off")
    for axis in axes[:panels]:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    write_file(path, lambda part: figure.savefig(part, dpi=110, format="png"))
    return True
