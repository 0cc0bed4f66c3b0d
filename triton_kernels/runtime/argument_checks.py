"""Argument checks shared by all operations."""

from __future__ import annotations

from torch import Tensor


def require(condition: bool, expected: str, named: dict[str, Tensor]) -> None:
    """Raise `ValueError` with the shapes and dtypes of all tensors if `condition` is False."""
    if not condition:
        shapes = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named.items())
        raise ValueError(f"expected {expected}; got {shapes}")


def require_one_device(named: dict[str, Tensor]) -> None:
    """Raise `ValueError` if the tensors are on more than one device."""
    devices = {tensor.device for tensor in named.values()}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        require(False, f"all tensors on the same device, not on {found}", named)


def refuse_to_export(operation: str, **given: bool) -> None:
    """Raise `ValueError` for arguments, True if given, that the backend "export" does not take."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise ValueError(
            f"{operation}: the backend 'export' does not take {', '.join(names)}; expected images"
            " without padding of their own, in evaluation mode"
        )
