"""FFCV's loader, on images converted to FFCV's file format as JPEG or raw pixels.

FFCV resizes with OpenCV's INTER_AREA and decodes with the fast, inexact DCT. It cannot resize an
image without keeping the aspect ratio, so "squash" uses a center crop, which reads fewer pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from .task import MEAN, RATIO, SCALE, SIZE, STD, Epoch, PeerTask

# pyright: reportMissingImports=false


class IndexedImages:
    """Map-style dataset of (H, W, 3) uint8 images and dummy labels, for FFCV's writer."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(Image.open(self.files[index]).convert("RGB")), 0


def open_peer(task: PeerTask) -> Epoch:
    """Convert the images (variant "jpg" or "raw") and open the converted file."""
    torch.set_num_threads(1)
    numba.set_num_threads(min(task.threads, numba.config.NUMBA_NUM_THREADS))
    path = Path(task.cache) / f"ffcv-{task.variant}.beton"
    field = RGBImageField(write_mode=task.variant, jpeg_quality=95)
    writer = DatasetWriter(
        str(path), {"image": field, "label": IntField()}, num_workers=1, page_size=_page_size(task)
    )
    writer.from_indexed_dataset(IndexedImages(tuple(task.files)))
    loader = Loader(
        str(path),
        batch_size=task.batch_size,
        num_workers=task.threads,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=True,
        pipelines={"image": _operations(task), "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    return lambda number: (images for images, _ in loader)


def _page_size(task: PeerTask) -> int:
    """Return FFCV's default page size of 8 MiB, or a larger one that every image fits into.

    An image that does not fit into a page crashes a worker of the writer, which then hangs.
    """
    largest = max(height * width * 3 for height, width in task.sizes)
    return max(1 << 23, 1 << largest.bit_length())


def _operations(task: PeerTask) -> list[Any]:
    if task.work == "crop":
        decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE, ratio=RATIO)
        operations: list[Any] = [decoder, RandomHorizontalFlip()]
    else:
        operations = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1.0)]
    if task.output == "float32":
        mean, std = np.array(MEAN) * 255, np.array(STD) * 255
        operations.append(NormalizeImage(mean, std, np.float32))
    return [*operations, ToTensor(), ToTorchImage()]
