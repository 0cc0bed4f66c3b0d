"""Progress: a bar on a terminal, a readable log without one, nothing on other ranks."""

import io
import threading
from types import SimpleNamespace

import pytest

from fiber import progress
from fiber.progress import ImageProgress, Progress, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def replace_stderr(monkeypatch, stream):
    # Not in `sys`: between the fixtures and the test pytest puts its own stream there.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch):
    return replace_stderr(monkeypatch, Terminal())


@pytest.fixture
def log(monkeypatch):
    return replace_stderr(monkeypatch, io.StringIO())


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def entry(loss):
    return {"losses": {"itc": loss, "itm": 0.25}, "images_per_second": 12.4}


def train(steps, start=0, quiet=False, seconds=1.0, clock=None):
    with Progress(steps=steps, start=start, quiet=quiet) as shown:
        for step in range(start, steps):
            if clock is not None:
                clock.now += seconds
            shown.advance()
            shown.show(entry(step))
            if step == 3:
                shown.say("saved")


class TestLog:
    def test_no_step(self, log):
        train(0)
        assert log.getvalue() == ""

    def test_lines(self, log, clock):
        train(12, clock=clock)
        assert log.getvalue().splitlines() == [
            "step 1/12  itc 0.000  itm 0.250  12 images/s  11 s left",
            "saved",
            "step 6/12  itc 5.000  itm 0.250  12 images/s  6 s left",
            "step 11/12  itc 10.000  itm 0.250  12 images/s  1 s left",
            "step 12/12  itc 11.000  itm 0.250  12 images/s  0 s left",
        ]

    def test_a_resumed_run_is_timed_from_where_it_resumed(self, log, clock):
        train(100, start=98, clock=clock, seconds=90)
        assert [line.split("  ")[0] for line in log.getvalue().splitlines()] == [
            "step 99/100",
            "step 100/100",
        ]
        assert "1 min 30 s left" in log.getvalue()

    def test_no_control_characters(self, log, clock):
        train(12, clock=clock)
        images = ImageProgress()
        for done in range(1, 100):
            clock.now += 1
            images(done, 99)
        assert not set("\r\x1b") & set(log.getvalue())
        assert [line for line in log.getvalue().splitlines() if " of " in line] == [
            f"{done} of 99 images" for done in range(5, 100, 5)
        ]


class TestTerminal:
    def test_a_bar(self, terminal):
        train(12)
        last = terminal.getvalue().split("\r")[-1]
        assert "12/12" in last and "itc 11.000" in last and last.endswith("\n")
        assert "saved\n" in terminal.getvalue()
        assert "left" not in terminal.getvalue()

    def test_a_resumed_run(self, terminal):
        train(100, start=98)
        assert " 98/100" in terminal.getvalue().split("\r")[1]
        assert "100/100" in terminal.getvalue()

    def test_the_bar_ends_with_an_error(self, terminal):
        with pytest.raises(KeyError), Progress(steps=9, start=0, quiet=False) as shown:
            shown.advance()
            raise KeyError
        assert terminal.getvalue().endswith("\n")

    def test_images_of_several_splits(self, terminal):
        images = ImageProgress()
        for total in (3, 3, 2):
            for done in range(1, total + 1):
                images(done, total)
        bars = [line for line in terminal.getvalue().split("\n") if line]
        assert len(bars) == 3
        for bar, total in zip(bars, (3, 3, 2), strict=True):
            assert f"{total}/{total}" in bar

    def test_no_thread_is_started(self, terminal):
        before = threading.active_count()
        with Progress(steps=9, start=0, quiet=False):
            assert threading.active_count() == before


def test_a_quiet_run_prints_nothing(terminal, clock):
    train(12, quiet=True, clock=clock, seconds=60)
    assert terminal.getvalue() == ""


def test_messages_go_to_standard_error(capsys):
    say("a message")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a message\n")
