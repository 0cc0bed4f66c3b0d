"""Trackers in general: a thread of their own, and errors that never end a run."""

import threading

import pytest

from fiber.training.tracking import tracker as tracker_module
from fiber.training.tracking.tracker import Tracker, flat_config, flat_numbers, stored_id
from tests.training.micro_runs import coarse_config, run
from tests.training.tracking.test_callback import context


class Fake(Tracker):
    """Tracker whose library is this class; `fails` names its methods that raise."""

    name, module = "fake", "json"
    close_seconds = 5.0

    def __init__(self, fails=(), error=None):
        super().__init__()
        self.fails, self.error = fails, error
        self.calls, self.threads = [], set()

    def open(self, run):
        self.call("open", run.first_step)

    def log(self, step, numbers):
        self.call("log", step, numbers)

    def close(self, *, failed):
        self.call("close", failed)

    def call(self, name, *arguments):
        self.threads.add(threading.current_thread())
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise self.error or ConnectionError("no route")


class Stuck(Fake):
    """Hangs in a method until the test ends."""

    def __init__(self, method):
        super().__init__()
        self.method, self.free = method, threading.Event()
        self.close_seconds = 0.05

    def call(self, name, *arguments):
        super().call(name, *arguments)
        if name == self.method:
            self.free.wait(30)


def names(tracker):
    return [call[0] for call in tracker.calls]


def test_a_run_without_lines(tmp_path):
    tracker = Fake()
    tracker.on_run_start(context(tmp_path))
    tracker.on_step_end(1, None)
    tracker.on_run_end(None)
    assert tracker.calls == [("open", 3), ("close", False)]


def test_a_missing_library_names_the_extra():
    class Missing(Fake):
        name, module = "wandb", "no_such_module"

    with pytest.raises(
        ModuleNotFoundError, match=r"'wandb' requires no_such_module.*'fiber-vl\[wandb\]'"
    ) as error:
        Missing()
    assert error.value.name == "no_such_module"


def test_every_line_of_metrics_is_logged(pictures, tmp_path, recwarn):
    tracker = Fake()
    finished = run(coarse_config(train__steps=3), pictures, tmp_path / "r", callbacks=[tracker])
    assert names(tracker) == ["open", "log", "log", "log", "close"]
    assert [call[1:] for call in tracker.calls if call[0] == "log"] == [
        (entry["step"], flat_numbers(entry)) for entry in finished.metrics
    ]
    assert not [each for each in recwarn if "tracker" in str(each.message)]
    assert threading.current_thread() not in tracker.threads
    assert not any(thread.is_alive() for thread in tracker.threads)


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        (["open"], ["open"]),
        (["log"], ["open", "log", "log", "log", "close"]),
        (["close"], ["open", "log", "log", "log", "close"]),
        (["open", "log", "close"], ["open"]),
        (["log", "close"], ["open", "log", "log", "log", "close"]),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError("no route"), SystemExit(3)])
def test_errors_are_one_warning_and_the_run_goes_on(pictures, tmp_path, fails, calls, error):
    tracker = Fake(fails, error)
    with pytest.warns(RuntimeWarning) as warnings:
        finished = run(coarse_config(train__steps=3), pictures, tmp_path / "r", callbacks=[tracker])
    found = [str(each.message) for each in warnings if "tracker" in str(each.message)]
    assert len(found) == 1
    assert "'fake'" in found[0] and str(error) in found[0] and "metrics.jsonl" in found[0]
    assert names(tracker) == calls
    assert len(finished.metrics) == 3


@pytest.mark.parametrize("method", ["open", "log", "close"])
def test_a_tracker_that_hangs_does_not_stop_the_run(tmp_path, method):
    tracker = Stuck(method)
    tracker.on_run_start(context(tmp_path))
    tracker.on_step_end(1, {"step": 1, "images": 4})
    with pytest.warns(RuntimeWarning, match="'fake' failed: it was not done 0.05 s after the end"):
        tracker.on_run_end(None)
    tracker.free.set()


def test_a_slow_tracker_drops_lines_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "QUEUE_LINES", 4)
    tracker = Stuck("open")
    tracker.on_run_start(context(tmp_path))
    with pytest.warns(RuntimeWarning, match="4 lines of metrics wait") as warnings:
        for step in range(20):
            tracker.on_step_end(step, {"step": step, "images": 4})
    assert len(warnings) == 1
    tracker.free.set()
    tracker.close_seconds = 5.0
    tracker.on_run_end(None)
    assert 0 < names(tracker).count("log") < 20


def test_what_ended_the_run_is_told(tmp_path):
    tracker = Fake()
    tracker.on_run_start(context(tmp_path))
    tracker.on_run_end(KeyboardInterrupt())
    assert tracker.calls[-1] == ("close", True)


def test_numbers_of_nothing():
    assert flat_numbers({}) == {}


def test_only_finite_numbers_are_logged():
    line = {
        "step": 3,
        "losses": {"itc": 1.5, "itm": float("inf")},
        "performance": {"step_seconds": {"data": 0.25}, "restarts": 2},
        "name": "x",
    }
    assert flat_numbers(line) == {
        "losses/itc": 1.5,
        "performance/step_seconds/data": 0.25,
        "performance/restarts": 2.0,
    }


def test_the_configuration_by_dotted_name(tmp_path):
    values = flat_config(context(tmp_path))
    assert values["train.steps"] == 10
    assert values["data.transform.kind"] == "squash"
    assert values["optim.betas"] == [0.9, 0.98]
    assert not any(isinstance(value, dict) for value in values.values())


def test_an_id_is_made_once(tmp_path):
    made, is_old = stored_id(context(tmp_path), "fake")
    assert len(made) == 8 and not is_old
    assert stored_id(context(tmp_path), "fake") == (made, True)
    assert stored_id(context(tmp_path), "other", lambda: "mine") == ("mine", False)


@pytest.mark.parametrize("content", [b"", b"a\x1b[2J", b"two\nlines", b"a" * 100_000])
def test_a_stored_id_is_a_short_line(tmp_path, content):
    stored_id(context(tmp_path), "fake")
    (file,) = tmp_path.rglob("run_id")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} has '.{{,200}}; expected an id"):
        stored_id(context(tmp_path), "fake")
