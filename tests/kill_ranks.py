"""Kill, stop and signal ranks of small runs; each must end like the run that nothing happened to.

    python -m tests.kill_ranks --kills 20 --saves 20 --terms 4 --stops 2 --resizes 1 --seed 0

Runs start by `fiber train --processes` and by torchrun with each of its rendezvous. SIGKILL arrives
at a random rank, at a random step, or at a random moment of the writing of a checkpoint. Prints
counts; the exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fiber.atomic_io import PART
from fiber.training.checkpoint.folder import checkpoints_in
from fiber.training.distributed.preemption import EXIT_CODE
from fiber.training.metrics_file import read_metrics
from tests.training.test_trainer import numbers

#: Steps of a run, and between its checkpoints.
STEPS, EVERY = 24, 5
#: Options of every run; dropout, so that every random number must be the same.
CHANGES = {
    "train.steps": STEPS,
    "train.checkpoint_every": EVERY,
    "train.log_every": 1,
    "data.batch_size": 8,
    "validation.task": "none",
    "model.roberta.dropout": 0.1,
}
#: How a job of two ranks starts; PORT becomes a free one.
LAUNCHERS: dict[str, list[str]] = {
    "fiber": ["-m", "fiber.cli", "{train}", "--processes", "2"],
    "static": ["-m", "torch.distributed.run", "--master-port", "PORT"],
    "standalone": ["-m", "torch.distributed.run", "--standalone"],
    "c10d": [
        "-m",
        "torch.distributed.run",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:PORT",
    ],
}
#: Further options of runs on other numbers of ranks. Dropout differs with them, and sums have
#: another order: a low temperature, and Adam on gradients that are 0 but for rounding, would
#: amplify that.
WITHOUT_DROPOUT = [
    part
    for setting in (
        *("model.roberta.dropout=0", "model.image_text.temperature=0.5"),
        *("optim.eps=1e-4", "optim.lr=1e-4"),
    )
    for part in ("--set", setting)
]
#: Longest time in seconds after a checkpoint has begun that a rank is killed. Most are written in
#: half of it.
LONGEST_SAVE = 0.1


@dataclass
class Job:
    """A command that trains, and its processes."""

    process: subprocess.Popen
    output: Path
    log: Path

    @classmethod
    def start(
        cls, launcher: str, data: Path, output: Path, *options: str, restarts: int = 3
    ) -> Job:
        """Start a job; `options` are further ones of `fiber train`."""
        train = train_arguments(data, output, *options)
        command = [part.replace("PORT", str(free_port())) for part in LAUNCHERS[launcher]]
        if launcher == "fiber":
            at = command.index("{train}")
            command[at : at + 1] = train
            command += ["--restarts", str(restarts)]
        else:
            command += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
            command += ["-m", "fiber.cli", *train]
        return cls.run(command, output)

    @classmethod
    def run(cls, command: Sequence[str], output: Path) -> Job:
        """Start a command that trains in `output`."""
        log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        return cls(process, output, log)

    def ranks(self) -> dict[int, int]:
        """Return the process id of every rank."""
        found = {}
        for pid in children(self.process.pid):
            environment = _environment(pid)
            if "RANK" in environment:
                found[int(environment["RANK"])] = pid
        return found

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is in the metrics."""
        while last_step(self.output) < step:
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def text(self) -> str:
        """Return what the job has printed."""
        return self.log.read_text(errors="replace")


def train_arguments(data: Path, output: Path, *options: str) -> list[str]:
    """Return the arguments of `fiber`; the last of two equal options counts."""
    settings = [("--set", f"{name}={value}") for name, value in CHANGES.items()]
    chosen = [part for setting in settings for part in setting]
    return [
        "train",
        "scenes_coarse",
        "--data",
        str(data),
        "--output",
        str(output),
        *chosen,
        *options,
    ]


def last_step(folder: Path) -> int:
    """Return the last step in a run's metrics."""
    entries = read_metrics(folder / "metrics.jsonl")
    return entries[-1]["step"] if entries else 0


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _environment(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in content.split("\0") if entry)


def wait_for_port(port: int) -> None:
    """Wait until a process listens: the node that starts first must host the rendezvous.

    On one machine, each node may be the one that its address names.
    """
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def make_data(folder: Path) -> None:
    """Make the data that all jobs train on."""
    command = ["data", "scenes", "--images", "60", "--output", str(folder)]
    subprocess.run([sys.executable, "-m", "fiber.cli", *command], check=True, capture_output=True)


