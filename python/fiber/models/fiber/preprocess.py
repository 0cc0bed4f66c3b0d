"""Image preprocessing for FIBER models at inference."""

from __future__ import annotations

from fiber.config import FiberConfig
from fiber.data import ImageTransform


def coarse_transform(config: FiberConfig) -> ImageTransform:
    """Build the transform that resizes images to squares of `image_size`."""
    return ImageTransform.squash(config.image_size, channel_order=config.channel_order)


def fine_transform(config: FiberConfig) -> ImageTransform:
    """Build the transform that resizes images to the detector's sizes, keeping the aspect ratio."""
    detector = config.detector
    return ImageTransform.shorter_side(
        [detector.shorter_side], detector.max_size, channel_order=config.channel_order
    )
