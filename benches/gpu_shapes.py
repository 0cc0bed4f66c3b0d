"""Attention calls of the base model, and a lower bound of the time of each on a GPU.

The bound is the longest of three times: to move every input and output once, to compute the matrix
products, to compute the exponentials. Bytes, operations and exponentials follow from the shape; the
rates of the card are measured or follow from its clock.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Operation = Literal["windows", "image to text", "text to image", "text"]

#: Exponentials that a multiprocessor of an NVIDIA GPU takes in a clock cycle (compute capability
#: 8.0 to 9.0; CUDA programming guide, arithmetic instructions).
EXPONENTIALS_PER_CYCLE = 16
#: The backward pass's products, in those of the forward pass: scores again, and four gradients.
BACKWARD_PRODUCTS = 2.5


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One call of one operation."""

    operation: Operation
    name: str
    batch: int
    #: (H, W) of the image tokens; not used by "text".
    map_size: tuple[int, int]
    heads: int
    head_width: int
    #: Side of a window and roll in tokens; the eager peer of "image to text" has windows too.
    window: int = 12
    shift: int = 0
    #: Tokens of a text, and how many of them are real.
    text_tokens: int = 0
    real_tokens: int = 0

    def lengths(self) -> tuple[int, int]:
        """Queries of a sample and the keys that each of them reads."""
        image = self.map_size[0] * self.map_size[1]
        if self.operation == "windows":
            sides = (-(-side // self.window) * self.window for side in self.map_size)
            return math.prod(sides), self.window**2
        if self.operation == "image to text":
            return image, self.real_tokens
        return self.text_tokens, image if self.operation == "text to image" else self.real_tokens


@dataclass(frozen=True)
class Work:
    """What a pass cannot do without."""

    moved_bytes: float
    operations: float
    exponentials: float


def work(shape: Shape, itemsize: int, *, backward: bool) -> Work:
    """Count for one pass; the backward pass starts from the inputs, the output and its gradient.

    Window attention's backward pass needs no output: it has whole rows of scores.
    """
    queries, keys = shape.lengths()
    channels = shape.heads * shape.head_width
    pairs = shape.batch * shape.heads * queries * keys
    if shape.operation == "windows":
        token_bytes = math.prod(shape.map_size) * channels * itemsize * shape.batch
        table_bytes = (2 * shape.window - 1) ** 2 * shape.heads * 4
        moved = (7 if backward else 4) * token_bytes + (2 if backward else 1) * table_bytes
    else:
        moved = 2 * (queries + keys) * channels * itemsize * shape.batch * (2 if backward else 1)
    operations = 4 * pairs * shape.head_width * (BACKWARD_PRODUCTS if backward else 1)
    return Work(moved, operations, pairs)


@dataclass(frozen=True)
class Card:
    """A GPU and what it does in a second."""

    name: str
    driver: str
    bytes_per_second: float
    #: Multiplications and additions of a large product in the dtype that is measured.
    operations_per_second: float
    exponentials_per_second: float

    def floor_milliseconds(self, needed: Work) -> float:
        """Give the least time in which the card can do the work."""
        return 1000 * max(
            needed.moved_bytes / self.bytes_per_second,
            needed.operations / self.operations_per_second,
            needed.exponentials / self.exponentials_per_second,
        )

    def __str__(self) -> str:
        return (
            f"{self.name}, driver {self.driver}: copies {self.bytes_per_second / 1e12:.2f} TB/s,"
            f" products {self.operations_per_second / 1e12:.0f} TFLOP/s,"
            f" exponentials {self.exponentials_per_second / 1e12:.2f} T/s"
        )


def measure_card(device: torch.device, timer, dtype: torch.dtype) -> Card:
    """Measure a copy of 1 GB and a product of two matrices of 8192 x 8192."""
    properties = torch.cuda.get_device_properties(device)
    source = torch.empty(2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, dtype=dtype, device=device) for _ in range(2))
    copy_seconds = min(timer(lambda: target.copy_(source)) for _ in range(10)) / 1000
    product_seconds = min(timer(lambda: left @ right) for _ in range(10)) / 1000
    # In kHz; older releases of torch do not say. 1.755 GHz is the H100's (SXM).
    clock = getattr(properties, "clock_rate", 1_755_000) * 1000
    return Card(
        name=properties.name,
        driver=driver_version(),
        bytes_per_second=2 * source.numel() / copy_seconds,
        operations_per_second=2 * 8192**3 / product_seconds,
        exponentials_per_second=EXPONENTIALS_PER_CYCLE * properties.multi_processor_count * clock,
    )


def driver_version() -> str:
    """Ask nvidia-smi; "unknown" where it is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "unknown"


def _windows(pixels: str, batch: int, whole: tuple[int, int], window: int) -> Iterator[Shape]:
    """The four stages, shifted where there is more than one window."""
    for stage in range(4):
        size = (-(-whole[0] // 2**stage), -(-whole[1] // 2**stage))
        yield Shape(
            operation="windows",
            name=f"{pixels}, stage {stage + 1}",
            batch=batch,
            map_size=size,
            heads=4 * 2**stage,
            head_width=32,
            window=window,
            shift=window // 2 if max(size) > window else 0,
        )


def _cross(
    pixels: str, batch: int, whole: tuple[int, int], text_tokens: int, real_tokens: int
) -> Iterator[Shape]:
    """Both directions in the last two stages."""
    for stage in (2, 3):
        size = (-(-whole[0] // 2**stage), -(-whole[1] // 2**stage))
        for operation, heads, head_width in (
            ("image to text", 4 * 2**stage, 32),
            ("text to image", 12, 64),
        ):
            yield Shape(
                operation=operation,  # type: ignore[arg-type]
                name=f"{pixels}, stage {stage + 1}, {real_tokens} of {text_tokens} tokens",
                batch=batch,
                map_size=size,
                heads=heads,
                head_width=head_width,
                text_tokens=text_tokens,
                real_tokens=real_tokens,
            )


def _text(batch: int, tokens: int) -> Shape:
    return Shape(
        operation="text",
        name=f"{tokens} tokens",
        batch=batch,
        map_size=(0, 0),
        heads=12,
        head_width=64,
        text_tokens=tokens,
        real_tokens=tokens,
    )


def shapes(*, quick: bool) -> Iterator[Shape]:
    """Every call of the base model: 384 and 576 pixels, and an image of 800 x 1344.

    Args:
        quick: 384 pixels at batch 8 alone.
    """
    for batch in (8,) if quick else (64, 8, 1):
        yield from _windows("384", batch, (96, 96), 12)
        yield from _cross("384", batch, (96, 96), 40, 40)
        yield _text(batch, 40)
    if quick:
        return
    for batch in (8, 1):
        yield from _windows("576", batch, (144, 144), 18)
        yield from _cross("576", batch, (144, 144), 50, 50)
    yield from _windows("800x1344", 1, (200, 336), 12)
    yield from _cross("800x1344", 1, (200, 336), 256, 256)
    # Time that follows the text's real length, not that of its padding.
    yield from _cross("800x1344", 1, (200, 336), 256, 64)
    yield _text(1, 256)


def micro_shapes() -> Iterator[Shape]:
    """Calls that a CPU, or Triton's interpreter, ends in a moment: to try the bench itself."""
    common = {"batch": 1, "map_size": (3, 5), "heads": 1, "head_width": 16}
    yield Shape(operation="windows", name="micro", window=4, shift=2, **common)
    for operation in ("image to text", "text to image", "text"):
        yield Shape(
            operation=operation, name="micro", window=4, text_tokens=5, real_tokens=3, **common
        )


class Deadline:
    """A number of seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Give the seconds that are left; below 0 when it has passed."""
        return self._end - time.monotonic()