def whole_run(data: Path, output: Path, *options: str) -> Path:
    """Train the run that nothing happens to, on two ranks."""
    job = Job.start("fiber", data, output, *options)
    assert job.process.wait() == 0, job.text()
    return job.output


def kill(launcher: str, data: Path, whole: Path, output: Path, chance: random.Random) -> list[str]:
    """Kill a random rank at a random step; return what went wrong."""
    job = Job.start(launcher, data, output)
    step, rank = chance.randrange(1, STEPS - 2), chance.randrange(2)
    job.wait_for_step(step)
    os.kill(job.ranks()[rank], signal.SIGKILL)
    return _ends_like(whole, job, f"{launcher}: rank {rank} killed at step {step}")


def kill_save(
    launcher: str, data: Path, whole: Path, output: Path, chance: random.Random
) -> tuple[list[str], bool]:
    """Kill a random rank, or both, at a random moment of the writing of a random checkpoint.

    The run restarts from its newest complete checkpoint, so one that is read wrongly changes the
    metrics that follow. Returns what went wrong, and whether the checkpoint was left incomplete.
    """
    job = Job.start(launcher, data, output, "--set", "train.checkpoint_every=1")
    # The first one, too.
    step, killed = chance.randrange(STEPS - 2), chance.choice([[0], [1], [0, 1]])
    if step:
        job.wait_for_step(step)
    while not any((output / "checkpoints").glob(f"{PART}*")):
        assert job.process.poll() is None, job.text()
    ranks, before = job.ranks(), len(checkpoints_in(output / "checkpoints"))
    time.sleep(chance.uniform(0, LONGEST_SAVE))
    for rank in killed:
        os.kill(ranks[rank], signal.SIGKILL)
    is_cut = any((output / "checkpoints").glob(f"{PART}*"))
    where = f"{launcher}: ranks {killed} killed while saving after step {step}"
    print(f"{where}, {before} checkpoints before, {'cut' if is_cut else 'complete'}", flush=True)
    return _ends_like(whole, job, where), is_cut


def _ends_like(whole: Path, job: Job, where: str) -> list[str]:
    """Wait for the end of a job of which a rank has been killed now; return what is wrong."""
    began = time.monotonic()
    code = job.process.wait()
    print(f"{where}: {time.monotonic() - began:.0f} s until the end", flush=True)
    wrong = []
    if code != 0:
        wrong.append(f"{where}: exit code {code}\n{job.text()}")
    elif numbers(whole) != numbers(job.output):
        wrong.append(f"{where}: other metrics")
    return wrong


def terminate(
    launcher: str, data: Path, whole: Path, output: Path, chance: random.Random
) -> list[str]:
    """Send SIGTERM to the launcher at a random step, then resume."""
    job = Job.start(launcher, data, output)
    step = chance.randrange(1, STEPS - 2)
    job.wait_for_step(step)
    job.process.send_signal(signal.SIGTERM)
    code = job.process.wait()
    saved = max((each.step for each in checkpoints_in(output / "checkpoints")), default=0)
    where = f"{launcher}: SIGTERM at step {step}"
    wrong = []
    if code != EXIT_CODE:
        wrong.append(f"{where}: exit code {code}\n{job.text()}")
    if saved != last_step(output) or saved < step:
        wrong.append(f"{where}: step {saved} of {last_step(output)} was saved")
    again = Job.start(launcher, data, output, "--resume")
    if again.process.wait() != 0 or numbers(whole) != numbers(output):
        wrong.append(f"{where}: the resumed run differs\n{again.text()}")
    return wrong


def stop(data: Path, output: Path, chance: random.Random, *, timeout: int = 10) -> list[str]:
    """Stop a random rank by SIGSTOP; the job must end and name it."""
    limit = ("--set", f"train.timeout_seconds={timeout}")
    job = Job.start("fiber", data, output, *limit, restarts=0)
    rank = chance.randrange(2)
    job.wait_for_step(EVERY + 1)
    pid = job.ranks()[rank]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    code = job.process.wait()
    where = f"rank {rank} stopped"
    print(f"{where}: {time.monotonic() - began:.0f} s until the end", flush=True)
    wrong = []
    if code != 1:
        wrong.append(f"{where}: exit code {code}\n{job.text()}")
    expected = rf"rank {rank} \(process {pid} on .*died or hangs; --resume continues after step \d+"
    if not re.search(expected, job.text()):
        wrong.append(f"{where}: not named in\n{job.text()}")
    return wrong


