"""Build the optimizer of a model from its configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fiber.training.config.lora import LoraConfig
from fiber.training.config.run import OptimConfig
from fiber.training.optim.adamw import AdamW, PublishedAdamW
from fiber.training.optim.muon import MuonAdamW
from fiber.training.optim.parameter_groups import (
    factor_of,
    is_adapter,
    is_backbone_matrix,
    is_decayed,
)


def build_optimizer(
    model: nn.Module, config: OptimConfig, lora: LoraConfig | None = None
) -> torch.optim.Optimizer:
    """Create the optimizer of all trainable parameters, with a group for each set of options.

    Each group stores its learning rate multiplier as `lr_factor`; see `set_learning_rate`. `lora`
    has that of the adapters of the model, if it has any.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    parts, published = getattr(model, "parts", {}), getattr(model, "published_decay", {})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_muon = config.muon_lr_multiplier > 0 and is_backbone_matrix(name, parameter)
            factor, decayed = (
                factor_of(name, parameter, config, parts),
                is_decayed(name, parameter, config, published),
            )
            if lora is not None and is_adapter(name):
                factor *= lora.lr_multiplier
            group: dict[str, Any] = {
                "params": [],
                "lr_factor": factor * config.muon_lr_multiplier if by_muon else factor,
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            if config.muon_lr_multiplier > 0:
                group["by_muon"] = by_muon
            groups.setdefault((factor, decayed, by_muon), group)["params"].append(parameter)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.published_coarse:
        return PublishedAdamW(list(groups.values()), **options)
    if config.muon_lr_multiplier > 0:
        return MuonAdamW(list(groups.values()), **options)
    return AdamW(list(groups.values()), **options)
