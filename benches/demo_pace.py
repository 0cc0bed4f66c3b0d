"""Pace of the demo's two stages, alone and beside a process that keeps one core busy.

Command: python benches/demo_pace.py
Peer: the pace of the same stage alone, in the same round. Every side is a run of `fiber train` on
generated scenes, with the threads that torch chooses; its pace is that of its last steps. The sides
differ in GOMP_SPINCOUNT: how long OpenMP's threads spin before they sleep. "fiber" is what the
commands set, "OpenMP" what GNU OpenMP does by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from rows import interleave, refuse_debug_build, report

from fiber.demo.plan import COARSE_RECIPE, FINE_RECIPE, find_plan
from fiber.synthetic.scenes import generate

#: Steps of a run, and those at its end that are timed.
STEPS, TIMED = 24, 16
#: GOMP_SPINCOUNT of each side; None leaves it to the commands.
SPIN_COUNTS = {"fiber": None, "OpenMP": "300000", "sleep at once": "0"}
RECIPES = {"fine": FINE_RECIPE, "coarse": COARSE_RECIPE}


def pace(stage: str, spins: str | None, is_beside: bool, data: Path) -> float:
    """Train a stage in a process of its own, and return its images a second."""
    changes = {"train.steps": STEPS, "train.log_every": STEPS - TIMED, "train.checkpoint_every": 0}
    plan = find_plan("scenes", "default")
    changes = {**(plan.coarse if stage == "coarse" else plan.fine), **changes}
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY",)}
    if spins is not None:
        environment["GOMP_SPINCOUNT"] = spins
    else:
        environment.pop("GOMP_SPINCOUNT", None)
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "fiber", "train", RECIPES[stage], f"--data={data}"]
        command += [f"--output={output}/run", "--quiet", *settings]
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if is_beside else []
        try:
            subprocess.run(command, check=True, env=environment)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        lines = Path(output, "run", "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="another directory for the CSV file")
    options = parser.parse_args()
    refuse_debug_build()
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder, "data"), train=1000, val=1, novel=1)
        for stage in RECIPES:
            for name, spins in SPIN_COUNTS.items():
                sides = {
                    f"{name}, {where}": partial(pace, stage, spins, where == "beside", data)
                    for where in ("alone", "beside")
                }
                values = interleave(sides, options.rounds)
                report(f"demo_pace_{stage}", "images/s", values, f"{name}, alone", options.results)


if __name__ == "__main__":
    main()
