"""The one rule that picks the code an operation runs, and the override for it."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["triton", "native", "reference"]

#: Oldest NVIDIA architecture that the kernels are compiled and counted for.
OLDEST_CAPABILITY = (8, 0)

_PACKAGE = __name__.removesuffix(".runtime.dispatch")

# What `use_backend` asked for; None leaves the choice to the rule.
_requested: Backend | None = None
# What `use_atomics` asked for.
_atomics = False


class _Restore:
    """Handle of a choice: as a context manager it puts the former one back."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()


def use_backend(name: Backend | None) -> _Restore:
    """Choose what runs from now on, or inside a `with` block.

    Args:
        name: "reference" for plain PyTorch, "native" for the extension's code on a CPU, "triton"
            for the Triton kernels, None for the rule that `active_backend` describes.

    Returns:
        A context manager that puts the former choice back; it may be ignored.

    Raises:
        ValueError: for another name.
        RuntimeError: for "triton" where it is not installed, or where nothing can run its kernels.
    """
    global _requested
    if name is not None and name not in get_args(Backend):
        raise ValueError(f"backend: expected 'triton', 'native', 'reference' or None, got {name!r}")
    if name == "triton":
        if not _has_triton():
            raise RuntimeError("backend 'triton': Triton is not installed; `pip install triton`")
        if not torch.cuda.is_available() and not _interprets():
            raise RuntimeError("backend 'triton': torch finds no GPU here; use 'reference' or None")
    previous = _requested
    _requested = name

    def restore() -> None:
        global _requested
        _requested = previous

    return _Restore(restore)


def use_atomics(enabled: bool) -> _Restore:
    """Let the Triton kernels add gradients of biases up with atomics, or forbid it, as at first.

    They need less memory, and the order of the sums changes from run to run, and so do last bits.

    Args:
        enabled: whether they may, from now on or inside a `with` block.

    Returns:
        A context manager that puts the former choice back; it may be ignored.
    """
    global _atomics
    previous = _atomics
    _atomics = enabled

    def restore() -> None:
        global _atomics
        _atomics = previous

    return _Restore(restore)


def atomics() -> bool:
    """Whether `use_atomics` allows them."""
    return _atomics


def active_backend(tensor: Tensor) -> tuple[Backend, str]:
    """Say which code an operation on `tensor` runs, and why.

    Args:
        tensor: any input of the operation; its device and dtype are looked at.

    Returns:
        The backend's name and the reason in words.
    """
    if _requested is not None:
        return _requested, f"use_backend({_requested!r}) was called"
    if tensor.device.type == "cpu":
        # Its plain loops, for other processors, are slower than torch's products.
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            return "reference", "the processor has neither AVX2 nor AVX-512"
        if tensor.dtype == torch.float32:
            return "native", "the tensor is float32 on the CPU"
        return "reference", f"the tensor is {tensor.dtype} on the CPU; native code takes float32"
    if tensor.device.type != "cuda":
        return "reference", f"the tensor is on {tensor.device.type}; Triton kernels need CUDA"
    if not _has_triton():
        return "reference", "Triton is not installed"
    capability = torch.cuda.get_device_capability(tensor.device)
    if torch.version.hip is None and capability < OLDEST_CAPABILITY:
        found, least = (".".join(map(str, each)) for each in (capability, OLDEST_CAPABILITY))
        return "reference", f"the GPU has compute capability {found}; Triton kernels need {least}"
    return "triton", "the tensor is on CUDA"


def kernel_module(names: Mapping[Backend, str], tensor: Tensor, *shape: Any) -> ModuleType | None:
    """Give the module whose `forward` or `backward` one call runs; None for plain PyTorch.

    A call that the kernels of a GPU, or those that were asked for, do not take is told once, with
    the reason.

    Args:
        names: modules of `fiber.kernels` by backend, each with a `refusal` beside the two.
        tensor: an input of the operation.
        shape: whatever else `refusal` looks at.
    """
    backend, _ = active_backend(tensor)
    if backend == "reference":
        return None
    module = _module(names[backend])
    refusal = module.refusal(tensor, *shape)
    if refusal is None:
        return module
    if backend == "triton" or _requested is not None:
        _tell(names[backend], refusal)
    return None


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", _PACKAGE)


@cache
def _tell(module: str, refusal: str) -> None:
    warnings.warn(f"fiber.kernels.{module}: {refusal}; plain PyTorch runs instead", stacklevel=2)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interprets() -> bool:
    """Whether Triton runs its kernels in Python, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"
