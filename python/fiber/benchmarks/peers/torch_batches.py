"""How the peers on torch make batches: torch's DataLoader, and threads in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .task import Epoch, Task, padded_side


class TorchImages(Dataset):
    """Files, each made into what a batch holds."""

    def __init__(self, load: Callable[[int], Any], count: int) -> None:
        self.load = load
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.load(index)


def with_data_loader(
    load: Callable[[int], Any], task: Task, collate: Callable[[list[Any]], Any] | None = None
) -> Epoch:
    """Load in `task.threads` processes that live on from epoch to epoch."""
    torch.set_num_threads(1)
    loader = DataLoader(
        TorchImages(load, len(task.files)),
        batch_size=task.batch_size,
        num_workers=task.threads,
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=one_thread,
    )
    return lambda number: loader


def with_threads(
    load: Callable[[int], Any], task: Task, collate: Callable[[list[Any]], Any] | None = None
) -> Epoch:
    """Load in `task.threads` threads, two batches ahead."""
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
    """Let a worker's torch use the one core that it is meant for."""
    torch.set_num_threads(1)


def pad_pictures(pictures: Sequence[Tensor]) -> Tensor:
    """Put (3, h, w) pictures into one (B, 3, H, W) of zeros, as the published detector does."""
    height = padded_side(max(picture.shape[1] for picture in pictures))
    width = padded_side(max(picture.shape[2] for picture in pictures))
    batch = pictures[0].new_zeros(len(pictures), 3, height, width)
    for place, picture in zip(batch, pictures, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]].copy_(picture)
    return batch


def pad_pairs(pairs: Iterable[tuple[Tensor, Any]]) -> tuple[Tensor, list[Any]]:
    """Collate (picture, boxes)."""
    pictures, boxes = zip(*pairs, strict=True)
    return pad_pictures(pictures), list(boxes)
