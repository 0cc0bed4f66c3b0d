"""Choice of the backend of an operation, and its override."""

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

#: Oldest NVIDIA compute capability that the kernels are compiled for in tests.
OLDEST_CAPABILITY = (8, 0)

_PACKAGE = __name__.removesuffix(".runtime.dispatch")

# Set by `use_backend`; None: the rule of `active_backend`.
_requested: Backend | None = None
# Set by `use_atomics`.
_atomics = False


class _Restore:
    """Context manager that restores a previous setting on exit."""

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
    """Set the backend, for the process or inside a `with` block.

    Args:
        name: "reference" for plain PyTorch, "native" for the extension's code on a CPU, "triton"
            for the Triton kernels, None for the default rule; see `active_backend`.

    Returns:
        A context manager that restores the previous backend; it may be ignored.

    Raises:
        ValueError: for another name.
        RuntimeError: for "triton" if it is not installed or there is no GPU.
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
    """Allow the Triton kernels to accumulate gradients of biases with atomics. Off by default.

    Atomics need less memory, but the order of the sums, and so their last bits, change from run to
    run.

    Args:
        enabled: setting for the process, or inside a `with` block.

    Returns:
        A context manager that restores the previous setting; it may be ignored.
    """
    global _atomics
    previous = _atomics
    _atomics = enabled

    def restore() -> None:
        global _atomics
        _atomics = previous

    return _Restore(restore)


def atomics() -> bool:
    """Return whether `use_atomics` allows atomics."""
    return _atomics


def active_backend(tensor: Tensor) -> tuple[Backend, str]:
    """Return the backend of an operation on `tensor`, and the reason.

    Args:
        tensor: any input of the operation; its device and dtype count.

    Returns:
        The backend's name and the reason as text.
    """
    if _requested is not None:
        return _requested, f"use_backend({_requested!r}) was called"
    if tensor.device.type == "cpu":
        # The extension's scalar loops, for other processors, are slower than torch.
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
    """Return the module whose `forward` or `backward` runs a call; None for plain PyTorch.

    Warns once, with the reason, if Triton or the backend set by `use_backend` does not take a call.

    Args:
        names: modules of `fiber.kernels` by backend, with functions forward, backward and refusal.
        tensor: an input of the operation.
        shape: other arguments of `refusal`.
    """
    backend, _ = active_backend(tensor)
    if backend == "reference":
        return None
    module = _module(names[backend])
    refusal = module.refusal(tensor, *shape)
    if refusal is None:
        return module
    if backend == "triton" or _requested is not None:
        _warn_once(names[backend], refusal)
    return None


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", _PACKAGE)


@cache
def _warn_once(module: str, refusal: str) -> None:
    warnings.warn(f"fiber.kernels.{module}: {refusal}; plain PyTorch runs instead", stacklevel=2)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _interprets() -> bool:
    """Check whether Triton interprets kernels in Python, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"
