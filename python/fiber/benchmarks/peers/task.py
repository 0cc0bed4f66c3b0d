"""Description of a task for a peer, and constants shared by all pipelines.

This module and `worker` use only the standard library, since a peer's environment may lack fiber,
torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

#: Side length of a coarse-stage image in pixels.
SIZE = 384
#: ImageNet mean and standard deviation of RGB values in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
#: Random resized crop: area range, and aspect ratio (width / height) range.
SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)
#: Fine stage: shorter side, maximum longer side, and divisor of padded sides, in pixels.
SHORTER, LONGEST, DIVISOR = 800, 1333, 32
#: The published detector's mean and standard deviation of RGB values in [0, 255].
FINE_MEAN = (123.675, 116.28, 103.53)
FINE_STD = (58.395, 57.12, 57.375)
#: Number of tokens that captions are padded and truncated to.
MAX_TOKENS = 40
#: Id of the padding token.
PAD_ID = 1

#: Maps an epoch number to the batches of the epoch. The number of images or texts in a batch is the
#: length of the batch or, if the batch is a tuple, of the tuple's first element.
Epoch = Callable[[int], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """Kind of work, data and options. Only `variant` and `cache` differ between peers."""

    #: "squash", "crop", "fine", "captions", "offsets", "prompt" or "boxes".
    work: str
    #: dtype: "float32" or "uint8" for images, "int64" for texts.
    output: str
    #: Variant of the peer's module.
    variant: str
    batch_size: int
    threads: int
    #: Allow scaled JPEG decoding, as in training.
    scaled: bool = False
    #: JPEG files; the number of files is a multiple of the batch size.
    files: tuple[str, ...] = ()
    #: Boxes (x0, y0, x1, y1) in pixels, per image.
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...] = ()
    #: (height, width) in pixels of each image.
    sizes: tuple[tuple[int, int], ...] = ()
    texts: tuple[str, ...] = ()
    #: Character spans (start, end) of phrases, per text.
    char_spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    #: Path of tokenizer.json.
    tokenizer: str = ""
    #: Repetitions of texts or boxes per epoch.
    repeats: int = 1
    #: Folder for files in the peer's own format.
    cache: str = ""


def fine_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of a fine-stage image, rounded as in the published code."""
    shorter = SHORTER
    if max(height, width) / min(height, width) * shorter > LONGEST:
        shorter = round(LONGEST * min(height, width) / max(height, width))
    if height < width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def padded_side(pixels: int) -> int:
    """Round up to a multiple of `DIVISOR`."""
    return -(-pixels // DIVISOR) * DIVISOR
