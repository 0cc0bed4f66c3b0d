"""Validation on several ranks: metrics, best weights, and ranks that are slow, die or hang."""

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiber.training import validation
from fiber.training.distributed import heartbeat
from fiber.training.distributed.shard import supports_cpu
from fiber.training.metrics_file import read_metrics
from tests.kill_ranks import free_port
from tests.losses.two_ranks import run_on_ranks
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.distributed.strategy_runs import largest_difference, trained
from tests.training.test_trainer import numbers

#: A batch of any number of ranks here, and validations after steps 2, 4, 6 and 8.
CHANGES = {
    "data__batch_size": 6,
    "train__steps": 8,
    "train__checkpoint_every": 2,
    "train__ema_decay": 0.9,
    "optim__lr": 1e-3,
}


def validated(pictures, output, stage, strategy, samples_per_pass=0):
    """Train; return the score of each validation. Six records are validated in three batches."""
    torch.set_num_threads(1)
    task = "refcoco" if stage == "fine" else "vqa"
    real = validation.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "evaluate", partial(real, batch_size=2))
        changes = CHANGES | {"validation__task": task, "train__strategy": strategy}
        changes["train__samples_per_pass"] = samples_per_pass
        trained(Path(pictures), Path(output), stage, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_the_best_step_does_not_depend_on_ranks(pictures, tmp_path, stage):
    places = {"alone": ("replicate", 1), "two": ("replicate", 2), "three": ("replicate", 3)}
    if supports_cpu():
        places["sharded"] = ("shard", 2)
    found, weights = {}, {}
    for name, (strategy, count) in places.items():
        arguments = (str(pictures), str(tmp_path / name / "run"), stage, strategy)
        (tmp_path / name).mkdir()
        if count == 1:
            validated(*arguments)
        else:
            run_on_ranks(count, validated, tmp_path / name, *arguments)
        folder = tmp_path / name / "run"
        checkpoint = json.loads((folder / "checkpoints/step-00000006/data.json").read_text())
        found[name] = (
            [line.get("validation") for line in read_metrics(folder / "metrics.jsonl")],
            {field: checkpoint[field] for field in ("best_step", "best_score", "scores")},
        )
        weights[name] = load_file(folder / "model.safetensors")
    validated(str(pictures), str(tmp_path / "passes"), stage, "replicate", samples_per_pass=1)
    in_passes = load_file(tmp_path / "passes" / "model.safetensors")
    error = largest_difference(in_passes, weights["alone"])
    assert 0 < error < 1e-3 * 1e-3 * CHANGES["train__steps"]
    for name in places:
        assert largest_difference(weights[name], weights["alone"]) <= 2 * error, name
    assert sum(line is not None for line in found["alone"][0]) == 4
    for name in places:
        assert found[name] == found["alone"], name


def fail_in_validation(how, rank=1):
    """Let a rank do something before its part of the second validation."""
    heartbeat.INTERVAL_SECONDS = 0.1
    real, calls = validation.evaluate, []

    def evaluate(*arguments, processes, **options):
        calls.append(processes.rank)
        if processes.rank == rank and len(calls) == 2:
            if how == "works":
                _work_for(8)
            elif how == "hangs":
                time.sleep(600)
            else:
                os.kill(os.getpid(), signal.Signals[how])
        return real(*arguments, processes=processes, batch_size=2, **options)

    validation.evaluate = evaluate


def _work_for(seconds):
    """Sleep, at one line after another."""
    for _ in range(seconds):
        time.sleep(0.5)
        time.sleep(0.5)


def start_ranks(pictures, output, prepare):
    """Start two ranks of a run with a collective timeout of five seconds."""
    changes = {"data__batch_size": 6, "train__steps": 6, "train__checkpoint_every": 2}
    changes |= {"validation__task": "vqa", "train__timeout_seconds": 5}
    settings = {"stage": "coarse", "data": str(pictures), "output": str(output), "resume": False}
    port, ranks = str(free_port()), []
    for rank in range(2):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            start_python(
                [micro_runs.__file__, json.dumps(settings | {"changes": changes})],
                environment=environment,
                prepare=prepare,
                errors=output.with_name(f"{output.name}-{rank}.log"),
            )
        )
    return ranks


@pytest.mark.slow
def test_a_slow_rank_is_waited_for_longer_than_a_collective(pictures, tmp_path):
    for how in ("works", "SIGCONT"):
        ranks = start_ranks(pictures, tmp_path / how, partial(fail_in_validation, how))
        for process in ranks:
            process.join()
        errors = [(tmp_path / f"{how}-{rank}.log").read_text() for rank in range(2)]
        assert [process.exitcode for process in ranks] == [0, 0], errors
    assert numbers(tmp_path / "works") == numbers(tmp_path / "SIGCONT")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "lost", "expected"),
    [
        ("SIGKILL", 1, r"rank 1 \(process {} on .*died or hangs"),
        ("SIGSTOP", 1, r"rank 1 \(process {} on .*died or hangs"),
        (
            "hangs",
            1,
            r"rank 1 \(process {} on .*hangs in test_validation_on_ranks\.py:\d+ \(evaluate\)",
        ),
        # Without torchrun, rank 0 hosts the store of the life signs.
        ("SIGKILL", 0, r"the process that hosts the job's store at .* is gone"),
    ],
)
def test_a_rank_that_ends_or_hangs_in_its_part_is_named(pictures, tmp_path, how, lost, expected):
    ranks = start_ranks(pictures, tmp_path / "run", partial(fail_in_validation, how, lost))
    try:
        ranks[1 - lost].join(60)
        assert ranks[1 - lost].exitcode == 1
    finally:
        for process in ranks:
            process.kill()
            process.join()
    text = (tmp_path / f"run-{1 - lost}.log").read_text()
    expected = expected.format(ranks[lost].pid) + "; --resume continues after step"
    assert re.search(expected, text), text
