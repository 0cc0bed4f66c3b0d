"""webdataset: images from tar files, with the published transform and DataLoader."""

# Pyright does not find the types of this package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from pathlib import Path

import torch
import webdataset
from torch.utils.data import DataLoader

from .published import coarse_transform
from .task import Epoch, PeerTask
from .torch_batches import one_thread


def open_peer(task: PeerTask) -> Epoch:
    """Write one shard per worker, and open the shards."""
    torch.set_num_threads(1)
    # Write only full batches to every shard, so that no batch is short.
    batches = len(task.files) // task.batch_size
    workers = min(task.threads, batches)
    shards = []
    for worker in range(workers):
        start = worker * batches // workers * task.batch_size
        stop = (worker + 1) * batches // workers * task.batch_size
        path = Path(task.cache) / f"webdataset-{worker}.tar"
        with webdataset.TarWriter(str(path)) as tar:
            for index in range(start, stop):
                data = Path(task.files[index]).read_bytes()
                tar.write({"__key__": f"{index:06d}", "jpg": data})
        shards.append(str(path))
    transform = coarse_transform(task.work)
    images = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg")
        .map(lambda sample: transform(sample[0]))
        .batched(task.batch_size, collation_fn=torch.stack)
    )
    loader = DataLoader(
        images,
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        worker_init_fn=one_thread,
    )
    return lambda number: loader
