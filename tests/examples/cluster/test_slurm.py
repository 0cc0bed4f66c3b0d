"""slurm.sbatch runs with an srun and an scontrol that know this machine only."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from fiber.training.checkpoint.folder import checkpoints_in
from tests.examples.cluster.local_cluster import (
    EXAMPLES,
    check_finished,
    end_of,
    free_port_of,
    small_run,
)
from tests.kill_ranks import children, last_step

SCRIPT = EXAMPLES / "slurm.sbatch"
OPTIONS = dict(
    line.removeprefix("#SBATCH --").partition("=")[::2]
    for line in SCRIPT.read_text().splitlines()
    if line.startswith("#SBATCH")
)

# What srun does, as its manual has it: one task per node, the signals that it gets are those of the
# tasks, the highest exit code of a task is its own.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys

command = sys.argv[1:]
while command[0].startswith("--"):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"srun {{command.pop(0)}}\\n")
tasks = []
# Before a task can say that it has started.
for kind in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(kind, lambda number, frame: [task.send_signal(number) for task in tasks])
for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
    own = os.environ | {{"SLURM_NODEID": str(node)}}
    tasks.append(subprocess.Popen(command, env=own))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "$CALLS"
if [ "$1 $2" = "show hostnames" ]; then printf 'localhost\\nlocalhost\\n'; fi
"""
# A node that needs a moment to save its step; node 0 none.
STUB = """#!/bin/bash
stop() { sleep "$((2 * SLURM_NODEID))"; echo "node $SLURM_NODEID saved"; exit 75; }
trap stop USR1 TERM
echo "node $SLURM_NODEID started: $*"
if [[ $FAIL ]]; then exit "$FAIL"; fi
while true; do sleep 0.1; done
"""


@pytest.fixture
def slurm(cluster, tmp_path):
    """Return a function that submits the script, and the file that lists calls."""
    cluster.add_command("srun", SRUN)
    cluster.add_command("scontrol", SCONTROL)
    calls = tmp_path / "calls"
    # The script chooses the port by the id of the job.
    port = free_port_of(range(20000, 30000))
    environment = {
        "CALLS": str(calls),
        "SLURM_JOB_ID": str(70000 + port % 10000),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": OPTIONS["cpus-per-task"],
        "SLURM_TMPDIR": str(tmp_path / "local"),
    }

    def submit(arguments, output=tmp_path / "run", **more):
        calls.write_text("")
        # Slurm runs a copy.
        return cluster.start(["bash", str(SCRIPT), *arguments], output, environment | more)

    return submit, calls, environment["SLURM_JOB_ID"]


def requeued(calls: Path) -> list[str]:
    return re.findall(r"scontrol requeue (\d+)", calls.read_text())


def test_what_is_asked_of_slurm():
    # One task on each node, whose signal goes to the script alone.
    assert OPTIONS["ntasks-per-node"] == "1"
    assert re.fullmatch(r"B:USR1@\d+", OPTIONS["signal"])
    assert "requeue" in OPTIONS
    # The log of an earlier start is kept.
    assert OPTIONS["open-mode"] == "append"
    assert "%j" in OPTIONS["output"]
    assert OPTIONS.keys() >= {"job-name", "nodes", "gpus-per-node", "cpus-per-task", "time"}


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_queued_again_and_goes_on(slurm, data, tmp_path):
    submit, calls, job_id = slurm
    output, steps = tmp_path / "run", 12
    job = submit(small_run(data, output, steps=steps))
    job.wait_for_step(3)
    # To the script alone.
    job.process.send_signal(signal.SIGUSR1)
    end_of(job, code=75)
    saved = max(each.step for each in checkpoints_in(output / "checkpoints"))
    assert saved == last_step(output) < steps
    assert requeued(calls) == [job_id]
    assert f"srun --cpus-per-task={OPTIONS['cpus-per-task']}\n" in calls.read_text()

    printed = end_of(submit(small_run(data, output, steps=steps)))
    assert f"after step {saved}" in printed
    check_finished(output, steps, printed)
    assert requeued(calls) == []


@pytest.mark.parametrize(
    ("kind", "fail", "code", "again"),
    [("USR1", "", 75, True), ("TERM", "", 75, False), (None, "2", 2, False)],
    ids=["time is up", "scancel", "bad input"],
)
def test_what_is_queued_again(slurm, cluster, kind, fail, code, again):
    submit, calls, job_id = slurm
    cluster.add_command("fiber", STUB)
    job = submit(["pretrain", "--data", "a folder"], FAIL=fail)
    if kind is not None:
        while job.text().count("started") < 2:
            time.sleep(0.02)
        if kind == "USR1":
            job.process.send_signal(signal.SIGUSR1)
        else:
            # scancel sends it to the tasks.
            (srun,) = children(job.process.pid)
            os.kill(srun, signal.SIGTERM)
    printed = end_of(job, code=code)
    for node in (0, 1):
        assert f"node {node} started: train pretrain --data a folder --resume" in printed
        # The first to end does not end the other.
        assert (f"node {node} saved" in printed) == (kind is not None)
    assert f"--nodes 2 --rendezvous localhost:2{job_id[1:]} --job {job_id}" in printed
    assert "srun --kill-on-bad-exit=0\n" in calls.read_text()
    assert requeued(calls) == ([job_id] if again else [])


def test_the_cache_is_on_the_disk_of_the_node(slurm, cluster, tmp_path):
    submit, _, _ = slurm
    cluster.add_command("fiber", '#!/bin/sh\necho "cache: $FIBER_CACHE"\n')
    assert f"cache: {tmp_path}/local/fiber-packs\n" in end_of(submit([]))
    assert "cache: /fast\n" in end_of(submit([], FIBER_CACHE="/fast"))
    assert "cache: /tmp/fiber-packs\n" in end_of(submit([], SLURM_TMPDIR=""))
