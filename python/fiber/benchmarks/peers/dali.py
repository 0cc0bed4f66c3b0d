"""NVIDIA DALI on the CPU, with its decoder and operators in `task.threads` threads."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from . import task as tasks
from .task import SIZE, Epoch, PeerTask


def open_peer(task: PeerTask) -> Epoch:
    """Build the pipeline for the task."""
    pipeline = pipeline_def(
        batch_size=task.batch_size,
        num_threads=task.threads,
        device_id=None,
        prefetch_queue_depth=2,
        seed=1,
    )(_fine if task.work == "fine" else _coarse)(task)
    pipeline.build()
    batches = len(task.files) // task.batch_size

    def epoch(number: int) -> Iterator[Any]:
        for _ in range(batches):
            # This is a view of the batch, whose memory DALI reuses for a later batch.
            images, *boxes = pipeline.run()
            array = np.asarray(images.as_tensor())
            yield (array, *boxes) if boxes else array

    return epoch


def _encoded(task: PeerTask) -> Any:
    encoded, _ = fn.readers.file(files=list(task.files), random_shuffle=False)
    return encoded


def _coarse(task: PeerTask) -> Any:
    encoded, mirror = _encoded(task), 0
    if task.work == "squash":
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    else:
        # Decode only the crop, which is fastest in DALI.
        images = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=list(tasks.SCALE),
            random_aspect_ratio=list(tasks.RATIO),
        )
        mirror = fn.random.coin_flip(probability=0.5)
    images = fn.resize(
        images, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_CUBIC, antialias=True
    )
    floats = task.output == "float32"
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT if floats else types.UINT8,
        output_layout="CHW",
        mean=[m * 255 for m in tasks.MEAN] if floats else [0.0] * 3,
        std=[s * 255 for s in tasks.STD] if floats else [1.0] * 3,
        mirror=mirror,
    )


def _fine(task: PeerTask) -> Any:
    """Resize, flip and normalize images. Boxes are in normalized coordinates, as DALI expects."""

    def next_boxes() -> Iterator[list[np.ndarray]]:
        shares = [_normalized_boxes(task, index) for index in range(len(task.files))]
        while True:
            for start in range(0, len(shares), task.batch_size):
                yield shares[start : start + task.batch_size]

    boxes = fn.external_source(source=next_boxes(), dtype=types.FLOAT, ndim=2)
    mirror = fn.random.coin_flip(probability=0.5)
    images = fn.decoders.image(_encoded(task), device="cpu", output_type=types.BGR)
    images = fn.resize(
        images,
        mode="not_smaller",
        size=tasks.SHORTER,
        max_size=tasks.LONGEST,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=list(tasks.FINE_MEAN[::-1]),
        std=list(tasks.FINE_STD[::-1]),
        mirror=mirror,
    )
    images = fn.pad(images, axis_names="HW", align=[tasks.DIVISOR, tasks.DIVISOR], fill_value=0)
    return images, fn.bb_flip(boxes, ltrb=True, horizontal=mirror)


def _normalized_boxes(task: PeerTask, index: int) -> np.ndarray:
    height, width = task.sizes[index]
    scale = np.array([width, height, width, height], np.float32)
    return np.clip(np.asarray(task.boxes[index], np.float32) / scale, 0, 1)
