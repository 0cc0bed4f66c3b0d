"""AdamW: PyTorch's on sharded parameters, and that of the published coarse-stage training."""

from __future__ import annotations

from typing import Any

import torch

from fiber.training.distributed.full_tensor import local_rows


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, which updates the part of sharded parameters that this rank holds.

    PyTorch works out how each list of DTensors is sharded, which takes seconds in a first step. The
    state is sharded like the parameters.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options, fused=True)

    def _init_group(self, group: dict[str, Any], *arguments: Any) -> Any:
        """Fill the lists that PyTorch's update gets, with parts in place of DTensors."""
        found = super()._init_group(group, *arguments)
        for argument in arguments:
            if isinstance(argument, list):
                argument[:] = map(local_rows, argument)
        return found


class PublishedAdamW(torch.optim.Optimizer):
    """AdamW as in the published coarse-stage training.

    Unlike PyTorch's AdamW, this adds eps to the root of the second moment before the bias
    correction, and applies weight decay after the update. Every group needs a `weight_decay`.

    Source: Loshchilov and Hutter 2019, as implemented in transformers 4.6.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["first"] = torch.zeros_like(parameter)
                    state["second"] = torch.zeros_like(parameter)
                state["step"] += 1
                gradient, first, second, own = map(
                    local_rows, (parameter.grad, state["first"], state["second"], parameter)
                )
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                corrections = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                root = second.sqrt().add_(group["eps"])
                own.addcdiv_(first, root, value=-group["lr"] * corrections)
                own.mul_(1 - group["lr"] * group["weight_decay"])
