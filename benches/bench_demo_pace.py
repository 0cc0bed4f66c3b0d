"""Pace of the demo's stages, alone and beside a process that keeps one core busy.

Command: python benches/bench_demo_pace.py
Peers: one process with a thread for each core, which is what `fiber train` starts by itself; and
the same with OpenMP's own waiting ("openmp"). Threads that wait spin before they sleep, by
GOMP_SPINCOUNT, which the commands set. "fiber" are the two processes that the demo starts. Every
value is the wall time of the last steps of a `fiber train` on generated scenes, divided by their
images. The ratios are to "fiber, alone".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from rows import interleave, refuse_debug_build, report

from fiber.demo.plan import STAGES, find_plan
from fiber.synthetic.scenes import generate
from fiber.training.metrics_file import read_metrics

#: Steps before the timed ones, and the least number of those, which are whole rotations of tasks.
WARMUP, TIMED = 8, 10
#: GNU OpenMP's default number of spins.
OPENMP_SPINS = "300000"
BUSY = "while True: pass"


def pace(stage: str, side: str, is_beside: bool, data: Path) -> float:
    """Train a stage by a command of its own, and return its milliseconds per image."""
    plan = find_plan("scenes", "default")
    turn = len(plan.config(stage, 0).tasks.rotation())
    lengths = {
        "train.steps": WARMUP + -(-TIMED // turn) * turn,
        "train.log_every": WARMUP,
        "train.checkpoint_every": 0,
    }
    # The command sets its own number of spins where the environment has none.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    if side == "openmp":
        environment["GOMP_SPINCOUNT"] = OPENMP_SPINS
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(data)
        command = plan.train_command(stage, 0, Path(folder))
        if "--init" in command:
            # The pace does not depend on the initial weights.
            remove(command, "--init")
        if side != "fiber":
            remove(command, "--processes")
        for name, value in lengths.items():
            command += ["--set", f"{name}={value}"]
        busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if is_beside else []
        try:
            subprocess.run(
                [sys.executable, "-m", "fiber", *command],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
            )
        finally:
            for process in busy:
                process.kill()
                process.wait()
        first, *_, last = read_metrics(Path(folder, stage, "metrics.jsonl"))
    return 1000 * (last["seconds"] - first["seconds"]) / (last["images"] - first["images"])


def remove(command: list[str], option: str) -> None:
    """Remove an option and its value."""
    at = command.index(option)
    del command[at : at + 2]


def main() -> None:
    """Measure and report the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--results", type=Path, help="another directory for the CSV files")
    options = parser.parse_args()
    refuse_debug_build()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        generate(data, train=1000, val=1, novel=1)
        for stage in options.stages:
            sides = {
                f"{side}, {where}": partial(pace, stage, side, where == "beside", data)
                for side in ("fiber", "one process", "openmp")
                for where in ("alone", "beside")
            }
            values = interleave(sides, options.rounds)
            bench = f"demo_pace_{stage}"
            report(bench, "ms", values, peer="fiber, alone", results=options.results)


if __name__ == "__main__":
    main()
