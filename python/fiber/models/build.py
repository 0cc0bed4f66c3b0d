"""Build a model from its configuration."""

from __future__ import annotations

from fiber.config import FiberConfig
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText


def build_model(config: FiberConfig) -> FiberImageText | FiberDetector:
    """Make a new model: the detector for stage fine, else the image-text model."""
    return FiberDetector(config) if config.stage == "fine" else FiberImageText(config)
