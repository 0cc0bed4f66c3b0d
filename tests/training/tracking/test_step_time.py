"""The parts of a step's wall time, by a clock that the test sets."""

import pytest
import torch

from fiber.training.tracking import step_time
from fiber.training.tracking.step_time import PARTS, StepClock


class Time:
    """Stands for the module `time`."""

    now = 100.0

    def perf_counter(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(step_time, "time", time := Time())
    return StepClock(torch.device("cpu")), time


def test_nothing_happened(clock):
    assert clock[0].close() == dict.fromkeys(PARTS, 0.0)


def test_parts_sum_to_the_wall_time(clock):
    clock, time = clock
    for part in ("reduce", "validation", "checkpoint"):
        with clock.measure(part):
            time.passes({"reduce": 1, "validation": 2, "checkpoint": 4}[part])
        time.passes(8)
    seconds = clock.close()
    assert seconds == {"data": 0, "compute": 24, "reduce": 1, "validation": 2, "checkpoint": 4}
    assert sum(seconds.values()) == 31
    time.passes(5)
    assert clock.close() == dict.fromkeys(PARTS, 0.0) | {"compute": 5}


def test_waiting_for_batches_is_data(clock):
    clock, time = clock

    def batches():
        for number in range(3):
            time.passes(2)
            yield number

    found = []
    for number in clock.iterate("data", batches()):
        time.passes(0.5)
        found.append(number)
    assert found == [0, 1, 2]
    assert clock.close() == dict.fromkeys(PARTS, 0.0) | {"data": 6, "compute": 1.5}


def test_an_interval_starts_anew(clock):
    clock, time = clock
    with clock.measure("checkpoint"):
        time.passes(3)
    clock.reset()
    time.passes(1)
    assert clock.close() == dict.fromkeys(PARTS, 0.0) | {"compute": 1}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_before_a_reduction_are_not_part_of_it():
    clock = StepClock(torch.device("cuda"))
    big = torch.rand(8192, 8192, device="cuda")
    (big @ big).sum().item()  # The library is loaded.
    clock.reset()
    for _ in range(20):
        big @ big
    with clock.measure("reduce"):
        big[:8, :8] @ big[:8, :8]
    seconds = clock.close()
    assert 0 < seconds["reduce"] < 0.2 * seconds["compute"]
