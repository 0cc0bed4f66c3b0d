"""Initialization of linear layers; models without initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Standard deviation of the published init, and embed dim of the published text encoder.
PUBLISHED_STD = 0.02
PUBLISHED_WIDTH = 768


def fan_in_std(inputs: int) -> float:
    """Return the std that gives the same output variance as the published init with 768 inputs."""
    return PUBLISHED_STD * (PUBLISHED_WIDTH / inputs) ** 0.5


def init_linear(module: nn.Module, *, fan_in: bool) -> None:
    """Initialize all linear layers with zero biases and random weights.

    The std of the weights is `fan_in_std` if `fan_in` is True, and 0.02 otherwise.

    With the published N(0, 0.02), an encoder with embed dim 128 barely changes its tokens. With
    variance 1 / inputs (about twice the std of `fan_in_std`), attention averages the tokens of a
    text until they are identical, since the text encoder normalizes after each residual.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            std = fan_in_std(part.in_features) if fan_in else PUBLISHED_STD
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def standardize_output(layer: nn.Linear, inputs: Tensor) -> None:
    """Rescale a linear layer so that its outputs have standard deviation 1, then center each.

    Outputs that are almost the same for all inputs stay small after that: one that is scaled to
    vary by 1 would take many steps to change.

    Args:
        layer: layer with a bias.
        inputs: (N, D) inputs.

    Source: data-dependent initialization (Krähenbühl et al. 2016), which also scales each output.
    """
    with torch.no_grad():
        outputs = layer(inputs)
        std = outputs.std().clamp(min=1e-6)
        layer.weight.div_(std)
        layer.bias.sub_(outputs.mean(0)).div_(std)


class WithoutInit(TorchFunctionMode):
    """Context in which `torch.nn.init` leaves tensors as they are, for models on the meta device.

    There, random numbers come from Python code of torch that imports its compiler, which takes
    longer than to load a small model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        is_init = getattr(func, "__module__", None) == nn.init.__name__
        if is_init or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def allocate(model: nn.Module, device: torch.device | str) -> None:
    """Move a model from the meta device to another, with arbitrary values.

    `Module.to_empty` does the same with `torch.empty_like`, which from the meta device is Python
    code of torch that imports SymPy.
    """
    model._apply(
        lambda tensor: torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )
    )
