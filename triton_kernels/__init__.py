"""Attention operations of the model, implemented in Triton, Rust (for CPUs) and plain PyTorch.

Imported as `fiber.kernels`. Every operation takes and returns ordinary tensors, is differentiable
with respect to its floating-point tensors, and checks its arguments before it runs. Each operation
has its own folder: `op.py` has the public function, `torch_path.py` the PyTorch backend,
`triton_*.py` the Triton kernels, `native.py` the calls to the Rust extension, `export.py` plain
tensor operations for tracing, and `naive.py` a loop-based reference for tests.
`runtime/dispatch.py` selects the backend.

Two operations have the same name as their folder. For example, `fiber.kernels.window_attention` is
the function, but `from fiber.kernels.window_attention import torch_path` imports from the folder.
"""

from .cross_attention import image_to_text_attention, text_to_image_attention
from .gated_residual import gated_residual
from .runtime.dispatch import active_backend, is_exporting, use_atomics, use_backend
from .window_attention import window_attention

__all__ = [
    "active_backend",
    "gated_residual",
    "image_to_text_attention",
    "is_exporting",
    "text_to_image_attention",
    "use_atomics",
    "use_backend",
    "window_attention",
]
