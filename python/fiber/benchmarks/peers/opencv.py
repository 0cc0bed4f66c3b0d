"""Hand-written OpenCV pipeline without antialiasing, with a reused batch buffer."""

# pyright: reportMissingImports=false

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from . import task as tasks
from .task import SIZE, Epoch, PeerTask

#: Mean and standard deviation of values in [0, 255], in channel order.
_COARSE = ([m * 255 for m in tasks.MEAN], [s * 255 for s in tasks.STD])
_FINE = (tasks.FINE_MEAN[::-1], tasks.FINE_STD[::-1])
#: Per-thread buffer.
_kept = threading.local()


def open_peer(task: PeerTask) -> Epoch:
    """Start threads that decode, resize, flip and normalize images into a reused batch."""
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(task.threads)
    starts = range(0, len(task.files), task.batch_size)
    kept = np.empty((task.batch_size, 3, SIZE, SIZE), np.float32)

    def coarse(number: int) -> Iterator[np.ndarray]:
        for start in starts:
            files = task.files[start : start + task.batch_size]
            list(pool.map(_coarse, files, kept, [task.work] * len(files)))
            yield kept[: len(files)]

    memory = np.empty(task.batch_size * 3 * tasks.padded_side(tasks.LONGEST) ** 2, np.float32)

    def fine(number: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        for start in starts:
            places = range(start, min(start + task.batch_size, len(task.files)))
            results = list(pool.map(lambda index: _fine_pixels(task, index), places))
            pixels = [pixels for pixels, _ in results]
            height = tasks.padded_side(max(one.shape[0] for one in pixels))
            width = tasks.padded_side(max(one.shape[1] for one in pixels))
            shape = (len(results), 3, height, width)
            batch = memory[: np.prod(shape)].reshape(shape)
            list(pool.map(_normalize, pixels, batch, [_FINE] * len(results)))
            yield batch, [boxes for _, boxes in results]

    return fine if task.work == "fine" else coarse


def _read(path: str, color: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), color)
    if pixels is None:
        raise ValueError(f"{path}: OpenCV cannot decode this file; expected a JPEG image")
    return pixels


def _coarse(path: str, slot: np.ndarray, work: str) -> None:
    pixels = _read(path)
    if work == "crop":
        height, width = pixels.shape[:2]
        part = random.uniform(*tasks.SCALE) ** 0.5
        rows, columns = int(height * part), int(width * part)
        top, left = random.randint(0, height - rows), random.randint(0, width - columns)
        pixels = pixels[top : top + rows, left : left + columns]
    pixels = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    if work == "crop" and random.random() < 0.5:
        pixels = cv2.flip(pixels, 1)
    _normalize(pixels, slot, _COARSE)


def _normalize(pixels: np.ndarray, slot: np.ndarray, numbers: Any) -> None:
    """Normalize (h, w, 3) pixels into the top left corner of a (3, H, W) slot; zero the rest."""
    mean, std = numbers
    height, width = pixels.shape[:2]
    values = _kept.__dict__.get("values")
    if values is None or values.shape != pixels.shape:
        values = _kept.values = np.empty(pixels.shape, np.float32)
    # OpenCV accepts a scalar of four numbers, but its type stubs do not.
    less: Any = (*mean, 0)
    times: Any = (*(1 / s for s in std), 0)
    cv2.subtract(pixels, less, dst=values, dtype=cv2.CV_32F)
    cv2.multiply(values, times, dst=values)
    for channel, plane in enumerate(slot):
        cv2.extractChannel(values, channel, plane[:height, :width])
        plane[height:] = 0
        plane[:height, width:] = 0


def _fine_pixels(task: PeerTask, index: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = _read(task.files[index], cv2.IMREAD_COLOR_BGR)
    boxes = np.asarray(task.boxes[index], np.float32)
    old_height, old_width = pixels.shape[:2]
    height, width = tasks.fine_size(old_height, old_width)
    limit = np.array([old_width, old_height] * 2, np.float32)
    boxes = boxes.clip(0, limit) * (np.array([width, height] * 2, np.float32) / limit)
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.5:
        pixels = cv2.flip(pixels, 1)
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return pixels, boxes
