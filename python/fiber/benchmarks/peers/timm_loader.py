"""timm transforms and uint8 collation. Batches are normalized on the CPU instead of on a GPU."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from timm.data.loader import fast_collate
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train

from .task import MEAN, RATIO, SCALE, SIZE, STD, Epoch, PeerTask
from .torch_batches import with_data_loader


def open_peer(task: PeerTask) -> Epoch:
    """Open timm's training or evaluation pipeline."""
    # timm's annotations reject `color_jitter=None`, which disables color jitter, and include the
    # three transforms that only `separate=True` returns.
    transform: Any
    if task.work == "squash":
        transform = transforms_imagenet_eval(
            SIZE, crop_mode="squash", crop_pct=1.0, interpolation="bicubic", use_prefetcher=True
        )
    else:
        transform = transforms_imagenet_train(
            SIZE,
            scale=SCALE,
            ratio=RATIO,
            color_jitter=None,  # pyright: ignore[reportArgumentType]
            interpolation="bicubic",
            use_prefetcher=True,
        )
    batches = with_data_loader(
        lambda index: (transform(Image.open(task.files[index]).convert("RGB")), 0),
        task,
        fast_collate,
    )
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    return lambda number: (images.float().sub_(mean).div_(std) for images, _ in batches(number))
