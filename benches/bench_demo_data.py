"""CPU time of the demo's training batches, compared with the loader before the data engine.

Command: python benches/bench_demo_data.py [--before COMMIT] [--rounds N]
Peer: this package at COMMIT, the last one with the decoder of zune-jpeg, the tokenizer of
`tokenizers` and a resizer without SIMD; it is built from git. Both read the same scenes with the
demo's recipes, in processes that run in turns. The demo's images are small, so the interpreter's
overhead per record weighs more than in training on photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rows import refuse_debug_build, report

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("demo_batches.py")
#: Parent of the first commit of the data engine.
BEFORE = "fa47791e"
IMAGES = 2000
SAMPLES = 1500


def build(commit: str, folder: Path) -> Path:
    """Build the package of a commit; return its entry of PYTHONPATH."""
    source, target = folder / "source", folder / "package"
    source.mkdir()
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x"], cwd=source, check=True, input=archive.stdout)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(target)
    return target


def measure(package: Path, data: Path) -> dict[str, float]:
    """Run the worker with a package; return milliseconds per sample by stage and task."""
    done = subprocess.run(
        [sys.executable, WORKER, data, str(SAMPLES)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    refuse_debug_build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = {"fiber": ROOT / "python", "before": build(options.before, folder)}
        data = folder / "scenes"
        made = ["-m", "fiber", "data", "scenes", "--output", data, "--images", str(IMAGES)]
        subprocess.run([sys.executable, *made], check=True, stdout=subprocess.DEVNULL)
        values: dict[str, dict[str, list[float]]] = {}
        for _ in range(options.rounds):
            for side, package in packages.items():
                for what, value in measure(package, data).items():
                    values.setdefault(what, {}).setdefault(side, []).append(value)
    for what, sides in values.items():
        own = {f"{what}: {side}": found for side, found in sides.items()}
        report("demo_data", "ms", own, peer=f"{what}: before")


if __name__ == "__main__":
    main()
