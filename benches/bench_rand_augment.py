"""Every operation of RandAugment on a 384 x 384 image.

Command: python benches/bench_rand_augment.py

Peers: NumPy and OpenCV 5, as in the published code (reimplemented in
tests/rust/transform/record_rand_augment.py; `pip install opencv-python-headless==5.0.0.93`), and
torchvision's operations of the same names on a uint8 tensor, whose values differ. One thread, CPU
time of the process, magnitude 7. fiber's time includes copying the image out of Python. Values are
compared with the first peer before anything is timed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from rows import interleave, refuse_debug_build, report
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from fiber._core import RandAugment, augment_image
from tests.rust.transform.record_rand_augment import apply

sys.path.insert(0, str(Path(__file__).parents[1]))

SIDE = 384
PEER = "numpy and OpenCV"


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of the process for one of twenty calls."""
    began = time.process_time()
    for _ in range(20):
        work()
    return 1000 * (time.process_time() - began) / 20


def random_image() -> np.ndarray:
    """A smooth image with noise."""
    rows, columns = np.indices((SIDE, SIDE))
    waves = np.stack([np.sin(rows / 31), np.cos(columns / 17), np.sin((rows + columns) / 53)], -1)
    noise = np.random.default_rng(0).normal(0, 12, (SIDE, SIDE, 3))
    return (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def by_torchvision(tensor: torch.Tensor, operation: str, argument: float | None) -> torch.Tensor:
    """The operation of that name; factors are counted from 1 there, and degrees downwards."""
    magnitude = argument or 0.0
    if operation in ("Brightness", "Sharpness"):
        magnitude -= 1
    mode = InterpolationMode.BILINEAR
    return _apply_op(tensor, operation, magnitude, interpolation=mode, fill=[128.0] * 3)


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    refuse_debug_build()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image = random_image()
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    arguments = RandAugment().arguments()
    sides: dict[str, Callable[[], float]] = {}
    for operation, argument in arguments.items():
        if operation == "Identity":
            continue
        ours = np.asarray(augment_image(image, operation, argument))
        if not np.array_equal(ours, apply(image, operation, argument)):
            sys.exit(f"{operation}: values differ from those of OpenCV {cv2.__version__}")
        for name, work in {
            "fiber": lambda o=operation, a=argument: augment_image(image, o, a),
            PEER: lambda o=operation, a=argument: apply(image, o, a),
            "torchvision": lambda o=operation, a=argument: by_torchvision(tensor, o, a),
        }.items():
            sides[f"{name}: {operation}"] = lambda work=work: milliseconds(work)
    values = interleave(sides, options.rounds)
    # One of the ten operations is the identity.
    for name in ("fiber", PEER, "torchvision"):
        own = [found for side, found in values.items() if side.startswith(f"{name}: ")]
        values[f"{name}: mean of ten"] = [sum(of_round) / 10 for of_round in zip(*own, strict=True)]
    for operation in [*(name for name in arguments if name != "Identity"), "mean of ten"]:
        chosen = {name: values[f"{name}: {operation}"] for name in (PEER, "torchvision", "fiber")}
        print(operation, f"{statistics.median(chosen['fiber']):.3f} ms")
        file = "rand_augment" + ("" if operation == "mean of ten" else f"_{operation.lower()}")
        report(file, "ms", chosen, PEER)


if __name__ == "__main__":
    main()
