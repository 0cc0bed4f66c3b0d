"""Ranks that failed, died or hang are named."""

import itertools
import re
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from fiber.training.distributed import heartbeat as module
from fiber.training.distributed.heartbeat import Heartbeat, LostRankError, is_collective_error


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.05)


@pytest.fixture
def store():
    return dist.HashStore()


def hang(beat):
    """End the life signs without leaving."""
    beat._stopped.set()
    beat._thread.join()


def test_a_silent_rank_is_named_and_living_ones_are_not(store):
    with Heartbeat(store, 0, 3) as first, Heartbeat(store, 1, 3), Heartbeat(store, 2, 3) as third:
        hang(third)
        found = first.explain(RuntimeError("gloo: closed"))
    assert [peer.rank for peer in found.peers] == [2]
    assert "rank 2 (process" in str(found)
    assert "died or hangs" in str(found)


def test_a_reported_error_is_the_reason(store):
    with Heartbeat(store, 0, 2) as first, Heartbeat(store, 1, 2) as second:
        second.report(ValueError("no such   file"))
        found = first.explain(RuntimeError("gloo: closed"))
    assert "rank 1 (process" in str(found)
    assert "failed: ValueError: no such file" in str(found)


@pytest.mark.parametrize(
    ("error", "expected"), [(FileNotFoundError("x"), True), (MemoryError("x"), False)]
)
def test_bad_input_of_another_rank_is_told(store, error, expected):
    with Heartbeat(store, 0, 2) as first, Heartbeat(store, 1, 2) as second:
        second.report(error)
        assert first.explain(RuntimeError("gloo: closed")).is_bad_input is expected


def test_a_living_rank_that_takes_part_in_nothing_is_named_with_its_place(store, monkeypatch):
    beats = [Heartbeat(store, rank, 3) for rank in range(3)]
    places = {beats[1]._thread: ("distributed_c10d.py:9 (all_reduce)", True)}
    places[beats[2]._thread] = ("callback.py:7 (step_ended)", False)
    main = ("heartbeat.py:1 (explain)", True)
    monkeypatch.setattr(module, "_location", lambda _: places.get(threading.current_thread(), main))
    with beats[0] as first, beats[1], beats[2]:
        time.sleep(3 * module.INTERVAL_SECONDS)
        found = first.explain(RuntimeError("gloo: timed out"))
    assert [peer.rank for peer in found.peers] == [2]
    assert "hangs in callback.py:7 (step_ended)" in str(found)


@pytest.mark.parametrize("in_thread", [False, True])
def test_the_place_is_that_of_the_thread_that_trains(store, in_thread):
    def train():
        with Heartbeat(store, 0, 1) as beat:
            time.sleep(3 * module.INTERVAL_SECONDS)
            found.extend(beat._peers([0], only_hung=True))

    found = []
    thread = threading.Thread(target=train)
    if in_thread:
        thread.start()
        thread.join()
    else:
        train()
    assert re.fullmatch(r"test_heartbeat\.py:\d+ \(train\)", found[0].location)


def test_all_ranks_give_the_first_answer(store):
    with Heartbeat(store, 0, 3) as first, Heartbeat(store, 1, 3) as second:
        with Heartbeat(store, 2, 3) as third:
            hang(third)
            assert [peer.rank for peer in first.explain(RuntimeError()).peers] == [2]
        hang(first)
        # Rank 0 has ended meanwhile, but is not the cause.
        assert [peer.rank for peer in second.explain(RuntimeError()).peers] == [2]


def test_a_collective_that_fails_among_living_ranks_keeps_its_error(store):
    with Heartbeat(store, 0, 2) as first, Heartbeat(store, 1, 2):
        found = first.explain(RuntimeError("gloo: sizes differ"))
    assert found.peers == ()
    assert "every rank lives" in str(found)
    assert "sizes differ" in str(found)


