"""Attention operations of the model: one door, plain PyTorch behind it.

Imported as `fiber.kernels`. Every operation takes and returns ordinary tensors, is differentiable
in all of its tensor arguments, and checks that they fit together before it runs. `reference.py`
holds the operations in plain PyTorch; `dispatch.py` holds the rule that picks what runs.
"""

from .dispatch import active_backend, use_atomics, use_backend
from .operations import (
    gated_residual,
    image_to_text_attention,
    text_to_image_attention,
    window_attention,
)

__all__ = [
    "active_backend",
    "gated_residual",
    "image_to_text_attention",
    "text_to_image_attention",
    "use_atomics",
    "use_backend",
    "window_attention",
]
