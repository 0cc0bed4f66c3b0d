"""Gradient clipping."""

from __future__ import annotations

from torch import Tensor, nn

from fiber.training.distributed.full_tensor import full_tensor


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clip the L2 norm of the gradient to `limit`; return the norm before clipping."""
    return full_tensor(nn.utils.clip_grad_norm_(parameters, limit, foreach=True))
