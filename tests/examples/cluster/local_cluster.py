"""A cluster on this machine: commands on the path, small runs, nodes that are all localhost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fiber.training.metrics_file import read_metrics
from tests.kill_ranks import Job, train_arguments

EXAMPLES = Path(__file__).parents[3] / "examples" / "cluster"
#: Steps of a run that nothing happens to.
FEW = 3
#: Longest time in seconds until a job must have ended.
LONGEST_SECONDS = 240

# `fiber` and `torchrun` of this interpreter; SETTINGS makes the run of a command small.
COMMANDS = {
    "fiber": '#!/bin/sh\nexec "{python}" -m fiber.cli "$@" $SETTINGS\n',
    "torchrun": '#!/bin/sh\nexec "{python}" -m torch.distributed.run "$@" $SETTINGS\n',
}


class LocalCluster:
    """Starts commands in an environment of its own, and ends what is left of them.

    Args:
        folder: for commands and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self._jobs: list[Job] = []
        for name, text in COMMANDS.items():
            self.add_command(name, text.format(python=sys.executable))

    def add_command(self, name: str, text: str) -> None:
        """Put a script on the path."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(
        self, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> Job:
        """Start a command that trains in `output`."""
        log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
        own = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | own | dict(environment or {}),
                start_new_session=True,
            )
        self._jobs.append(Job(process, output, log))
        return self._jobs[-1]

    def close(self) -> None:
        """End what still runs; `fiber train` ends its ranks on SIGTERM."""
        for job in self._jobs:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGTERM)
        for job in self._jobs:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)


def small_run(data: Path, output: Path, *, steps: int = FEW) -> list[str]:
    """Return what follows `fiber train` for a small run on the CPU."""
    return train_arguments(data, output, "--set", f"train.steps={steps}")[1:]


def free_port_of(ports: range) -> int:
    """Return one of these ports that nobody uses now."""
    for port in random.sample(ports, 100):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found in {ports}")


def end_of(*jobs: Job, code: int = 0) -> str:
    """Wait for jobs, check their exit codes, and return what they have printed."""
    try:
        codes = [job.process.wait(LONGEST_SECONDS) for job in jobs]
    except subprocess.TimeoutExpired:
        codes = [job.process.poll() for job in jobs]
    text = "\n".join(job.text() for job in jobs)
    assert codes == [code] * len(jobs), text
    return text


def check_finished(output: Path, steps: int, printed: str) -> None:
    """Check that a run has finished on two ranks, and that each step was trained once."""
    assert [entry["step"] for entry in read_metrics(output / "metrics.jsonl")] == [
        *range(1, steps + 1)
    ]
    assert (output / "model.safetensors").exists()
    assert "parameters on 2 x cpu" in printed, printed
