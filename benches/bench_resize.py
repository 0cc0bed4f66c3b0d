"""Resize one image, compared with torchvision's uint8 kernel and Pillow.

Command: python benches/bench_resize.py

Peers: `torchvision.transforms.v2.functional.resize` with antialiasing on a uint8 tensor in
channels-last memory format (its fast path) and channels-first, and `Image.resize`. One thread, CPU
time of the process. Every side gets an image in memory and returns a new one; fiber's time includes
copying it out of Python. "rows" is what the loader runs: rows in, rows out, no new image
(benches/resize.rs; requires cargo). Values are compared first: exact ones must equal Pillow's, rows
before columns in two calls; fast ones may differ by one level.
"""

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rows import interleave, refuse_debug_build, report
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from fiber import _core

#: Squash of the coarse stage, shorter side of the fine stage, a large photograph.
SIZES = [(480, 640, 384, 384), (480, 640, 800, 1066), (3000, 4000, 384, 384)]
KERNELS = {
    "bilinear": (Image.Resampling.BILINEAR, InterpolationMode.BILINEAR),
    "bicubic": (Image.Resampling.BICUBIC, InterpolationMode.BICUBIC),
}
#: `fast` equals `exact` with AVX-512, and with AVX2 from a fourfold reduction on.
ROWS = [(name, wide) for name in ("exact", "fast") for wide in ("avx512", "avx2")]
ROWS.append(("exact", "scalar"))
PEER = "torchvision uint8, channels last"


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of the process for one of some calls."""
    began = time.process_time()
    for _ in range(repeats):
        work()
    return 1000 * (time.process_time() - began) / repeats


def row_milliseconds(
    sizes: tuple[int, ...], kernel: str, precision: str, instructions: str
) -> float:
    """Time of our rows, measured by a program without Python."""
    command = ["cargo", "bench", "--quiet", "--bench", "resize", "--"]
    command += [*map(str, sizes), kernel, precision, instructions]
    root = Path(__file__).parents[1]
    found = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[0])


def random_image(height: int, width: int) -> np.ndarray:
    """A smooth image with noise."""
    rows, columns = np.indices((height, width))
    waves = np.stack([np.sin(rows / 31), np.cos(columns / 17), np.sin((rows + columns) / 53)], -1)
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def has(instructions: str) -> bool:
    """Whether the processor has them."""
    try:
        _core.resize_image(np.zeros((1, 1, 3), np.uint8), 1, 1, instructions=instructions)
    except ValueError:
        return False
    return True


def check(image: np.ndarray, height: int, width: int, kernel: str) -> None:
    """Stop if a value differs from Pillow's, or of the fast ones by more than a level."""
    method = KERNELS[kernel][0]
    rows = Image.fromarray(image).resize((width, image.shape[0]), method)
    expected = np.asarray(rows.resize((width, height), method)).astype(int)
    for precision, instructions in ROWS:
        if has(instructions):
            options = {"resize": precision, "instructions": instructions}
            ours = np.asarray(_core.resize_image(image, height, width, kernel, **options))
            levels = abs(ours - expected).max()
            if levels > (precision == "fast"):
                case = f"{image.shape} to {height} x {width}, {kernel}, {precision}"
                sys.exit(f"{case}, {instructions}: up to {levels} levels off")


def sides(image: np.ndarray, height: int, width: int, kernel: str) -> dict[str, Callable]:
    """What is measured, by name."""
    method, mode = KERNELS[kernel]
    last = torch.from_numpy(image).permute(2, 0, 1)
    first = last.contiguous()
    stored = Image.fromarray(image)

    def by_torchvision(tensor: torch.Tensor) -> torch.Tensor:
        return functional.resize(tensor, [height, width], interpolation=mode, antialias=True)

    return {
        PEER: lambda: by_torchvision(last),
        "torchvision uint8, channels first": lambda: by_torchvision(first),
        "Pillow": lambda: stored.resize((width, height), method),
        "fiber": lambda: _core.resize_image(image, height, width, kernel),
    }


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    refuse_debug_build()
    torch.set_num_threads(1)
    for size in SIZES:
        image = random_image(*size[:2])
        repeats = max(1, 3_000_000 // image.size)
        for kernel in KERNELS:
            check(image, *size[2:], kernel)
            measured = {
                name: functools.partial(milliseconds, work, repeats)
                for name, work in sides(image, *size[2:], kernel).items()
            }
            for precision, instructions in ROWS:
                if has(instructions):
                    measured[f"fiber rows, {precision}, {instructions}"] = functools.partial(
                        row_milliseconds, size, kernel, precision, instructions
                    )
            name = f"{size[0]} x {size[1]} to {size[2]} x {size[3]} {kernel}"
            print(name)
            values = interleave(measured, options.rounds)
            report(f"resize_{size[1]}_{size[3]}_{kernel}", "ms", values, PEER)


if __name__ == "__main__":
    main()
