"""Compare short runs of this checkout with those of another one, bit for bit.

Command: python -m tests.same_runs OTHER [RUN ...]
OTHER is the root of another checkout with its extension built. Each run takes 20 steps on generated
scenes in both, in processes of their own with one thread, and all of metrics.jsonl but times, and
the bytes of the finished weights, are compared. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = 20
#: Recipe and changed fields of each run.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in (
            *("scenes_fine", "scenes_coarse", "small_vqa", "small_nlvr2", "small_retrieval"),
            *("small_matching", "small_caption", "small_meter", "small_detection"),
        )
    },
    "words": ("scenes_coarse", {"data.mlm_unit": "word"}),
    "positions": ("scenes_coarse", {"data.mlm_unit": "position"}),
    "queue": (
        "scenes_coarse",
        {"tasks.image_text.itc_form": "queue", "tasks.image_text.queue_length": 64},
    ),
    "gold": ("small_caption", {"tasks.caption.objective": "gold"}),
    "cider": ("small_caption", {"tasks.caption.objective": "cider"}),
    "by row": ("scenes_coarse", {"train.draws": "row"}),
    "passes": ("scenes_coarse", {"train.samples_per_pass": 3, "train.accumulation": 2}),
}
#: Fields of a line of metrics.jsonl that hold times.
_TIMES = ("seconds", "images_per_second", "performance")
_CODE = """
import json, sys
import torch
from fiber.training.config.run import load_recipe
from fiber.training.train import train
torch.set_num_threads(1)
given = json.loads(sys.argv[1])
recipe = load_recipe(given["recipe"])
changes = {"train.steps": given["steps"], "train.log_every": 1, **given["changes"]}
train(recipe, data=given["data"], output=given["output"], set=changes, threads=1, quiet=True)
"""


def main() -> int:
    """Run both checkouts and print what differs; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("other", type=Path, metavar="OTHER", help="root of another checkout")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"default: all of {', '.join(RUNS)}")
    options = parser.parse_args()
    if unknown := set(options.runs) - set(RUNS):
        parser.error(f"unknown run {min(unknown)!r}; expected some of {', '.join(RUNS)}")
    differs = False
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        code = "import sys; from fiber.synthetic.scenes import generate;"
        code += "generate(sys.argv[1], train=64, val=16, novel=16)"
        _python(options.other, code, str(data))
        for name in options.runs or RUNS:
            ours, theirs = (
                _result(root, name, data, Path(folder) / f"{number}-{name}")
                for number, root in enumerate((ROOT, options.other))
            )
            same = ours == theirs
            differs |= not same
            print(f"{name:16} {'same' if same else 'DIFFERS'}  {ours[1][:16]}", flush=True)
            if not same:
                print(f"  {_first_difference(ours, theirs)}", flush=True)
    return int(differs)


def _result(root: Path, name: str, data: Path, output: Path) -> tuple[list[Any], str]:
    """Return the metrics of a run without times, and a hash of its weights."""
    recipe, changes = RUNS[name]
    given = {"recipe": recipe, "changes": changes, "data": str(data), "output": str(output)}
    _python(root, _CODE, json.dumps({**given, "steps": STEPS}))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: line[key] for key in line if key not in _TIMES} for line in lines]
    return kept, hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def _python(root: Path, code: str, argument: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root / "python"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, argument], check=True, env=environment, cwd=root)


def _first_difference(ours: tuple[list[Any], str], theirs: tuple[list[Any], str]) -> str:
    for mine, other in zip(ours[0], theirs[0], strict=False):
        for key in mine.keys() | other.keys():
            if mine.get(key) != other.get(key):
                return f"step {mine['step']}, {key}: {mine.get(key)} and {other.get(key)}"
    return "the weights differ"


if __name__ == "__main__":
    sys.exit(main())
