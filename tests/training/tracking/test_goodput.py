"""Goodput over starts, kills and restarts."""

import json
import time

import pytest

from fiber.training.metrics_file import read_metrics
from fiber.training.tracking.goodput import ATTEMPTS_FILE, Attempt, Goodput, begin_attempt
from tests.training.micro_runs import coarse_config, run
from tests.training.test_trainer import StopError, stop_before

#: A line of the file.
ATTEMPT = {
    **dict.fromkeys(("started", "wall_seconds", "step_seconds"), 1.0),
    "restarts": 0,
    "job": "",
    "job_restarts": 0,
}


def line(step, wall, goodput):
    return {"step": step, "performance": {"wall_seconds": wall, "goodput": goodput}}


def by_torchrun(count, job="a"):
    return {"TORCHELASTIC_RUN_ID": job, "TORCHELASTIC_RESTART_COUNT": str(count)}


def test_a_first_start_has_lost_nothing(tmp_path):
    first = begin_attempt(tmp_path, [], 0, started=50.0, environment={})
    assert first == Attempt(
        started=50.0, wall_seconds=0, step_seconds=0, restarts=0, job="", job_restarts=0
    )
    assert json.loads((tmp_path / ATTEMPTS_FILE).read_text())["started"] == 50.0


def test_lost_steps_are_wall_time_but_do_not_count(tmp_path):
    begin_attempt(tmp_path, [], 0, started=50.0, environment={})
    lines = [line(4, 100.0, 0.8), line(8, 180.0, 0.85)]
    second = begin_attempt(tmp_path, lines, 1, started=9000.0, environment={})
    # The pause before a start by hand does not count, all that was logged does.
    assert (second.wall_seconds, second.step_seconds, second.restarts) == (180.0, 80.0, 1)
    # Killed again before a line: nothing is forgotten.
    third = begin_attempt(tmp_path, lines[:1], 1, started=9900.0, environment={})
    assert (third.wall_seconds, third.step_seconds, third.restarts) == (180.0, 80.0, 2)


def test_a_restart_by_torchrun_counts_the_pause(tmp_path):
    begin_attempt(tmp_path, [], 0, started=50.0, environment=by_torchrun(0))
    lines = [line(4, 100.0, 0.8), line(8, 180.0, 0.85)]
    second = begin_attempt(tmp_path, lines, 1, started=270.0, environment=by_torchrun(2))
    # One restart came before its start was recorded.
    assert (second.wall_seconds, second.step_seconds, second.restarts) == (220.0, 80.0, 2)
    # Another job, whose first start was not recorded either: a start by hand, then a restart.
    third = begin_attempt(tmp_path, lines[:1], 1, started=900.0, environment=by_torchrun(1, "b"))
    assert (third.wall_seconds, third.restarts) == (220.0, 4)


def test_a_clock_that_was_set_back_gives_no_negative_pause(tmp_path):
    begin_attempt(tmp_path, [], 0, started=500.0, environment=by_torchrun(0))
    lines = [line(4, 100.0, 0.8)]
    assert (
        begin_attempt(tmp_path, lines, 1, started=20.0, environment=by_torchrun(1)).wall_seconds
        == 100.0
    )


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense\n", "[]\n", "{}\n", '{"started": "x"}\n', "\xff\n"),
        *(
            json.dumps({**ATTEMPT, name: value}) + "\n"
            for name, value in (("restarts", 10**30), ("wall_seconds", 1e999), ("started", -1))
        ),
    ],
    ids=range(8),
)
def test_an_invalid_line_is_named(tmp_path, text):
    (tmp_path / ATTEMPTS_FILE).write_bytes(text.encode("latin-1"))
    with pytest.warns(RuntimeWarning, match=rf"{ATTEMPTS_FILE}: line 1 is invalid"):
        found = begin_attempt(tmp_path, [line(4, 100.0, 0.8)], 1, started=1.0, environment={})
    assert (found.wall_seconds, found.restarts) == (100.0, 0)


def test_a_partial_last_line_is_dropped(tmp_path):
    begin_attempt(tmp_path, [], 0, started=50.0, environment={})
    path = tmp_path / ATTEMPTS_FILE
    path.write_text(path.read_text() + '{"star')
    assert begin_attempt(tmp_path, [], 0, started=60.0, environment={}).restarts == 1
    assert begin_attempt(tmp_path, [], 0, started=70.0, environment={}).restarts == 2
    assert len(path.read_text().splitlines()) == 3


def test_goodput_is_the_share_of_steps_that_count():
    attempt = Attempt(
        started=time.time() - 50,
        wall_seconds=150.0,
        step_seconds=80.0,
        restarts=3,
        job="",
        job_restarts=0,
    )
    goodput = Goodput(attempt)
    fields = goodput.fields(20.0)
    assert fields["wall_seconds"] == pytest.approx(200, abs=1)
    assert fields["goodput"] == pytest.approx(0.5, abs=0.01)
    assert fields["restarts"] == 3
    assert goodput.fields(20.0)["goodput"] == pytest.approx(0.6, abs=0.01)


def test_a_run_that_was_killed_and_resumed(pictures, tmp_path, monkeypatch):
    folder, config = tmp_path / "r", coarse_config()
    stop_before(monkeypatch, 7)
    with pytest.raises(StopError):
        run(config, pictures, folder)
    before = read_metrics(folder / "metrics.jsonl")
    assert [entry["step"] for entry in before] == list(range(1, 8))
    after = run(config, pictures, folder, resume=True).metrics
    performance = [entry["performance"] for entry in after]
    assert [fields["restarts"] for fields in performance] == [0] * 4 + [1] * 6
    # Steps 5 to 7 ran twice, and both times are wall time.
    lost = before[-1]["performance"]["wall_seconds"]
    assert performance[4]["wall_seconds"] > lost > performance[3]["wall_seconds"]
    for fields in performance:
        assert 0 < fields["goodput"] < 1
    # What counts: each step once.
    counted = sum(
        fields["step_seconds"][part]
        for fields in performance
        for part in ("data", "compute", "reduce")
    )
    last = performance[-1]
    # Times are rounded to microseconds.
    assert last["goodput"] * last["wall_seconds"] == pytest.approx(counted, abs=1e-4)
