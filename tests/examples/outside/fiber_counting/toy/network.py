"""`ToyNetwork`: convolutions, then a classifier of the number of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fiber_counting.toy.config import PATCH, ToyConfig
from torch import Tensor, nn

from fiber.models.architecture import Network, Part


class ToyBackbone(nn.Module):
    """Image encoder: patches and convolutions, averaged over the image."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.width, PATCH, stride=PATCH)
        self.layers = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 3, padding=1),
            nn.GELU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, 3, H, W) -> (B, width)."""
        return self.layers(self.patches(images)).mean(dim=(2, 3))


class ToyNetwork(Network):
    """Network of the family; it has the ability `CountsObjects` of the task."""

    #: `optim.head_lr_multiplier` is for the head.
    parts: ClassVar[Mapping[str, Part]] = {"backbone": "encoder", "count_head": "head"}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ToyBackbone(config)
        self.count_head = nn.Linear(config.width, config.most_objects + 1)

    def count_logits(self, images: Tensor) -> Tensor:
        """Compute logits of the number of objects: (B, 3, H, W) -> (B, most_objects + 1)."""
        return self.count_head(self.backbone(images))
