"""Folder of a training run: its files, the check before writing, and its metrics."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.atomic_io import explain_write_errors, read_json, remove_parts, write_file, write_json
from fiber.checkpoints.model_dir import Vocabulary, read_vocabulary, write_vocabulary
from fiber.checkpoints.provenance import DATA_PATH
from fiber.config_io import from_dict, to_dict
from fiber.env import provenance
from fiber.training.checkpoint import newest_checkpoint
from fiber.training.config.run import RunConfig, differences


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Folder of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Path of the RunConfig, with version and commit of fiber."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """Path of the metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Path of the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """Path of the weights of the finished model."""
        return self.path / "model.safetensors"

    @property
    def is_finished(self) -> bool:
        """Whether the finished model exists."""
        return self.model_file.is_file()

    @property
    def has_trained(self) -> bool:
        """Whether a checkpoint or the finished model exists."""
        return self.is_finished or newest_checkpoint(self.checkpoints) is not None

    def stored_config(self) -> RunConfig | None:
        """Read the configuration of the run; None without a run.

        Raises:
            ValueError: if config.json is that of a saved model.
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
        """Read the path of the weights that the run started from; None if from scratch."""
        return read_json(self.config_file).get("init") if self.config_file.exists() else None

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with this configuration may write here.

        Raises:
            FileExistsError: if the folder holds a run and `resume` is False.
            ValueError: if the stored configuration differs, with the fields that do.
        """
        stored = self.stored_config()
        if stored is None:
            if self.is_finished or (self.path.exists() and not self.path.is_dir()):
                raise FileExistsError(f"{self.path} is in use; choose another output folder")
            return
        hint = "" if self.has_trained else "; no step was saved: delete it to start again"
        if not resume:
            raise FileExistsError(
                f"{self.path} holds a run already; resume it (resume=True, --resume)"
                f" or choose another output folder{hint}"
            )
        changed = differences(stored, config)
        if changed:
            raise ValueError(
                f"{self.path} was trained with another configuration (stored -> requested): "
                + "; ".join(changed)
                + hint
            )

    def vocabulary(self) -> Vocabulary | None:
        """Read tokenizer, answers and classes of the run; None without a run."""
        return read_vocabulary(self.path) if self.config_file.exists() else None

    def open(
        self,
        config: RunConfig,
        vocabulary: Vocabulary,
        init: str | None = None,
        data_path: str | None = None,
    ) -> None:
        """Prepare the folder for writing; of a new run, write everything but the weights.

        Metrics after the newest checkpoint are dropped, since those steps are trained again.

        Args:
            config: of the run.
            vocabulary: its tokenizer, answers and classes.
            init: path of the weights that it starts from, if any.
            data_path: absolute path of its data; None for records of the caller.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_parts(self.path)
        if not self.config_file.exists():
            # config.json is last: a folder that has it holds a complete run.
            write_vocabulary(self.path, vocabulary)
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
        # A partial last line, after a crash, is dropped by `read_metrics` and `open`.
        with (
            explain_write_errors(self.metrics_file),
            self.metrics_file.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(entry) + "\n")

    def draw(self) -> None:
        """Draw curves.png from the metrics."""
        draw_curves(read_metrics(self.metrics_file), self.path / "curves.png")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; a partial last line is dropped."""
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
    """Plot each loss, the learning rates and the validation score.

    Args:
        entries: lines of `metrics.jsonl`.
        path: PNG to write.

    Returns:
        False, if there are no entries or matplotlib is not installed.
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
    # The object interface needs no display and does not change the caller's pyplot state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for entry in entries for name in entry["losses"]))
    validated = [entry for entry in entries if "validation" in entry]
    panels = len(names) + 1 + bool(validated)
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
    if validated:
        scores = [entry["validation"]["score"] for entry in validated]
        axes[panels - 1].plot([entry["step"] for entry in validated], scores, marker=".")
        axes[panels - 1].set_title("score on held-out records", fontsize=9)
    for axis in axes[panels:]:
        axis.axis("off")
    for axis in axes[:panels]:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    write_file(path, lambda part: figure.savefig(part, dpi=110, format="png"))
    return True
