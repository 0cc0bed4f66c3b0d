"""Box transforms in vectorized NumPy."""

from __future__ import annotations

import numpy as np

from .task import Epoch, PeerTask, fine_size


def open_peer(task: PeerTask) -> Epoch:
    """Clip, resize and flip the boxes of each image."""
    images = [np.asarray(boxes, np.float32) for boxes in task.boxes]

    def moved(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        new_height, new_width = fine_size(height, width)
        limit = np.array([width, height, width, height], np.float32)
        scale = np.array([new_width, new_height, new_width, new_height], np.float32) / limit
        boxes = np.minimum(np.maximum(boxes, 0), limit) * scale
        return np.stack(
            (new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]), axis=1
        )

    return lambda number: [[moved(b, *size) for b, size in zip(images, task.sizes, strict=True)]]
