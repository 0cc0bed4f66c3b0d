"""Batching for torch peers: DataLoader, or threads in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .task import Epoch, PeerTask, padded_side


class LoadedImages(Dataset):
    """Map-style dataset over a loading function."""

    def __init__(self, load: Callable[[int], Any], count: int) -> None:
        self.load, self.count = load, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.load(index)


def with_data_loader(
    load: Callable[[int], Any], task: PeerTask, collate: Callable[[list[Any]], Any] | None = None
) -> Epoch:
    """Load samples in `task.threads` persistent worker processes."""
    torch.set_num_threads(1)
    loader = DataLoader(
        LoadedImages(load, len(task.files)),
        batch_size=task.batch_size,
        num_workers=task.threads,
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=one_thread,
    )
    return lambda number: loader


def with_threads(
    load: Callable[[int], Any], task: PeerTask, collate: Callable[[list[Any]], Any] | None = None
) -> Epoch:
    """Load samples in `task.threads` threads, prefetching two batches."""
    collate = collate or torch.stack
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(task.threads, initializer=torch.set_num_threads, initargs=(1,))

    def epoch(number: int) -> Iterator[Any]:
        waiting: deque[Any] = deque()
        batch: list[Any] = []
        for index in range(len(task.files) + 2 * task.batch_size):
            if index < len(task.files):
                waiting.append(pool.submit(load, index))
            if index >= 2 * task.batch_size:
                batch.append(waiting.popleft().result())
            if len(batch) == task.batch_size:
                yield collate(batch)
                batch = []
        if batch:
            yield collate(batch)

    return epoch


def one_thread(worker: int) -> None:
    """Limit torch to one thread in a worker."""
    torch.set_num_threads(1)


def pad_images(images: Sequence[Tensor]) -> Tensor:
    """Zero-pad (3, h, w) images into a (B, 3, H, W) batch, as in the published detector."""
    height = padded_side(max(image.shape[1] for image in images))
    width = padded_side(max(image.shape[2] for image in images))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch


def pad_pairs(pairs: Iterable[tuple[Tensor, Any]]) -> tuple[Tensor, list[Any]]:
    """Collate (image, boxes) pairs."""
    images, boxes = zip(*pairs, strict=True)
    return pad_images(images), list(boxes)