def test_long_work_of_a_living_rank_is_waited_for(store):
    with Heartbeat(store, 0, 2) as first, Heartbeat(store, 1, 2) as second:
        done = []

        def work():
            time.sleep(20 * module.INTERVAL_SECONDS)
            done.append(True)
            first.barrier()

        thread = threading.Thread(target=work)
        thread.start()
        second.barrier()
        assert done
        thread.join()


@pytest.mark.parametrize("moves", [False, True])
def test_a_rank_that_stays_at_a_line_is_not_waited_for(store, monkeypatch, moves):
    """In the barrier, ranks stay at a line themselves; who works is at another one each time."""
    lines = itertools.count()

    def location(_):
        if threading.current_thread() is not beats[1]._thread:
            return "heartbeat.py:1 (barrier)", True
        return f"metric.py:{next(lines) if moves else 7} (compute)", False

    def wait(beat):
        try:
            beat.barrier()
        except LostRankError as error:
            errors.append(str(error))

    errors = []
    beats = [Heartbeat(store, rank, 3, timeout_seconds=0.5) for rank in range(3)]
    monkeypatch.setattr(module, "_location", location)
    with beats[0] as first, beats[1] as second, beats[2] as third:
        waiting = threading.Thread(target=wait, args=[first])
        waiting.start()
        if moves:
            threading.Timer(1.5, second.barrier).start()
        wait(third)
        waiting.join()
    assert len(errors) == (0 if moves else 2)
    for error in errors:
        assert re.fullmatch(r"rank 1 .* hangs in metric\.py:7 \(compute\)", error)


def test_barriers_are_passed_in_order(store):
    """A rank that is slow to look may find the others at the next barrier already."""
    order = []

    def work(beat, rank):
        for number in range(5):
            # Each is the last one at times.
            time.sleep(0.01 * ((rank + number) % 3))
            order.append((number, "came"))
            beat.barrier()
            order.append((number, "left"))

    with Heartbeat(store, 0, 3) as a, Heartbeat(store, 1, 3) as b, Heartbeat(store, 2, 3) as c:
        threads = [
            threading.Thread(target=work, args=(beat, rank)) for rank, beat in enumerate((a, b, c))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(5):
        came = [at for at, entry in enumerate(order) if entry == (number, "came")]
        left = [at for at, entry in enumerate(order) if entry == (number, "left")]
        assert len(came) == len(left) == 3
        assert max(came) < min(left)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("end", ["dies", "fails"])
def test_a_rank_that_ends_during_its_work_is_not_waited_for(store, end, lost):
    with Heartbeat(store, 0, 3) as a, Heartbeat(store, 1, 3) as b, Heartbeat(store, 2, 3) as c:
        beats = [a, b, c]
        gone = beats.pop(lost)
        if end == "dies":
            hang(gone)
        else:
            gone.report(MemoryError("out of memory"))
        errors = []

        def wait(beat):
            with pytest.raises(LostRankError) as caught:
                beat.barrier()
            errors.append(str(caught.value))

        threads = [threading.Thread(target=wait, args=(beat,)) for beat in beats]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 2
    for error in errors:
        assert f"rank {lost} (process" in error
        assert ("out of memory" in error) == (end == "fails")


def test_a_hung_process_is_killed_only_when_this_one_ends():
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    source = (
        "import socket, sys, time\n"
        "from fiber.training.distributed.heartbeat import LostRank, kill_hung_at_exit\n"
        f"kill_hung_at_exit([LostRank(1, socket.gethostname(), {hung.pid})])\n"
        "print('its error', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "its error\n"
        assert hung.poll() is None
        process.communicate()
    assert hung.wait(timeout=600) == -9


def test_only_some_errors_come_from_collectives():
    assert is_collective_error(dist.DistBackendError("NCCL error"))
    assert is_collective_error(RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] closed by peer"))
    assert not is_collective_error(RuntimeError("shapes differ"))
    assert not is_collective_error(ValueError("gloo"))
