"""Attention operations of the model, in Triton, in Rust for CPUs, and in plain PyTorch.

Imported as `fiber.kernels`. Every operation takes and returns ordinary tensors, is differentiable
with respect to its floating-point tensors, and checks its arguments before it runs. Each operation
has its own folder: `op.py` is the public function, `torch_path.py` plain PyTorch, `triton_*.py` the
Triton kernels, `native.py` the Rust extension, and `naive.py` a reference for tests, written as
loops. `runtime/dispatch.py` selects the backend.

Two operations share the name of their folder: `fiber.kernels.window_attention` is the function, but
`from fiber.kernels.window_attention import torch_path` imports from the folder.
"""

from .cross_attention import image_to_text_attention, text_to_image_attention
from .gated_residual import gated_residual
from .runtime.dispatch import active_backend, use_atomics, use_backend
from .window_attention import window_attention

__all__ = [
    "active_backend",
    "gated_residual",
    "image_to_text_attention",
    "text_to_image_attention",
    "use_atomics",
    "use_backend",
    "window_attention",
]
