"""Read metrics.jsonl of a run, which has a line per logged step, and plot it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiber.atomic_io import JSON_ERRORS, write_file
from fiber.data.formats.json_values import is_number, is_utf8
from fiber.messages import shown

#: Fields of a line's `performance` that are read.
_TIMES = ("wall_seconds", "goodput")
#: Parts of a metrics line that are drawn or compared, with numbers by name.
_SECTIONS = ("losses", "learning_rates", "validation")
#: Maximum number of names in a part, and of characters of a name.
_MAX_NAMES, _MAX_NAME = 100, 100
#: Maximum number of losses of a run, of which each is drawn in a panel.
_MAX_LOSSES = 32
_MAX_STEP = 2**53


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a partial last line is dropped.

    Raises:
        ValueError: if a complete line is not an object with a step and its time; the message gives
            its number.
    """
    if not path.exists():
        return []
    entries, losses = [], {}
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        hint = f"{path} or only this line can be deleted, since the weights do not depend on it"
        try:
            entry = json.loads(line.decode("utf-8"))
        except JSON_ERRORS as error:  # not JSON or not UTF-8
            raise ValueError(f"{path}: line {number} is not valid JSON ({error}); {hint}") from None
        if (problem := _entry_problem(entry)) is not None:
            raise ValueError(f"{path}: line {number} has {problem}; {hint}")
        losses.update(entry.get("losses", {}))
        if len(losses) > _MAX_LOSSES:
            raise ValueError(
                f"{path}: lines 1 to {number} have {len(losses):,} losses, such as"
                f" {shown(next(reversed(losses)))}; expected at most {_MAX_LOSSES}; {path} can be"
                " deleted, since the weights do not depend on it"
            )
        entries.append(entry)
    return entries


def _entry_problem(entry: Any) -> str | None:
    """Say what is wrong with a line of a metrics file, or return None."""
    step = entry.get("step") if isinstance(entry, dict) else None
    if type(step) is not int or not 0 <= step < _MAX_STEP:
        return f"no step, an integer from 0 to {_MAX_STEP:,}"
    times = entry.get("performance")
    if not isinstance(times, dict):
        return f"performance {shown(times)}; expected an object"
    for name in _TIMES:
        # Losses may be NaN, but times are added up. is_number refuses NaN.
        if not is_number(times.get(name)):
            return f"performance.{name} {shown(times.get(name))}; expected a number up to 2**53"
    for section in _SECTIONS:
        values = entry.get(section, {})
        if not isinstance(values, dict) or not all(map(_is_number, values.values())):
            return f"{section} {shown(values)}; expected an object of numbers"
        if len(values) > _MAX_NAMES or any(len(name) > _MAX_NAME for name in values):
            return (
                f"{len(values):,} {section}, such as {shown(max(values, key=len))}; expected at"
                f" most {_MAX_NAMES} names of at most {_MAX_NAME} characters"
            )
        if lone := next((name for name in values if not is_utf8(name)), None):
            return f"the name {shown(lone)} in {section}, which has a lone surrogate"
    return None


def _is_number(value: Any) -> bool:
    # A longer integer overflows in arithmetic with floats.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def draw_curves(
    entries: list[dict[str, Any]], path: Path, priors: Mapping[str, float] | None = None
) -> bool:
    """Plot losses, learning rates and validation scores to a PNG file, one panel below the other.

    Args:
        entries: lines of metrics.jsonl.
        path: PNG file.
        priors: losses of a model that ignores its inputs, by name (see `meters.prior_losses`),
            drawn as dashed lines.

    Returns:
        False if there are no entries or matplotlib is not installed.
    """
    if not entries:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(
            f"{path.name} was not drawn: matplotlib is not installed; run pip install"
            " 'fiber-vl[train]'",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    # The object-oriented API needs no display and leaves the caller's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def points(section: str, name: str) -> list[tuple[int, float]]:
        return [(e["step"], e[section][name]) for e in entries if name in e.get(section, {})]

    losses = dict.fromkeys(name for entry in entries for name in entry.get("losses", {}))
    panels = [(f"{name} loss", {name: points("losses", name)}) for name in losses]
    rates = entries[-1].get("learning_rates", {})
    panels.append(("learning rate", {name: points("learning_rates", name) for name in rates}))
    if scores := points("validation", "score"):
        panels.append(("held-out score", {"score": scores}))
    # Narrow, so that the labels are legible on a phone.
    figure = Figure(figsize=(4.2, 1.9 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True).flatten()
    for axis, (title, curves) in zip(axes, panels, strict=True):
        for name, curve in curves.items():
            axis.plot(
                *zip(*curve, strict=True), label=name, linewidth=1.5, marker=".", markersize=2
            )
            if name in (priors or {}):
                _draw_prior(axis, (priors or {})[name])
        axis.set_ylabel(title, fontsize=10, parse_math=False)
        axis.tick_params(labelsize=9, labelbottom=True)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize=9)
    axes[-1].set_xlabel("training step", fontsize=10)
    write_file(path, lambda part: figure.savefig(part, dpi=150, format="png"))
    return True


def _draw_prior(axis: Any, prior: float) -> None:
    """Draw the loss of a model that ignores its inputs as a labeled, dashed line."""
    axis.axhline(prior, color="0.35", linestyle="--", linewidth=1.2)
    axis.annotate(
        "chance: ignores its inputs",
        (0.98, prior),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="0.25",
    )
    axis.margins(y=0.18)
