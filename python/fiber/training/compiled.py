"""torch.compile in training steps (`train.compile`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Backend of torch.compile.
BACKEND = "inductor"
#: Methods of a backbone that a step calls, of those that the family has.
METHODS = (
    "image_prefix",
    "text_prefix",
    "complete_image",
    "complete_text",
    "fuse",
    "decode_text",
)


class CompiledBackbone:
    """Compiled methods of a backbone, each without graph breaks, for use in training steps only.

    The heads and the losses around them stay eager: they are small, and losses call collectives.
    Evaluation calls the same methods with many more shapes, so it keeps the eager ones.

    A backward pass of a compiled method gives all of its gradients at once, so buckets of gradients
    are reduced between methods, not between blocks.
    """

    def __init__(self, backbone: nn.Module) -> None:
        """Wrap the methods; each is compiled when a step calls it with a new kind of arguments."""
        self.backbone = backbone
        self._methods: dict[str, Callable[..., Any]] = {
            name: torch.compile(getattr(backbone, name), backend=BACKEND)
            for name in METHODS
            if hasattr(backbone, name)
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the backbone's methods be the compiled ones."""
        for name, method in self._methods.items():
            setattr(self.backbone, name, method)
        try:
            yield
        finally:
            for name in self._methods:
                delattr(self.backbone, name)


def check_compile(device: torch.device) -> None:
    """Check that torch.compile works on a device, by compiling a small function.

    Raises:
        ValueError: if it does not, for example without a C++ compiler or without Triton.
    """
    inputs = torch.ones(2, device=device, requires_grad=True)
    try:
        torch.compile(lambda tensor: (tensor.sin() + 1).sum(), backend=BACKEND)(inputs).backward()
    except Exception as error:  # Backends raise errors of their own.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"train.compile: torch.compile does not work on {device.type} here ({reason}); set"
            " train.compile=false"
        ) from error
