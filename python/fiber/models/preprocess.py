"""Image preprocessing of each model at inference."""

from __future__ import annotations

from fiber.config import FiberConfig
from fiber.data import ImageTransform


def inference_transform(model: FiberConfig) -> ImageTransform:
    """What happens to the pictures that a finished model is asked about."""
    if model.stage == "fine":
        detector = model.detector
        return ImageTransform.shorter_side(
            [detector.shorter_side], detector.max_size, channel_order=model.channel_order
        )
    return ImageTransform.squash(model.image_size, channel_order=model.channel_order)
