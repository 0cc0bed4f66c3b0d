"""Trackers of `fiber train --track NAME`: TensorBoard, trackio, Weights & Biases and MLflow.

Each library is imported when the run starts. Accounts, servers and offline mode are set as usual,
by the library's environment variables or settings. A resumed run continues the same tracker run.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from fiber.config_io import nearest
from fiber.training.tracking.callback import RunContext
from fiber.training.tracking.tracker import Tracker, flat_config, stored_id, tracking_folder

#: Name of the project (or experiment) unless the library's environment variable sets one.
PROJECT = "fiber"
#: How long W&B may wait for a login or for its server before it goes on offline.
_LOGIN_SECONDS = 30
#: Most entries of a batch that MLflow's servers accept.
_MLFLOW_BATCH = 100
#: Longest value of a parameter that MLflow's servers accept, in characters.
_MLFLOW_CHARACTERS = 500


class TensorBoard(Tracker):
    """Write event files to `tracking/tensorboard` in the run's folder."""

    name, module = "tensorboard", "tensorboard"

    def open(self, run: RunContext) -> None:
        """Open an event file; steps that are run again replace the earlier ones."""
        tensorboard: Any = importlib.import_module("torch.utils.tensorboard")
        folder = tracking_folder(run, self.name)
        purge = run.first_step + 1 if any(folder.iterdir()) else None
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=purge)
        lines = [f"| {name} | {value} |" for name, value in flat_config(run).items()]
        table = "\n".join(["| field | value |", "|---|---|", *lines])
        self._writer.add_text("config", table, run.first_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a scalar for each number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Trackio(Tracker):
    """Log to trackio; the project is TRACKIO_PROJECT, by default "fiber"."""

    name, module = "trackio", "trackio"

    def open(self, run: RunContext) -> None:
        """Start a run named after the folder, or resume it."""
        trackio: Any = importlib.import_module("trackio")
        own, _ = stored_id(run, self.name)
        # It greets on standard output, which is reserved for results.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
                # trackio finds a run by its name, so names must be unique.
                name=f"{run.folder.resolve().name}-{own}",
                config=flat_config(run),
                resume="allow",
                embed=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers."""
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Send what is left."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


class WandB(Tracker):
    """Log to Weights & Biases; the project is WANDB_PROJECT, by default "fiber"."""

    name, module = "wandb", "wandb"

    def open(self, run: RunContext) -> None:
        """Start a run named after the folder, or resume it."""
        wandb: Any = importlib.import_module("wandb")
        own, _ = stored_id(run, self.name)
        settings = wandb.Settings(
            # The console shows a progress bar.
            console="off",
            login_timeout=_LOGIN_SECONDS,
            finish_timeout=self.close_seconds,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=own,
            name=run.folder.resolve().name,
            # wandb makes a folder "wandb" in it.
            dir=str(tracking_folder(run, self.name).parent),
            config=flat_config(run),
            resume="allow",
            settings=settings,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers; W&B ignores steps that it has already."""
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Send what is left and set the exit code."""
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """Log to MLflow at MLFLOW_TRACKING_URI; the experiment is MLFLOW_EXPERIMENT_NAME or "fiber".

    Without MLFLOW_TRACKING_URI, MLflow's own default applies.
    """

    name, module = "mlflow", "mlflow"

    def open(self, run: RunContext) -> None:
        """Create a run named after the folder, or continue it."""
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT

        def create() -> str:
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            created = self._client.create_run(number, run_name=run.folder.resolve().name)
            return created.info.run_id

        self._run_id, is_old = stored_id(run, self.name, create)
        if is_old:
            self._client.update_run(self._run_id, status="RUNNING")
            return
        parameters = [
            self._entities.Param(name, str(value)[:_MLFLOW_CHARACTERS])
            for name, value in flat_config(run).items()
        ]
        for start in range(0, len(parameters), _MLFLOW_BATCH):
            batch = parameters[start : start + _MLFLOW_BATCH]
            self._client.log_batch(self._run_id, params=batch)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers as one batch."""
        now = int(1000 * time.time())
        metric = self._entities.Metric
        metrics = [metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


#: Trackers by name, as of `fiber train --track NAME`.
TRACKERS: dict[str, type[Tracker]] = {
    each.name: each for each in (TensorBoard, Trackio, WandB, MLflow)
}


def open_trackers(names: Sequence[str]) -> list[Tracker]:
    """Create trackers by name; a repeated name counts once.

    Raises:
        ValueError: if a name is unknown.
        ModuleNotFoundError: if a library is not installed.
    """
    trackers = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise ValueError(f"tracker {name!r} does not exist; {nearest(name, TRACKERS)}")
        trackers.append(TRACKERS[name]())
    return trackers
