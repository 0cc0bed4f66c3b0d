"""`python -m tests.runtime.record DIR`: graphs, and what the commands print for the network.

`without_torch.py` compares it with what the commands print in an environment without torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from fiber.cli import main
from fiber.export.export import export_model
from tests.runtime.drawings import drawings

MODEL = "scenes"


def commands(images: list[str]) -> list[list[str]]:
    """List commands that ask a model, without `--model`."""
    found = [
        ["ground", *images, "--phrases", "the square; a circle above the triangle"],
        ["ground", images[0], "--caption", "a red circle and a square", "--boxes-per-phrase", "3"],
        ["detect", *images, "--classes", "circle; square; triangle", "--threshold", "0"],
        ["search", "a blue square", *images],
        ["search", "a red circle", *images, "--no-rerank"],
        ["caption", *images],
    ]
    for image in images:
        found.append(["answer", image, "what color is the circle?"])
        found.append(["answer", image, "how many squares are there?", "--top-k", "8"])
        found.append(["match", image, "a green triangle"])
    return found


def record(folder: Path) -> None:
    """Write images, graphs and what the commands print to a new folder."""
    (folder / "images").mkdir(parents=True)
    images = [f"images/{number}.png" for number in range(len(drawings()))]
    for path, image in zip(images, drawings(), strict=True):
        image.save(folder / path)
    export_model(MODEL, folder / "graphs")
    records = []
    with contextlib.chdir(folder):
        for command in commands(images):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                code = main([*command, "--model", MODEL, "--device", "cpu"])
            assert code == 0, command
            lines = printed.getvalue().splitlines()
            records.append({"command": command, "results": list(map(json.loads, lines))})
    (folder / "records.json").write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    record(Path(sys.argv[1]))
