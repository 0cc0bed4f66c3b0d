"""The four trackers: each with its library where it is installed, else with a stand-in."""

import importlib
import importlib.util
import sqlite3
import sys
import types
from pathlib import Path

import pytest

from fiber.cli import main
from fiber.training.tracking import trackers
from fiber.training.tracking.trackers import TRACKERS, open_trackers
from tests.cli.output import error_line
from tests.training.micro_runs import coarse_config, run, with_dropout
from tests.training.test_trainer import StopError, numbers, stop_before


def test_no_trackers():
    assert open_trackers([]) == []


def test_an_unknown_tracker_is_named():
    with pytest.raises(ValueError, match=r"'wanb' does not exist; did you mean wandb\?"):
        open_trackers(["wanb"])


def test_every_tracker_has_an_extra():
    from fiber.doctor import EXTRAS

    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for name in TRACKERS:
        assert name in EXTRAS
        assert f"\n{name} = [" in pyproject


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_an_error_at_the_start(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "scenes_coarse", "--data", "none", "--track", name]) == 2
    message = error_line(capsys)
    assert repr(name) in message and f"pip install 'fiber-vl[{name}]'" in message
    assert not (tmp_path / "runs").exists()


def test_a_repeated_name_is_one_tracker(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    assert [each.name for each in open_trackers(["wandb", "mlflow", "wandb"])] == [
        "wandb",
        "mlflow",
    ]


def killed_and_resumed(pictures, folder, monkeypatch, name):
    """Train 10 steps, stopped after step 7 and resumed from step 4; return the metrics."""
    stop_before(monkeypatch, 7)
    with pytest.raises(StopError):
        run(coarse_config(), pictures, folder, callbacks=open_trackers([name]))
    return run(
        coarse_config(), pictures, folder, callbacks=open_trackers([name]), resume=True
    ).metrics


class Library(types.ModuleType):
    """A stand-in for a library that notes calls of any function of any depth."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Library(f"{self.__name__}.{name}", self.calls)

    def __call__(self, *arguments, **options):
        self.calls.append((self.__name__.partition(".")[2], arguments, options))
        return Library(self.__name__, self.calls)


def pretend(monkeypatch, name):
    """Install a stand-in, also as the submodules that trackers import."""
    calls = []
    for module in (name, f"{name}.entities", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, Library(module, calls))
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


@pytest.mark.parametrize("name", ["trackio", pytest.param("wandb", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_same_run(pictures, tmp_path, monkeypatch, name):
    calls = pretend(monkeypatch, name)
    killed_and_resumed(pictures, tmp_path / "mine", monkeypatch, name)
    starts = [options for function, _, options in calls if function == "init"]
    assert len(starts) == 2
    key = "id" if name == "wandb" else "name"
    assert starts[0][key] == starts[1][key]
    for start in starts:
        assert start["project"] == "fiber"
        assert start["name"].startswith("mine")
        assert start["resume"] == "allow"
        assert start["config"]["train.steps"] == 10
    logged = [options["step"] for function, _, options in calls if function == "init.log"]
    assert logged == [*range(1, 8), *range(5, 11)]
    ends = [options for function, _, options in calls if function == "init.finish"]
    assert ends == ([{"exit_code": 1}, {"exit_code": 0}] if name == "wandb" else [{}, {}])


def test_greetings_of_trackio_do_not_go_to_standard_output(pictures, tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "trackio")
    silent = Library.__call__

    def loud(self, *arguments, **options):
        if not self.__name__.endswith(".log"):
            print("* hello")
        return silent(self, *arguments, **options)

    monkeypatch.setattr(Library, "__call__", loud)
    config = coarse_config(train__steps=1)
    run(config, pictures, tmp_path / "r", callbacks=open_trackers(["trackio"]))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("* hello") == 2


def test_the_project_of_the_environment(pictures, tmp_path, monkeypatch):
    calls = pretend(monkeypatch, "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    config = coarse_config(train__steps=1)
    run(config, pictures, tmp_path / "r", callbacks=open_trackers(["wandb"]))
    assert next(options["project"] for name, _, options in calls if name == "init") == "ours"


def test_mlflow_gets_what_its_servers_accept(pictures, tmp_path, monkeypatch):
    calls = pretend(monkeypatch, "mlflow")
    monkeypatch.setattr(trackers, "stored_id", lambda run, name, new: (new() and "one", False))
    config = coarse_config(train__steps=1)
    run(config, pictures, tmp_path / "r", callbacks=open_trackers(["mlflow"]))
    batches = [options for name, _, options in calls if name == "MlflowClient.log_batch"]
    assert len(batches) == 3
    assert all(len(next(iter(each.values()))) <= 100 for each in batches)
    parameters = [arguments for name, arguments, _ in calls if name == "entities.Param"]
    assert ("train.steps", "1") in parameters
    assert all(len(value) <= 500 for _, value in parameters)
    ended = [arguments for name, arguments, _ in calls if name.endswith("set_terminated")]
    assert ended == [("one", "FINISHED")]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracked_run_learns_the_same(pictures, tmp_path, monkeypatch, name):
    """No library touches what the run's random numbers depend on."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    if name == "trackio":
        trackio_in(monkeypatch, tmp_path / "trackio")
    config = with_dropout(coarse_config(train__steps=4))
    plain = run(config, pictures, tmp_path / "plain")
    tracked = run(config, pictures, tmp_path / "tracked", callbacks=open_trackers([name]))
    assert numbers(plain.folder) == numbers(tracked.folder)


def test_tensorboard_files_are_read_back(pictures, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = killed_and_resumed(pictures, tmp_path / "r", monkeypatch, "tensorboard")
    events = EventAccumulator(str(tmp_path / "r" / "tracking" / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("gradient_norm")}
    # Steps that ran twice are there once.
    assert len(events.Scalars("gradient_norm")) == 10
    assert found == pytest.approx({line["step"]: line["gradient_norm"] for line in metrics})
    assert "performance/step_seconds/data" in events.Tags()["scalars"]


def test_wandb_offline(pictures, tmp_path, monkeypatch, recwarn):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed_and_resumed(pictures, tmp_path / "r", monkeypatch, "wandb")
    folder = tmp_path / "r" / "tracking" / "wandb"
    own = (folder / "run_id").read_text().strip()
    files = sorted(folder.glob(f"offline-run-*-{own}/run-{own}.wandb"))
    assert len(files) == 2
    assert all(b"losses/itc" in file.read_bytes() for file in files)
    assert not [each for each in recwarn if "tracker" in str(each.message)]


def trackio_in(monkeypatch, folder):
    """Let trackio write to a folder instead of the user's cache; return its storage."""
    storage = importlib.import_module("trackio.sqlite_storage")
    for module in (sys.modules["trackio"], storage, sys.modules["trackio.utils"]):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return storage


def test_trackio_is_read_back(pictures, tmp_path, monkeypatch, recwarn):
    pytest.importorskip("trackio")
    storage = trackio_in(monkeypatch, tmp_path / "trackio")
    metrics = killed_and_resumed(pictures, tmp_path / "r", monkeypatch, "trackio")
    own = (tmp_path / "r" / "tracking" / "trackio" / "run_id").read_text().strip()
    lines = storage.SQLiteStorage.get_logs("fiber", f"r-{own}")
    found = {line["step"]: line["gradient_norm"] for line in lines}
    assert found == {line["step"]: line["gradient_norm"] for line in metrics}
    assert not [each for each in recwarn if "tracker" in str(each.message)]


def test_mlflow_is_read_back(pictures, tmp_path, monkeypatch, recwarn):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    metrics = killed_and_resumed(pictures, tmp_path / "r", monkeypatch, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fiber")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.steps"] == "10"
    history = client.get_metric_history(found.info.run_id, "gradient_norm")
    assert {each.step: each.value for each in history} == {
        line["step"]: line["gradient_norm"] for line in metrics
    }
    assert sqlite3.connect(database).execute("select count(*) from runs").fetchone() == (1,)
    assert not [each for each in recwarn if "tracker" in str(each.message)]
