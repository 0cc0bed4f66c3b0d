"""Layers whose weights may be read instead of calling them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.parametrize import is_parametrized

#: Attributes of `nn.Module` that hold its hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module) -> bool:
    """Return True if a call of the module is `F.linear` of its weight and bias, and nothing else.

    It is not with an adapter (such as PEFT's LoRA), hooks, a parametrization, a forward method of
    its own, or quantized weights. Then the module must be called. Hooks of all modules, which
    observe, such as those of PyTorch's FLOP counter, do not count.
    """
    return (
        type(module) is nn.Linear
        and not is_hooked(module)
        and not is_parametrized(module)
        and type(module.weight) in (Tensor, nn.Parameter, FakeTensor)
    )


def whole_table(module: nn.Embedding) -> Tensor:
    """Return all rows of a table, for products with them: (rows, D).

    The module is called if it has an adapter, hooks or a parametrization.
    """
    if type(module) is nn.Embedding and not is_hooked(module) and not is_parametrized(module):
        return module.weight
    return module(torch.arange(len(module.weight), device=module.weight.device))


def is_hooked(module: nn.Module) -> bool:
    """Return True if a call of the module runs hooks, or a forward method of its own."""
    return "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS)
