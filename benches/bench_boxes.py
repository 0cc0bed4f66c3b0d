"""Transform the 64 boxes of an image: clip, resize, flip, drop empty boxes.

Command: python benches/bench_boxes.py   (requires cargo)
Peers: torchvision's transforms v2 on `BoundingBoxes`, and NumPy. fiber is timed by a program
without Python (benches/boxes.rs), as in a thread of the loader; the peers start from tensors or
arrays in memory. All of them process the same number of boxes.
"""

import argparse
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rows import interleave, refuse_debug_build, report
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

BOXES = 64
#: (height, width) in pixels of the input and the output image.
STORED, MADE = (480, 640), (800, 1066)
CALLS = 200
PEER = "torchvision"


def drawn() -> np.ndarray:
    """Boxes (x0, y0, x1, y1) in pixels, some of which reach beyond the image."""
    draws = np.random.default_rng(0)
    x0, y0 = draws.uniform(-0.9, 500, BOXES), draws.uniform(-0.9, 400, BOXES)
    size = draws.uniform((2, 2), (140, 80), (BOXES, 2))
    return np.stack([x0, y0, x0 + size[:, 0], y0 + size[:, 1]], 1).astype(np.float32)


def by_torchvision(boxes: torch.Tensor) -> torch.Tensor:
    """Cut, resize, mirror, and leave out what is empty."""
    make = tv_tensors.BoundingBoxes
    moved = make(boxes, format="XYXY", canvas_size=STORED)  # pyright: ignore[reportCallIssue]
    moved = functional.clamp_bounding_boxes(moved)
    moved = functional.horizontal_flip(functional.resize(moved, list(MADE)))
    return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


def by_numpy(boxes: np.ndarray) -> np.ndarray:
    """The same."""
    (height, width), (to_height, to_width) = STORED, MADE
    moved = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    moved *= np.array([to_width / width, to_height / height] * 2, np.float32)
    moved[:, [0, 2]] = to_width - moved[:, [2, 0]]
    return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


def microseconds(work: Callable[[], object]) -> float:
    """CPU time of the process for one of some calls."""
    began = time.process_time()
    for _ in range(CALLS):
        work()
    return 1e6 * (time.process_time() - began) / CALLS


def our_microseconds() -> float:
    """The median of the program's runs, for a whole image."""
    command = ["cargo", "bench", "--quiet", "--bench", "boxes"]
    root = Path(__file__).parents[1]
    found = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    line = re.search(rf"^whole picture +(\d+) ns .* of {BOXES} boxes", found, re.MULTILINE)
    if line is None:
        raise SystemExit(f"benches/boxes.rs printed {found!r}; expected a time per image")
    return int(line[1]) / 1000


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    refuse_debug_build()
    torch.set_num_threads(1)
    boxes = drawn()
    tensor = torch.from_numpy(boxes)
    difference = np.abs(by_torchvision(tensor).numpy() - by_numpy(boxes)).max()
    if difference > 1e-3:
        raise SystemExit(f"the peers differ by {difference} pixels")
    sides = {
        "fiber": our_microseconds,
        PEER: lambda: microseconds(lambda: by_torchvision(tensor)),
        "numpy": lambda: microseconds(lambda: by_numpy(boxes)),
    }
    report("boxes_of_a_picture", "us", interleave(sides, options.rounds), peer=PEER)


if __name__ == "__main__":
    main()
