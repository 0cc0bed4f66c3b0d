"""Every operation of RandAugment, with the policies of FIBER and of METER.

Command: python benches/bench_rand_augment.py [--policy fiber|meter]

FIBER's ten operations work on a 384 x 384 image. Peers: NumPy and OpenCV 5, as in the published
code (reimplemented in tests/rust/transform/record_rand_augment.py;
`pip install opencv-python-headless==5.0.0.93`), and torchvision. METER's fourteen work on the image
before the resize, here 480 x 640 pixels. Peers: Pillow, as in the published code (reimplemented in
tests/rust/transform/pillow_rand_augment.py), and torchvision, which has no SolarizeAdd.

torchvision's operations take a uint8 tensor and have the same names, but other values. One thread,
CPU time of the process, published magnitudes. fiber's time includes copying the image out of
Python. Values are compared with the first peer before anything is timed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rows import interleave, refuse_debug_build, report
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from fiber._core import RandAugment, augment_image

sys.path.insert(0, str(Path(__file__).parents[1]))

#: By operation, one call of each side.
Calls = dict[str, dict[str, Callable[[], object]]]


class Policy(NamedTuple):
    """What is measured of a policy."""

    peer: str
    #: (height, width) in pixels.
    size: tuple[int, int]
    #: Prefix of the CSV files.
    file: str
    calls: Callable[[np.ndarray, dict[str, float | None]], Calls]


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of the process for one of twenty calls."""
    began = time.process_time()
    for _ in range(20):
        work()
    return 1000 * (time.process_time() - began) / 20


def random_image(height: int, width: int) -> np.ndarray:
    """A smooth image with noise."""
    rows, columns = np.indices((height, width))
    waves = np.stack([np.sin(rows / 31), np.cos(columns / 17), np.sin((rows + columns) / 53)], -1)
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def by_torchvision(
    tensor: torch.Tensor, operation: str, argument: float | None, mode: InterpolationMode, fill: int
) -> torch.Tensor:
    """The operation of that name; factors are counted from 1 there, and degrees downwards."""
    magnitude = argument or 0.0
    if operation in ("Brightness", "Sharpness", "Color", "Contrast"):
        magnitude -= 1
    if operation == "Posterize":
        magnitude = max(1, int(magnitude))
    return _apply_op(tensor, operation, magnitude, interpolation=mode, fill=[float(fill)] * 3)


def fiber_calls(image: np.ndarray, arguments: dict[str, float | None]) -> Calls:
    """FIBER's policy: bilinear interpolation, gray fill."""
    import cv2

    from tests.rust.transform.record_rand_augment import apply

    cv2.setNumThreads(1)
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    calls: Calls = {}
    for operation, argument in arguments.items():
        if operation == "Identity":
            continue
        ours = np.asarray(augment_image(image, operation, argument))
        if not np.array_equal(ours, apply(image, operation, argument)):
            sys.exit(f"{operation}: values differ from those of OpenCV {cv2.__version__}")
        calls[operation] = {
            "numpy and OpenCV": lambda o=operation, a=argument: apply(image, o, a),
            "torchvision": lambda o=operation, a=argument: by_torchvision(
                tensor, o, a, InterpolationMode.BILINEAR, 128
            ),
            "fiber": lambda o=operation, a=argument: augment_image(image, o, a),
        }
    return calls


def meter_calls(image: np.ndarray, arguments: dict[str, float | None]) -> Calls:
    """METER's policy: nearest neighbor, black fill."""
    import PIL

    from tests.rust.transform.pillow_rand_augment import apply

    picture = Image.fromarray(image)
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    calls: Calls = {}
    for operation, argument in arguments.items():
        ours = np.asarray(augment_image(image, operation, argument, policy="meter"))
        if not np.array_equal(ours, np.asarray(apply(picture, operation, argument))):
            sys.exit(f"{operation}: values differ from those of Pillow {PIL.__version__}")
        calls[operation] = {
            "Pillow": lambda o=operation, a=argument: apply(picture, o, a),
            "torchvision": lambda o=operation, a=argument: by_torchvision(
                tensor, o, a, InterpolationMode.NEAREST, 0
            ),
            "fiber": lambda o=operation, a=argument: augment_image(image, o, a, policy="meter"),
        }
    del calls["SolarizeAdd"]["torchvision"]
    return calls


POLICIES = {
    "fiber": Policy("numpy and OpenCV", (384, 384), "rand_augment", fiber_calls),
    "meter": Policy("Pillow", (480, 640), "rand_augment_meter", meter_calls),
}


def measure(name: str, rounds: int) -> None:
    """Check, measure and report every operation of a policy, and their mean."""
    policy = POLICIES[name]
    arguments = RandAugment(policy=name).arguments()
    calls = policy.calls(random_image(*policy.size), arguments)
    sides: dict[str, Callable[[], float]] = {
        f"{side}: {operation}": lambda work=work: milliseconds(work)
        for operation, of_sides in calls.items()
        for side, work in of_sides.items()
    }
    values = interleave(sides, rounds)
    mean: dict[str, list[float]] = {}
    for side in (policy.peer, "torchvision", "fiber"):
        own = [values[f"{side}: {operation}"] for operation in calls if side in calls[operation]]
        # One of FIBER's operations is the identity, which costs nothing.
        if len(own) == len(calls):
            mean[side] = [sum(each) / len(arguments) for each in zip(*own, strict=True)]
    measured = {
        operation: {side: values[f"{side}: {operation}"] for side in of_sides}
        for operation, of_sides in calls.items()
    }
    for operation, chosen in [*measured.items(), ("", mean)]:
        title = operation or f"mean of {len(arguments)}"
        print(f"{name}, {title}: {statistics.median(chosen['fiber']):.3f} ms")
        file = policy.file + (f"_{operation.lower()}" if operation else "")
        report(file, "ms", chosen, policy.peer)


def main() -> None:
    """Measure one policy or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--policy", choices=POLICIES, help="default: both")
    options = parser.parse_args()
    refuse_debug_build()
    torch.set_num_threads(1)
    for name in POLICIES if options.policy is None else (options.policy,):
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
