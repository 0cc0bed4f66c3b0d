"""Published FIBER pipelines, with Pillow, torchvision v1 transforms and DataLoader.

The coarse stage uses the `albef` transforms of FIBER (Dou et al., 2022). The transforms and BoxList
of the fine stage come from maskrcnn-benchmark via GLIP.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from .task import FINE_MEAN, FINE_STD, MEAN, RATIO, SCALE, SIZE, STD, Epoch, PeerTask, fine_size
from .torch_batches import pad_pairs, with_data_loader


def open_peer(task: PeerTask) -> Epoch:
    """Open the pipeline of the coarse or the fine stage."""
    if task.work == "boxes":
        return _boxes_only(task)
    if task.work == "fine":
        return with_data_loader(lambda index: _fine(task, index), task, pad_pairs)
    transform = coarse_transform(task.work)
    return with_data_loader(lambda index: transform(read(task.files[index])), task)


def read(path: str) -> Image.Image:
    """Decode an image to RGB, as the published code does."""
    return Image.open(path).convert("RGB")


def coarse_transform(work: str) -> Callable[[Image.Image], Tensor]:
    """Return the transform of pre-training, or of fine-tuning without RandAugment."""
    bicubic = InterpolationMode.BICUBIC
    if work == "squash":
        first = [T.Resize((SIZE, SIZE), interpolation=bicubic)]
    else:
        first = [
            T.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO, interpolation=bicubic),
            T.RandomHorizontalFlip(),
        ]
    return T.Compose([*first, T.ToTensor(), T.Normalize(MEAN, STD)])


def _fine(task: PeerTask, index: int) -> tuple[Tensor, Tensor]:
    """Resize, flip, convert to BGR in [0, 255] and normalize an image, and transform its boxes."""
    image: Any = read(task.files[index])
    boxes = torch.tensor(task.boxes[index])
    height, width = fine_size(image.height, image.width)
    boxes = clip(boxes, image.height, image.width)
    boxes = resize(boxes, (image.height, image.width), (height, width))
    image = F.resize(image, [height, width])
    if random.random() < 0.5:
        image = F.hflip(image)
        boxes = mirror(boxes, width)
    values = F.to_tensor(image)[[2, 1, 0]] * 255
    return F.normalize(values, list(FINE_MEAN[::-1]), list(FINE_STD[::-1])), boxes


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes with inclusive corners, and drop empty ones."""
    boxes[:, 0].clamp_(min=0, max=width - 1)
    boxes[:, 1].clamp_(min=0, max=height - 1)
    boxes[:, 2].clamp_(min=0, max=width - 1)
    boxes[:, 3].clamp_(min=0, max=height - 1)
    return boxes[(boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])]


def resize(boxes: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Scale boxes from one image size (height, width) to another."""
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    x0, y0, x1, y1 = boxes.split(1, dim=-1)
    return torch.cat((x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y), dim=-1)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes with inclusive corners horizontally."""
    x0, y0, x1, y1 = boxes.split(1, dim=-1)
    return torch.cat((width - x1 - 1, y0, width - x0 - 1, y1), dim=-1)


def _boxes_only(task: PeerTask) -> Epoch:
    """Clip, resize and flip the boxes of each image."""
    torch.set_num_threads(1)
    images = [torch.tensor(boxes) for boxes in task.boxes]

    def epoch(number: int) -> list[list[Tensor]]:
        found = []
        for (height, width), boxes in zip(task.sizes, images, strict=True):
            new = fine_size(height, width)
            moved = resize(clip(boxes.clone(), height, width), (height, width), new)
            found.append(mirror(moved, new[1]))
        return [found]

    return epoch