def is_pending(number: signal.Signals, pid: int) -> bool:
    """Return whether a signal was sent to a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    return bool(int(pending, 16) >> (number - 1) & 1)


def resize(data: Path, whole: Path, output: Path) -> list[str]:
    """Train on two nodes, then on one, then on two; compare with a whole run without dropout."""
    port, job_id = free_port(), f"resize-{os.getpid()}"
    endpoint = f"localhost:{port}"
    nodes = ["--processes", "1", "--nodes", "1:2", "--rendezvous", endpoint, "--job", job_id]
    train = train_arguments(data, output, *WITHOUT_DROPOUT)
    command = ["-m", "fiber.cli", *train, *nodes]
    # The first node hosts the rendezvous.
    first = Job.run(command, output)
    wait_for_port(port)
    second = Job.run(command, output)
    first.wait_for_step(3)
    worlds = [len(first.ranks()) + len(second.ranks())]
    for pid in (*second.ranks().values(), second.process.pid):
        os.kill(pid, signal.SIGKILL)
    second.process.wait()
    first.wait_for_step(EVERY + 3)
    # Stopped until its node asks it to make room for the third, before which it could finish.
    (rank,) = first.ranks().values()
    os.kill(rank, signal.SIGSTOP)
    third = Job.run(command, output)
    while not is_pending(signal.SIGTERM, rank):
        assert third.process.poll() is None, third.text()
        time.sleep(0.05)
    os.kill(rank, signal.SIGCONT)
    codes = [first.process.wait(), third.process.wait()]
    # Rank 0, which prints it, may be on any node.
    text = first.text() + second.text() + third.text()
    sizes = re.findall(r"parameters on (\d) x cpu", text)
    wrong = []
    if codes != [0, 0] or worlds != [2] or sorted(sizes) != ["1", "2", "2"]:
        wrong.append(f"2 -> 1 -> 2: exit codes {codes}, ranks {worlds}, then {sizes}\n{text}")
    for ours, theirs in zip(numbers(whole), numbers(output), strict=True):
        for name, loss in ours["losses"].items():
            if abs(theirs["losses"][name] - loss) > 1e-6 * abs(loss):
                wrong.append(
                    f"2 -> 1 -> 2: {name} of step {ours['step']}: {theirs['losses'][name]}"
                )
    return wrong


def run_all(
    work: Path, *, kills: int, saves: int, terms: int, stops: int, resizes: int, seed: int = 0
) -> list[str]:
    """Run all of it in a folder; return what went wrong."""
    chance, failures = random.Random(seed), []
    make_data(data := work / "data")
    whole = whole_run(data, work / "whole")
    names = list(LAUNCHERS)

    def report(what: str, output: Path, wrong: list[str]) -> None:
        print(f"{what}: {'failed' if wrong else 'ok'}", *wrong, sep="\n", flush=True)
        failures.extend(wrong)
        shutil.rmtree(output, ignore_errors=True)

    for number in range(kills):
        launcher = names[number % len(names)]
        output = work / f"kill-{number}"
        report(f"kill under {launcher}", output, kill(launcher, data, whole, output, chance))
    cut = 0
    for number in range(saves):
        launcher = names[number % len(names)]
        output = work / f"save-{number}"
        wrong, is_cut = kill_save(launcher, data, whole, output, chance)
        cut += is_cut
        report(f"save under {launcher}", output, wrong)
    if saves and 2 * cut < saves:
        failures.append(f"only {cut} of {saves} checkpoints were cut")
    for number in range(terms):
        output = work / f"term-{number}"
        report("SIGTERM", output, terminate("fiber", data, whole, output, chance))
    for number in range(stops):
        output = work / f"stop-{number}"
        report("SIGSTOP", output, stop(data, output, chance))
    if resizes:
        whole = whole_run(data, work / "plain", *WITHOUT_DROPOUT)
    for number in range(resizes):
        output = work / f"resize-{number}"
        report("2 -> 1 -> 2", output, resize(data, whole, output))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    defaults = {"kills": 20, "saves": 20, "terms": 4, "stops": 2, "resizes": 1, "seed": 0}
    for name, number in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    with tempfile.TemporaryDirectory() as work:
        failures = run_all(Path(work), **vars(parser.parse_args()))
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
