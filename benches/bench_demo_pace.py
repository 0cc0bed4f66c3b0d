"""Pace of the demo's stages, alone and beside a process that keeps one core busy.

Command: python benches/bench_demo_pace.py
Peer: OpenMP's own waiting. Threads that wait spin before they sleep, by GOMP_SPINCOUNT. "fiber" is
what the commands set, "openmp" what GNU OpenMP does by itself. Every value is the pace of the last
steps of a `fiber train` on generated scenes, a process of its own with torch's number of threads.
Ratios are to "fiber, alone".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rows import interleave, refuse_debug_build, report

from fiber.demo.plan import COARSE_RECIPE, FINE_RECIPE, find_plan
from fiber.synthetic.scenes import generate
from fiber.training.run_dir import read_metrics

#: Steps of a run, and how many of them come before the timed ones, which are whole rotations of the
#: coarse stage's tasks.
STEPS, WARMUP = 18, 8
#: GNU OpenMP's default number of spins.
OPENMP_SPINS = "300000"
BUSY = "while True: pass"


def pace(stage: str, side: str, is_beside: bool, data: Path) -> float:
    """Train a stage in a process of its own, and return its images per second."""
    plan = find_plan("scenes", "default")
    recipe, changes = (FINE_RECIPE, plan.fine) if stage == "fine" else (COARSE_RECIPE, plan.coarse)
    lengths = {"train.steps": STEPS, "train.log_every": WARMUP, "train.checkpoint_every": 0}
    settings: dict[str, Any] = {**changes, **lengths}
    # The command sets its own number of spins where the environment has none.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    if side == "openmp":
        environment["GOMP_SPINCOUNT"] = OPENMP_SPINS
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fiber", "train", recipe]
        command += ["--data", str(data), "--output", f"{folder}/run"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if is_beside else []
        try:
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        first, *_, last = read_metrics(Path(folder, "run", "metrics.jsonl"))
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])


def main() -> None:
    """Measure and report both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, help="another directory for the CSV files")
    options = parser.parse_args()
    refuse_debug_build()
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder, "data"), train=1000, val=1, novel=1)
        for stage in ("fine", "coarse"):
            sides = {
                f"{side}, {where}": partial(pace, stage, side, where == "beside", data)
                for side in ("fiber", "openmp")
                for where in ("alone", "beside")
            }
            values = interleave(sides, options.rounds)
            bench = f"demo_pace_{stage}"
            report(bench, "images/s", values, peer="fiber, alone", results=options.results)


if __name__ == "__main__":
    main()
