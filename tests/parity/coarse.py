"""Compare the coarse model with recorded cases."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fiber.models.image_text import FiberImageText
from fiber.models.weights import ignored_coarse_key
from tests.parity.coarse_case import PICTURES, CoarseCase
from tests.parity.coarse_runs import Losses, run_beams, run_caption, run_dual, run_fused
from tests.parity.comparison import Comparison
from tests.parity.tolerances import (
    WEIGHT_RULE,
    CoarseTolerances,
    coarse_tolerances,
)

#: Recorded, but no output of the model, or not repeatable (golden/coarse README).
NEVER_COMPARED = (
    "caption.causal_leak_absmax_pos0_5",
    "ciderD.example_scores",
    "grad.caption_cider",
    "time.forward_s",
    "time.total_s",
    "train.loss.caption_cider",
)


def compare_case(path: Path) -> Comparison:
    """Run every mode of one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = CoarseCase(path)
    comparison = Comparison(case.name)
    allowed = coarse_tolerances(case.config)
    _compare_weights(comparison, case)
    model = case.model()
    with torch.no_grad():
        for run in (run_dual, run_fused, run_caption, run_beams):
            _compare_tensors(comparison, case, run(model, case), allowed)
    losses = Losses(model, case)
    with torch.no_grad():
        for task, loss in losses.tasks().items():
            name = "caption_gold_eval" if task == "caption_gold" else task
            _compare_loss(comparison, case, f"loss.{name}", loss(), allowed)
    _compare_tensors(comparison, case, losses.found, allowed)
    for name, indices in losses.indices.items():
        comparison.tensor(
            "itc heads", name, indices, torch.tensor(case.scalars[name]), allowed.tensors, 1.0
        )
    _compare_training(comparison, case, model, allowed)
    recorded = {*case.records, *case.scalars, *(f"grad.{task}" for task in case.grads)}
    comparison.not_compared = sorted(recorded - comparison.compared - set(NEVER_COMPARED))
    return comparison


def _compare_weights(comparison: Comparison, case: CoarseCase) -> None:
    """Check the weight rule and the inputs against their recorded sums and samples."""
    drawn = case.published_state() | {f"input.{name}": case.input(name) for name in PICTURES}
    for name, (_, total, norm, first) in case.weights_check.items():
        if name not in drawn:
            continue
        value = drawn[name].double()
        count = max(1.0, value.numel() ** 0.5)
        ours = [value.sum().item() / count, value.norm().item() / count]
        ours += value.flatten()[:3].tolist()
        theirs = [total / count, norm / count, *first]
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        comparison.group("weight rule", WEIGHT_RULE).add(name, worst)
    for name in case.records:
        if name.startswith("input."):
            value = case.sample(name, case.input(name.removeprefix("input.")))
            absmax = case.records[name].get("absmax", 1.0)
            comparison.tensor("inputs", name, value, case.stored(name), WEIGHT_RULE, absmax)
    # What the runs take as given.
    comparison.compared |= {"input.queue_ptr", "input.queue_total", "itm.labels"}


def _compare_tensors(
    comparison: Comparison, case: CoarseCase, found: dict[str, Tensor], allowed: CoarseTolerances
) -> None:
    """Compare every recorded tensor among those found, grouped by mode."""
    for name, value in found.items():
        if name not in case.records or name in comparison.compared:
            continue
        mode, kind = name.split(".")[:2]
        group = f"{mode} {kind}" if kind in ("vit", "txt") else f"{mode} heads"
        absmax = case.records[name].get("absmax", 1.0)
        sampled = case.sample(name, value)
        comparison.tensor(group, name, sampled, case.stored(name), allowed.tensors, absmax)


def _compare_loss(
    comparison: Comparison, case: CoarseCase, name: str, loss: Tensor, allowed: CoarseTolerances
) -> None:
    if name in case.scalars:
        comparison.number("losses", name, loss.item(), case.scalars[name], allowed.losses)


def _compare_training(
    comparison: Comparison, case: CoarseCase, model: FiberImageText, allowed: CoarseTolerances
) -> None:
    """Compare losses in training mode and their gradients; every dropout of the case is 0."""
    model.train()
    losses = Losses(model, case)
    for task, loss in losses.tasks().items():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        _compare_loss(comparison, case, f"train.loss.{task}", value, allowed)
        _compare_gradients(comparison, case, model, task, allowed)
    model.zero_grad(set_to_none=True)
    (losses.mlm() + losses.itc() + losses.itm_hardneg()).backward()
    _compare_gradients(comparison, case, model, "pretrain_total_full", allowed)


def _compare_gradients(
    comparison: Comparison,
    case: CoarseCase,
    model: FiberImageText,
    task: str,
    allowed: CoarseTolerances,
) -> None:
    """Compare the norm and the sum of every recorded gradient of a task."""
    if task not in case.grads:
        return
    recorded = case.grads[task]
    grads = case.published_grads(model)
    largest = max(entry[0] for entry in recorded.values() if entry is not None)
    for name, entry in recorded.items():
        label, grad = f"{task} {name}", grads.get(name)
        if name not in grads and ignored_coarse_key(name, model.config) is not None:
            # The published model has this parameter; the map says why ours has not.
            comparison.group("gradients of unused", 0.0).add(label, 0.0 if entry is None else 1.0)
        elif entry is None or grad is None:
            same = (entry is None) == (grad is None)
            comparison.group("gradients that are absent", 0.0).add(label, 0.0 if same else 1.0)
        elif entry[0] < allowed.gradient_floor * largest:
            error = abs(grad.double().norm().item() - entry[0]) / largest
            comparison.group("small gradients", allowed.small_gradients).add(label, error)
        else:
            value = grad.double()
            norm_error = abs(value.norm().item() - entry[0]) / entry[0]
            # Terms cancel in a sum; its error scales with the sum of absolute values.
            sum_error = abs(value.sum().item() - entry[1]) / value.abs().sum().item()
            group = comparison.group("gradients", allowed.gradients)
            group.add(label, max(norm_error, sum_error))
    comparison.compared.add(f"grad.{task}")
