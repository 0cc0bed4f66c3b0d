"""Parameter groups and optimiser steps of the published coarse code, beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from fiber.checkpoints.published import published_state
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import coarse_keys, ignored_coarse_key
from fiber.training.config.run import OptimConfig
from fiber.training.optim import build_optimizer, lr_factor, set_learning_rate
from tests.parity.coarse_losses import Losses

#: Settings of the recorded steps (README).
OPTIM = OptimConfig(
    lr=1e-3,
    head_lr_multiplier=5.0,
    cross_modal_lr_multiplier=5.0,
    warmup_fraction=0.1,
    published_coarse=True,
)
#: Steps of the recorded schedule, of which three were made.
STEPS = 10

#: Parts of a published name that put it into a group (specification, section 4).
_NOT_DECAYED = ("bias", "LayerNorm.", "norm.", "norm1.", "norm2.")
_HEADS = ("vqa_classifier", "nlvr2_classifier", "mlm_score", "itm_score")
_CROSS_MODAL = ("cross_modal", "i2t", "t2i")


def groups_by_rule(names: Iterable[str]) -> list[list[str]]:
    """Sort published names into the six groups in their order: tower, head, cross-modal."""
    groups: list[list[str]] = [[] for _ in range(6)]
    for name in names:
        place = 0
        if any(part in name for part in _HEADS):
            place = 1
        elif any(part in name for part in _CROSS_MODAL):
            place = 2
        groups[2 * place + any(part in name for part in _NOT_DECAYED)].append(name)
    return groups


def our_groups(model: FiberImageText) -> list[dict[str, float]]:
    """Published names in each group of our optimiser, in the published order.

    Returns:
        For each of the six groups, name -> number of values in that tensor.
    """
    # Factors that differ keep the groups apart; the published ones of heads and fusion are equal.
    factors = {"encoder": 1.0, "head": 50.0, "cross_modal": 5.0}
    config = dataclasses.replace(OPTIM, head_lr_multiplier=50.0)
    keys = coarse_keys(model.config)
    names = {parameter: keys[name] for name, parameter in model.named_parameters()}
    groups: list[dict[str, float]] = [{} for _ in range(6)]
    for group in build_optimizer(model, config).param_groups:
        place = list(factors.values()).index(group["lr_factor"])
        number = 2 * place + (group["weight_decay"] == 0)
        for parameter in group["params"]:
            share = parameter.numel() / len(names[parameter])
            groups[number] |= dict.fromkeys(names[parameter], share)
    return groups


def group_faults(model: FiberImageText, recorded: list[list[str]]) -> list[str]:
    """Name what is in another group than recorded; what ours does not have is no fault."""
    faults = []
    for number, (ours, theirs) in enumerate(zip(our_groups(model), recorded, strict=True)):
        needed = {name for name in theirs if ignored_coarse_key(name, model.config) is None}
        faults += [f"group {number} lacks {name}" for name in sorted(needed - set(ours))]
        faults += [f"group {number} also has {name}" for name in sorted(set(ours) - set(theirs))]
    return faults


def values_of_unused(names: Iterable[str], model: FiberImageText) -> int:
    """Count the values of published parameters that ours does not have."""
    width, channels = model.config.roberta.width, model.config.swin.channels
    sizes = {
        "text_transformer.pooler.dense.weight": width * width,
        "rank_output.weight": 2 * width,
        "rank_output.bias": 1,
    }
    total = 0
    for name in names:
        if name in sizes:
            total += sizes[name]
        elif name.endswith("alpha_t2i"):
            total += 1
        elif name.startswith("cross_modal_att_layers."):
            total += channels[-2] * (channels[-1] if name.endswith("weight") else 1)
        else:
            total += width
    return total


def train_steps(
    model: FiberImageText, losses: Losses, count: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train with MLM, ITC and ITM as it was recorded.

    Args:
        model: in training mode; it is changed.
        losses: of the recorded batch, with the queue as it was at the start.
        count: steps.

    Returns:
        What was recorded of each step, and afterwards the norm of each parameter by published name.
    """
    optimizer, steps = build_optimizer(model, OPTIM), []
    for step in range(count):
        factor = lr_factor(step, STEPS, OPTIM)
        set_learning_rate(optimizer, OPTIM.lr * factor)
        mlm, itc, itm = losses.pretraining()
        losses.enqueue()
        optimizer.zero_grad(set_to_none=True)
        (mlm + itc + itm).backward()
        optimizer.step()
        rates = {group["lr_factor"]: group["lr"] for group in optimizer.param_groups}
        places = (1.0, OPTIM.head_lr_multiplier, OPTIM.cross_modal_lr_multiplier)
        steps.append(
            {
                "step": step,
                "lr": [rates[place] for place in places for _ in range(2)],
                "mlm": mlm.item(),
                "itc": itc.item(),
                "itm": itm.item(),
                "total": (mlm + itc + itm).item(),
                "temp": model.temperature.item(),
                "queue_ptr": losses.queue.pointer,
                "queue_total": losses.queue.total,
            }
        )
    with torch.no_grad():
        state = published_state(model)
        return steps, {name: tensor.double().norm().item() for name, tensor in state.items()}
