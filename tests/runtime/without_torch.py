"""`python without_torch.py DIR`: compare commands on graphs with what `record.py` has recorded.

It is run by `make test-runtime`, in an environment of fiber-vl-runtime alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

#: Maximum size of the environment.
MEGABYTES = 250
#: Largest difference of a printed score, whose unit in the last place is 1e-4, and of an edge.
SCORE, PIXELS = 2e-4, 0.03
ROOT = Path(__file__).parents[2]


def check_environment() -> None:
    """Check that torch is absent and that the environment is small."""
    assert importlib.util.find_spec("torch") is None, "torch is installed"
    packages = Path(sysconfig.get_path("purelib"))
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    print(f"{packages}: {size:.0f} MB, at most {MEGABYTES}")
    assert size <= MEGABYTES
    heavy = ("torch", "transformers", "onnxruntime")
    code = f"import sys, fiber; print([name for name in {heavy} if name in sys.modules])"
    assert run([sys.executable, "-c", code]) == "[]\n"
    assert Path(importlib.util.find_spec("fiber").origin).is_relative_to(packages)


def run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def same(ours: object, theirs: object, tolerance: float, where: str) -> None:
    """Compare what two commands printed, but for the name of the model."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert ours.keys() == theirs.keys(), where
        for key in theirs.keys() - {"model"}:
            edge = PIXELS if key == "box_xyxy" else tolerance
            same(ours[key], theirs[key], edge, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        assert len(ours) == len(theirs), f"{where}: {len(ours)} and {len(theirs)}"
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, tolerance, f"{where}[{number}]")
    elif isinstance(theirs, float):
        assert isinstance(ours, float), where
        assert abs(ours - theirs) <= tolerance, f"{where}: {ours} and {theirs}"
    else:
        assert ours == theirs, f"{where}: {ours} and {theirs}"


def ranked(result: dict) -> dict:
    """Order boxes by label and place: scores that differ by rounding may change their order."""
    if "detections" in result:
        boxes = result["detections"]
        boxes.sort(key=lambda box: (box["index"], *(round(edge) for edge in box["box_xyxy"])))
    return result


def check_commands(folder: Path) -> int:
    """Run all commands, and return their number."""
    fiber = str(Path(sys.executable).parent / "fiber")
    records = json.loads((folder / "records.json").read_text())
    for record in records:
        command = record["command"]
        lines = run([fiber, *command, "--model", "graphs"], folder).splitlines()
        found = [ranked(json.loads(line)) for line in lines]
        assert found, command
        same(found, list(map(ranked, record["results"])), SCORE, " ".join(command))
    return len(records)


def check_errors(folder: Path) -> None:
    """Check that what needs torch or another engine says so."""
    fiber = str(Path(sys.executable).parent / "fiber")
    cases = {
        ("answer", "images/0.png", "is it red?"): "torch is not installed",
        ("match", "images/0.png", "x", "--model", "scenes"): "only exported graphs run",
        ("match", "images/0.png", "x", "--model", "graphs", "--runtime", "openvino"): (
            "openvino is not installed; run `pip install openvino`"
        ),
        ("reason", *["images/0.png"] * 2, "x", "--model", "graphs"): "needs the head 'nlvr2'",
    }
    for command, message in cases.items():
        done = subprocess.run(
            [fiber, *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, (command, done.stderr)
        assert message in done.stderr, (command, done.stderr)
    code = "import fiber; fiber.load('scenes')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "fiber.load needs torch, which is not installed" in done.stderr, done.stderr
    assert "all requirements are met" in run([fiber, "doctor"])


if __name__ == "__main__":
    check_environment()
    place = Path(sys.argv[1])
    number = check_commands(place)
    check_errors(place)
    print(f"{number} commands print the boxes and answers of the network")
