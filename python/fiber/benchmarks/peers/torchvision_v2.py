"""torchvision v2 transforms with Pillow's or torchvision's decoder, in processes or threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms.v2 as T
from PIL import Image
from torch import Tensor
from torchvision import io, tv_tensors
from torchvision.transforms import InterpolationMode

from . import task as tasks
from .task import SIZE, Epoch, PeerTask
from .torch_batches import pad_pairs, with_data_loader, with_threads


def open_peer(task: PeerTask) -> Epoch:
    """Open the pipeline of the task's variant.

    Variants "pil" (Pillow's decoder) and "io" (torchvision's decoder) use DataLoader; "threads"
    uses torchvision's decoder in threads of one process.
    """
    if task.work == "boxes":
        return _boxes_only(task)
    batches = with_threads if task.variant == "threads" else with_data_loader
    if task.work == "fine":
        return batches(_fine(task), task, pad_pairs)
    return batches(_coarse(task), task)


def decoded(path: str) -> Any:
    """Decode a file to (3, H, W) uint8 RGB."""
    return io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)


def _coarse(task: PeerTask) -> Callable[[int], Any]:
    bicubic = InterpolationMode.BICUBIC
    with_pillow = task.variant == "pil"
    if task.work == "squash":
        steps: list[Any] = [T.Resize((SIZE, SIZE), interpolation=bicubic, antialias=True)]
    else:
        steps = [
            T.RandomResizedCrop(
                SIZE, tasks.SCALE, tasks.RATIO, interpolation=bicubic, antialias=True
            ),
            T.RandomHorizontalFlip(),
        ]
    if with_pillow:
        steps.append(T.ToImage())
    if with_pillow or task.output == "float32":
        steps += [T.ToDtype(torch.float32, scale=True), T.Normalize(tasks.MEAN, tasks.STD)]
    transform = T.Compose(steps)

    def load(index: int) -> Any:
        path = task.files[index]
        return transform(Image.open(path).convert("RGB") if with_pillow else decoded(path))

    return load


def _fine(task: PeerTask) -> Callable[[int], tuple[Tensor, Tensor]]:
    geometry = T.Compose(
        [
            T.ClampBoundingBoxes(),
            T.Resize(tasks.SHORTER, max_size=tasks.LONGEST, antialias=True),
            T.RandomHorizontalFlip(),
        ]
    )
    values = T.Compose(
        [
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(
                [m / 255 for m in tasks.FINE_MEAN[::-1]], [s / 255 for s in tasks.FINE_STD[::-1]]
            ),
        ]
    )

    def load(index: int) -> tuple[Tensor, Tensor]:
        image = decoded(task.files[index])
        boxes = _boxes(task.boxes[index], (image.shape[1], image.shape[2]))
        image, boxes = geometry(tv_tensors.Image(image), boxes)
        # The layout is channels-last up to here; normalization is faster with channels first.
        return values(image.flip(0).contiguous()), boxes

    return load


def _boxes(boxes: Any, size: Sequence[int]) -> Any:
    return tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
        torch.tensor(boxes), format="XYXY", canvas_size=(size[0], size[1])
    )


def _boxes_only(task: PeerTask) -> Epoch:
    """Clip, resize and flip the boxes of each image."""
    torch.set_num_threads(1)
    images = [_boxes(boxes, size) for boxes, size in zip(task.boxes, task.sizes, strict=True)]
    resize, flip = T.Resize(tasks.SHORTER, max_size=tasks.LONGEST), T.RandomHorizontalFlip(p=1.0)
    transform = T.Compose([T.ClampBoundingBoxes(), resize, flip])
    return lambda number: [[transform(boxes) for boxes in images]]
