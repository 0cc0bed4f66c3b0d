"""A run's folder: who may write into it, where the run goes on, and its lines of metrics."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.atomic_io import explain_write_errors, read_json, remove_parts, write_file, write_json
from fiber.checkpoints.model_dir import Words, read_words, write_words
from fiber.checkpoints.provenance import DATA_PATH
from fiber.config_io import from_dict, to_dict
from fiber.env import provenance
from fiber.training.checkpoint import newest_checkpoint
from fiber.training.config.run import RunConfig, differences


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The files of one run under their names."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The whole RunConfig, with fiber's version and commit."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """Weights of the finished model."""
        return self.path / "model.safetensors"

    @property
    def is_finished(self) -> bool:
        """Whether the finished model is there."""
        return self.model_file.is_file()

    @property
    def has_trained(self) -> bool:
        """Whether a checkpoint or the finished model is there."""
        return self.is_finished or newest_checkpoint(self.checkpoints) is not None

    def stored_config(self) -> RunConfig | None:
        """The configuration of the run that this folder holds, if any.

        Raises:
            ValueError: if config.json describes no run (a model that was saved alone).
        """
        if not self.config_file.exists():
            return None
        values = read_json(self.config_file)
        if "tasks" not in values:
            raise ValueError(f"{self.path} holds a model, not a run; choose another output folder")
        for name in ("fiber_version", "commit", "init", DATA_PATH):
            values.pop(name, None)
        return from_dict(RunConfig, values)

    def stored_init(self) -> str | None:
        """Name the model that the run of this folder started from, if it did."""
        return read_json(self.config_file).get("init") if self.config_file.exists() else None

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with this configuration may write here.

        Raises:
            FileExistsError: if there is a run already and it shall not be resumed.
            ValueError: if it was another configuration's, with the fields that differ.
        """
        stored = self.stored_config()
        if stored is None:
            if self.is_finished or (self.path.exists() and not self.path.is_dir()):
                raise FileExistsError(f"{self.path} is in use; choose another output folder")
            return
        way_out = "" if self.has_trained else "; nothing is trained in it: delete it to start anew"
        if not resume:
            raise FileExistsError(
                f"{self.path} holds a run already; resume it (resume=True, --resume)"
                f" or choose another output folder{way_out}"
            )
        changed = differences(stored, config)
        if changed:
            raise ValueError(
                f"{self.path} was trained with another configuration; it can be resumed only with"
                " its own (stored -> asked for): " + "; ".join(changed) + way_out
            )

    def words(self) -> Words | None:
        """Tokenizer and answers of the run that this folder holds, if any."""
        return read_words(self.path) if self.config_file.exists() else None

    def open(
        self,
        config: RunConfig,
        words: Words,
        init: str | None = None,
        data_path: str | None = None,
    ) -> None:
        """Prepare the folder for writing: of a new run, everything but the weights.

        Lines of metrics after the newest checkpoint are dropped: those steps will be trained again.

        Args:
            config: of the run.
            words: its tokenizer and answers.
            init: what it starts from, if anything.
            data_path: absolute path of its data; None for a user's records.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_parts(self.path)
        if not self.config_file.exists():
            # The configuration comes last: with it the folder holds a run, and a whole one.
            write_words(self.path, words)
            origin = {"init": init, DATA_PATH: data_path}
            write_json(self.config_file, provenance() | origin | to_dict(config))
        self.checkpoints.mkdir(exist_ok=True)
        remove_parts(self.checkpoints)
        newest = newest_checkpoint(self.checkpoints)
        step = newest.step if newest else 0
        kept = [entry for entry in read_metrics(self.metrics_file) if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_file(self.metrics_file, lambda part: part.write_text(text, encoding="utf-8"))

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append a line of metrics."""
        # Half a line may stay behind: reading and resuming leave it out.
        with (
            explain_write_errors(self.metrics_file),
            self.metrics_file.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(entry) + "\n")

    def draw(self) -> None:
        """Draw curves.png from the metrics."""
        draw_curves(read_metrics(self.metrics_file), self.path / "curves.png")


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
