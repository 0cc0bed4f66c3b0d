"""Registration of operations and their gradients with `torch.library`.

`torch.compile` and `torch.export` treat each operation as a single call, inside which
`dispatch.kernel_module` selects the backend. Backward passes are separate operations, so that they
are compiled as well. Operations take only tensors and numbers; names under `torch.ops.fiber` are
private.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import Function
from torch.nn import Parameter

# `torch.library.custom_op` wraps every call in several layers of Python, which take as long as
# attention over a small map on a CPU.
LIBRARY = torch.library.Library("fiber", "FRAGMENT")
#: Implementation of each operation.
_BODIES: dict[OpOverload, Callable[..., Any]] = {}


def operation(schema: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Return a decorator that registers an operation for all devices, without gradients."""

    def register(function: Callable[..., Any]) -> OpOverload:
        name = function.__name__
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        operation = getattr(torch.ops.fiber, name).default
        _BODIES[operation] = function
        return operation

    return register


def below_autograd(operation: OpOverload, arguments: tuple[Any, ...]) -> Any:
    """Run an operation below autograd.

    Bypasses torch's dispatcher, which takes as long as attention on small inputs, unless a dispatch
    mode or tensor subclass is active (as in tracing or with fake tensors).
    """
    dispatched = torch._C._len_torch_dispatch_stack() > 0 or any(
        isinstance(each, Tensor) and type(each) not in (Tensor, Parameter) for each in arguments
    )
    if not dispatched:
        return _BODIES[operation](*arguments)
    with torch._C._AutoDispatchBelowAutograd():  # As in `custom_op`.
        return operation(*arguments)


def differentiate(operation: OpOverload, function: type[Function]) -> None:
    """Register the autograd function of an operation."""

    def run(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(each, Tensor) and each.requires_grad for each in arguments
        ):
            return function.apply(*arguments)
        return below_autograd(operation, arguments)

    LIBRARY.impl(operation._schema.name.split("::")[1], run, "Autograd")
