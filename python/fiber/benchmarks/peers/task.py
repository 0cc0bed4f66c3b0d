"""What a peer is asked to do, and the numbers that every pipeline shares.

Nothing here or in `worker` needs more than Python's own library: a peer may live in an environment
without fiber, torch or numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

#: Side in pixels of a picture of the coarse stage.
SIZE = 384
#: ImageNet's mean and standard deviation of values in [0, 1], red first.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
#: Random resized crop: least and largest part of the area, least and largest width / height.
SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)
#: The fine stage: shorter side and longest longer side in pixels, side lengths' divisor.
SHORTER, LONGEST, DIVISOR = 800, 1333, 32
#: The published detector's mean and standard deviation of values in [0, 255], red first.
FINE_MEAN = (123.675, 116.28, 103.53)
FINE_STD = (58.395, 57.12, 57.375)
#: Length in tokens that captions are padded and cut to.
MAX_TOKENS = 40
#: Id of <pad>.
PAD_ID = 1

#: A pass over the data: given its number, it yields batches, whose first (or only) part has a
#: length that counts pictures or texts.
Epoch = Callable[[int], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of work on one corpus."""

    #: "squash", "crop", "fine", "captions", "offsets", "prompt" or "boxes".
    work: str
    #: "float32" or "uint8" pictures; texts are "int64".
    output: str
    #: Form of the peer, where its module has several.
    variant: str
    batch_size: int
    threads: int
    #: Whether a JPEG may be decoded smaller than it is, as in training.
    scaled: bool = False
    #: JPEG files; a multiple of the batch size.
    files: tuple[str, ...] = ()
    #: For each file its boxes (x0, y0, x1, y1) in pixels.
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...] = ()
    #: Sizes (height, width) in pixels of the pictures that `boxes` lie in, where no file is read.
    sizes: tuple[tuple[int, int], ...] = ()
    texts: tuple[str, ...] = ()
    #: For each text its phrases' (start, end) in characters.
    char_spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    #: Path of a tokenizer.json.
    tokenizer: str = ""
    #: How often an epoch goes over texts or boxes.
    repeats: int = 1
    #: Folder for files of a peer's own form.
    cache: str = ""

    def to_json(self) -> str:
        """Write it as one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        """Read what `to_json` wrote; lists stand for tuples."""
        return Task(**json.loads(text))


def fine_size(height: int, width: int) -> tuple[int, int]:
    """Give (height, width) of a picture of the fine stage, rounded as published."""
    shorter = SHORTER
    if max(height, width) / min(height, width) * shorter > LONGEST:
        shorter = round(LONGEST * min(height, width) / max(height, width))
    if height < width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def padded_side(pixels: int) -> int:
    """Round a side up to the divisor."""
    return -(-pixels // DIVISOR) * DIVISOR
