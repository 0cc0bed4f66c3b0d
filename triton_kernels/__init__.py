"""Attention operations of the model: Triton, native code on a CPU, and plain PyTorch.

Imported as `fiber.kernels`. Every operation takes and returns ordinary tensors, is differentiable
in all of its tensor arguments, and checks that they fit together before it runs. There is one
folder for each operation: `op.py` is the public function, `torch_path.py` plain PyTorch,
`triton_*.py` the Triton kernels, `native.py` the extension's code, `naive.py` the definition as
loops, which tests compare with. `runtime/dispatch.py` has the rule that picks what runs.

Two operations have the name of their folder. `fiber.kernels.window_attention` is the function;
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
