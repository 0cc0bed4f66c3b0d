"""Modules that FSDP2 gathers as a unit: blocks of the encoders and the fusion, and heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def shard_units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules that are always called as a whole, in the order of the model.

    These are the modules of this package that have a `forward` and no list of blocks: blocks,
    layers, embeddings, cross-attentions and heads. An encoder is not one of them, since the fusion
    calls its blocks one by one. Parameters outside of all units, and layers of PyTorch outside of
    them, belong to the root.

    If other methods than `forward` of a unit are called from outside, its class lists them in
    `extra_forwards`.
    """
    for child in module.children():
        has_forward = type(child).forward is not nn.Module.forward
        has_blocks = any(isinstance(each, nn.ModuleList) for each in child.modules())
        if not has_forward or has_blocks:
            yield from shard_units(child)
        elif not type(child).__module__.startswith("torch.") and any(
            True for _ in child.parameters()
        ):
            yield child
