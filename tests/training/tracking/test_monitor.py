"""The field "performance" of a line of metrics."""

import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fiber.training.distributed.processes import Processes
from fiber.training.metrics_file import read_metrics
from fiber.training.plan.step_cost import StepFlops
from fiber.training.tracking import monitor as monitor_module
from fiber.training.tracking.callback import Callback
from fiber.training.tracking.goodput import begin_attempt
from fiber.training.tracking.monitor import RunMonitor
from fiber.training.tracking.step_time import PARTS, StepClock
from fiber.training.tracking.trackers import TRACKERS
from tests.losses.two_ranks import run_on_two_ranks
from tests.training.micro_runs import coarse_config, run
from tests.training.tracking.test_callback import context

#: 7 s a line, 6 s of them in steps.
SECONDS = dict(zip(PARTS, (1.0, 4.0, 1.0, 0.5, 0.5), strict=True))
#: Tasks that are left out, since they take long to count.
FEWER = {"tasks__image_text__share": 0, "tasks__reasoning__share": 0}


def processes(rank=0, world_size=1):
    return Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))


def test_a_line_of_four_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(StepClock, "close", lambda clock: dict(SECONDS))
    monitor = RunMonitor(processes())
    attempt = begin_attempt(tmp_path, [], 0, started=monitor.started, environment={})
    monitor.begin(coarse_config(), attempt)
    with monitor.running(context(tmp_path)):
        found = monitor.performance(7, 12.0)
    assert found["step_seconds"] == {part: SECONDS[part] / 4 for part in PARTS}
    assert found["images_per_second_per_rank"] == 12.0
    assert found["restarts"] == 0
    assert found["goodput"] * found["wall_seconds"] == pytest.approx(6.0, abs=1e-3)
    assert "model_flops_utilization" not in found


@pytest.mark.slow
def test_flop_utilization_of_a_known_gpu(tmp_path, monkeypatch):
    config = coarse_config(**FEWER, tasks__caption__share=0)
    monkeypatch.setattr(StepClock, "close", lambda clock: dict(SECONDS))
    monkeypatch.setattr(monitor_module, "peak_flops", lambda device, precision: 1e9)
    monitor = RunMonitor(processes())
    monitor.begin(config, None)
    batch = types.SimpleNamespace(token_ids=torch.zeros(4, 9))
    expected = StepFlops(config).of_batch("question", batch)
    with monitor.running(context(tmp_path)):
        for _ in range(3):
            monitor.count("question", batch)
        found = monitor.performance(4, 12.0)["model_flops_utilization"]
        assert found == pytest.approx(3 * expected / 6.0 / 1e9, abs=1e-6)
        # Each line has its own.
        monitor.count("question", batch)
        found = monitor.performance(5, 12.0)["model_flops_utilization"]
        assert found == pytest.approx(expected / 6.0 / 1e9, abs=1e-6)


def test_unknown_flops_are_absent_not_guessed(tmp_path, monkeypatch):
    config = coarse_config(
        tasks__caption__objective="cider", tasks__caption__cider_frequencies="corpus", **FEWER
    )
    monkeypatch.setattr(monitor_module, "peak_flops", lambda device, precision: 1e9)
    monitor = RunMonitor(processes())
    monitor.begin(config, None)
    batch = types.SimpleNamespace(token_ids=torch.zeros(4, 9))
    with monitor.running(context(tmp_path)):
        monitor.count("caption", batch)
        monitor.count("question", batch)
        assert "model_flops_utilization" not in monitor.performance(4, 12.0)
        monitor.count("question", batch)
        assert "model_flops_utilization" in monitor.performance(5, 12.0)


def ranks_differ():
    """Rank 1 waits for data twice as long."""
    rank = dist.get_rank()
    monitor = RunMonitor(processes(rank, 2))
    monitor.begin(coarse_config(), None)
    monitor.clock.close = lambda: {**SECONDS, "data": 1.0 + rank}  # type: ignore[method-assign]
    return monitor.performance(2, 12.0)


def test_times_are_means_over_the_ranks(tmp_path):
    for found in run_on_two_ranks(ranks_differ, tmp_path):
        assert found["step_seconds"]["data"] == 0.75
        assert found["images_per_second_per_rank"] == 6.0
        assert "goodput" not in found


def test_lines_of_a_run(pictures, tmp_path):
    config = coarse_config(train__log_every=3, train__steps=7, validation__task="vqa")
    metrics = run(config, pictures, tmp_path / "r").metrics
    assert [line["step"] for line in metrics] == [3, 4, 6, 7]
    assert metrics == read_metrics(tmp_path / "r" / "metrics.jsonl")
    before = 0
    for line in metrics:
        performance, steps = line["performance"], line["step"] - before
        assert list(performance["step_seconds"]) == list(PARTS)
        assert performance["step_seconds"]["data"] > 0
        assert performance["step_seconds"]["compute"] > 0
        assert (performance["step_seconds"]["validation"] > 0) == ("validation" in line)
        # A checkpoint is written after the line of its step.
        assert (performance["step_seconds"]["checkpoint"] > 0) == (before == 4)
        assert performance["images_per_second_per_rank"] == line["images_per_second"]
        assert 0 < performance["goodput"] < 1
        in_interval = steps * sum(performance["step_seconds"].values())
        assert in_interval < performance["wall_seconds"] + 1e-4
        before = line["step"]


def test_the_page_names_every_field_and_callback(pictures, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
    config = coarse_config(train__steps=1, validation__task="vqa")
    (line,) = run(config, pictures, tmp_path / "r").metrics
    fields = [*(line.keys() - {"performance"}), "performance.model_flops_utilization"]
    fields += [f"performance.{name}" for name in line["performance"]]
    assert [name for name in fields if f"`{name}`" not in page] == []
    assert [part for part in PARTS if f"`{part}`" not in page] == []
    methods = [name for name in vars(Callback) if name.startswith("on_")]
    assert len(methods) == 5
    assert [name for name in methods if f"| `{name}` |" not in page] == []
    assert [name for name in TRACKERS if f"| `{name}` |" not in page] == []
