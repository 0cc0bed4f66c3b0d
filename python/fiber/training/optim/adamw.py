"""AdamW as in the published coarse-stage training."""

from __future__ import annotations

from typing import Any

import torch


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
                state["first"].lerp_(parameter.grad, 1 - beta1)
                state["second"].mul_(beta2).addcmul_(
                    parameter.grad, parameter.grad, value=1 - beta2
                )
                corrections = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                root = state["second"].sqrt().add_(group["eps"])
                parameter.addcdiv_(state["first"], root, value=-group["lr"] * corrections)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
