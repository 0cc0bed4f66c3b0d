"""Backend selection."""

from __future__ import annotations

import importlib
import os
import warnings
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["triton", "native", "reference", "export"]

#: Lowest NVIDIA compute capability for which the tests compile the kernels.
OLDEST_CAPABILITY = (8, 0)
#: Oldest and newest Triton (major, minor) with which the tests run and compile the kernels.
TESTED_TRITON = ((3, 5), (3, 9))

_PACKAGE = __name__.removesuffix(".runtime.dispatch")
#: Module of each backend of registered operations in the folder of an operation; "export" comes
#: before those (`is_exporting`).
_MODULES = {"triton": "triton_launch", "native": "native", "reference": "torch_path"}

#: Set by `use_backend` (None: the default rule) and `use_atomics`.
_settings: dict[str, Any] = {"backend": None, "atomics": False}


def _set(name: str, value: Any) -> ExitStack:
    """Change a setting, and return a context manager that restores the old value on exit."""
    restore = ExitStack()
    restore.callback(_settings.__setitem__, name, _settings[name])
    _settings[name] = value
    return restore


def use_backend(name: Backend | None) -> ExitStack:
    """Set the backend for the whole process, or inside a `with` block.

    Args:
        name: "reference" for plain PyTorch, "native" for Rust on CPUs, "triton" for the Triton
            kernels, "export" for plain tensor operations that `torch.export` and exporters of
            other formats trace, on maps of any size, or None for the default rule; see
            `active_backend`.

    Returns:
        A context manager that restores the previous backend on exit; may be ignored.

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if `name` is "triton", and Triton is not installed or there is no GPU.
    """
    if name is not None and name not in get_args(Backend):
        names = ", ".join(map(repr, get_args(Backend)))
        raise ValueError(f"backend: expected {names} or None, got {name!r}")
    if name == "triton":
        if triton_version() is None:
            raise RuntimeError("Triton is not installed; run `pip install triton`")
        # The interpreter runs kernels in Python, on any device.
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError("backend 'triton': torch found no GPU; use 'reference' or None")
    return _set("backend", name)


def use_atomics(enabled: bool) -> ExitStack:
    """Allow the Triton kernels to accumulate bias gradients with atomics. Off by default.

    Atomics need less memory, but the summation order varies between runs, and with it the last bits
    of the gradients.

    Args:
        enabled: True to allow atomics, for the whole process or inside a `with` block.

    Returns:
        A context manager that restores the previous setting on exit; may be ignored.
    """
    return _set("atomics", enabled)


def atomics() -> bool:
    """Return the current setting of `use_atomics`."""
    return _settings["atomics"]


def is_exporting() -> bool:
    """Return True within `use_backend("export")`, where operations must be traced to the inside."""
    return _settings["backend"] == "export"


def active_backend(tensor: Tensor) -> tuple[Backend, str]:
    """Return the backend that runs operations on `tensor`, and the reason.

    Args:
        tensor: any input of the operation; only its device and dtype matter.
    """
    requested = _settings["backend"]
    if requested is not None:
        return requested, f"use_backend({requested!r}) was called"
    if tensor.device.type == "cpu":
        # On other processors, the extension runs scalar loops, which are slower than torch.
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            return "reference", "the processor has neither AVX2 nor AVX-512"
        if tensor.dtype == torch.float32:
            return "native", "the tensor is float32 on the CPU"
        return "reference", f"the tensor is {tensor.dtype} on the CPU; native code requires float32"
    if tensor.device.type != "cuda":
        return "reference", f"the tensor is on {tensor.device.type}; Triton kernels need CUDA"
    if reason := untested_triton():
        return "reference", reason
    capability = torch.cuda.get_device_capability(tensor.device)
    if torch.version.hip is None and capability < OLDEST_CAPABILITY:
        found, least = (".".join(map(str, each)) for each in (capability, OLDEST_CAPABILITY))
        return "reference", f"the GPU has compute capability {found}; Triton kernels need {least}"
    return "triton", "the tensor is on CUDA"


def kernel_module(operation: str, tensor: Tensor, *shape: Any) -> ModuleType:
    """Return the backend module whose `forward` and `backward` handle a call.

    Warns once, with the reason, if Triton or the backend set by `use_backend` cannot run the call.

    Args:
        operation: folder name of the operation in `fiber.kernels`.
        tensor: first argument of the backend's `refusal`, which rejects unsupported calls.
        shape: remaining arguments of `refusal`.
    """
    backend, _ = active_backend(tensor)
    module = _module(operation, backend)
    if backend == "reference":
        return module
    refusal = module.refusal(tensor, *shape)
    if refusal is None:
        return module
    if backend == "triton" or _settings["backend"] is not None:
        _warn_once(f"{operation}.{_MODULES[backend]}", refusal)
    return _module(operation, "reference")


@cache
def _module(operation: str, backend: Backend) -> ModuleType:
    return importlib.import_module(f".{operation}.{_MODULES[backend]}", _PACKAGE)


@cache
def _warn_once(module: str, refusal: str) -> None:
    warnings.warn(f"fiber.kernels.{module}: {refusal}; falling back to PyTorch", stacklevel=2)


@cache
def triton_version() -> str | None:
    """Return the version of the installed Triton, or None if it is not installed."""
    # AMD's builds of Triton have distribution names of their own.
    if find_spec("triton") is None:
        return None
    return importlib.import_module("triton").__version__


def untested_triton() -> str | None:
    """Return why the installed Triton is not used by default, or None if it is."""
    version = triton_version()
    if version is None:
        return "Triton is not installed"
    oldest, newest = TESTED_TRITON
    if oldest <= tuple(map(int, version.split(".")[:2])) <= newest:
        return None
    tested = " to ".join(f"{major}.{minor}" for major, minor in TESTED_TRITON)
    return f"Triton {version} is not among the tested versions ({tested})"
