"""The one rule that picks the code an operation runs, and the override for it."""

from __future__ import annotations

from types import TracebackType
from typing import Literal, get_args

from torch import Tensor

Backend = Literal["triton", "reference"]

#: Operations that have a Triton kernel in this version.
TRITON_OPERATIONS: frozenset[str] = frozenset()

# What `use_backend` asked for; None leaves the choice to the rule.
_requested: Backend | None = None


class _Restore:
    """Handle of `use_backend`: as a context manager it puts the former choice back."""

    def __init__(self, previous: Backend | None) -> None:
        self._previous: Backend | None = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _requested
        _requested = self._previous


def use_backend(name: Backend | None) -> _Restore:
    """Choose what runs from now on, or inside a `with` block.

    Args:
        name: "reference" for plain PyTorch, "triton" for the Triton kernels, None for the rule
            that `active_backend` describes.

    Returns:
        A context manager that puts the former choice back; it may be ignored.

    Raises:
        ValueError: for another name.
        RuntimeError: for "triton" where this version has no Triton kernel.
    """
    global _requested
    if name is not None and name not in get_args(Backend):
        raise ValueError(f"backend: expected 'triton', 'reference' or None, got {name!r}")
    if name == "triton" and not TRITON_OPERATIONS:
        raise RuntimeError(
            "backend 'triton': no Triton kernel is built into this version of fiber.kernels;"
            " use 'reference' or None"
        )
    previous = _requested
    _requested = name
    return _Restore(previous)


def active_backend(tensor: Tensor) -> tuple[Backend, str]:
    """Say which code an operation on `tensor` runs, and why.

    Args:
        tensor: any input of the operation; only its device is looked at.

    Returns:
        The backend's name and the reason in words.
    """
    if _requested is not None:
        return _requested, f"use_backend({_requested!r}) was called"
    if tensor.device.type != "cuda":
        return "reference", f"the tensor is on {tensor.device.type}; Triton kernels need CUDA"
    if not TRITON_OPERATIONS:
        return "reference", "no Triton kernel is built into this version"
    return "triton", "the tensor is on CUDA"
