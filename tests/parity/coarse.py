"""Compare the coarse model with recorded cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fiber.losses.itm import matching_labels
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import ignored_coarse_key
from tests.parity.coarse_case import PICTURES, CoarseCase
from tests.parity.coarse_extras import compare_extras, compare_optimizer_groups
from tests.parity.coarse_losses import Losses, sampled_captions
from tests.parity.coarse_runs import run_beams, run_caption, run_dual, run_fused
from tests.parity.coarse_training import OPTIM, group_faults, groups_by_rule, train_steps
from tests.parity.comparison import Comparison
from tests.parity.tolerances import (
    LEARNING_RATES,
    WEIGHT_RULE,
    CoarseTolerances,
    coarse_tolerances,
)

#: Starts of recorded names that are no output of the model, or not repeatable (golden/coarse
#: README).
NEVER_COMPARED = (
    "caption.causal_leak",
    # The references that were scored are not recorded.
    "ciderD.example_scores",
    "grad.caption_cider",
    "time",
    "train.loss.caption_cider",
)


#: Ends of the names of files beside a case: what is read, and what is not an output of the model.
READ_COMPANIONS = ("_weights_check.json",)
NEVER_COMPARED_COMPANIONS = ("_mutations.json",)
#: Files of the folder that belong to no case.
UNIT_FILES = {
    "extras.json": compare_extras,
    "base_optimizer_groups.json": compare_optimizer_groups,
}
#: Files that those read beside their own.
READ_UNIT_FILES = ("extras.safetensors",)
#: Sections of a file that are compared by themselves.
SECTIONS: dict[str, Callable[[Path], Comparison]] = {}
#: Files of the folder that no comparison reads yet, and what each waits for.
PENDING_FILES: dict[str, str] = {}


def compare_case(path: Path) -> Comparison:
    """Run every mode of one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = CoarseCase(path)
    comparison = Comparison(case.name)
    for fault in case.name_faults():
        comparison.group("names", 0.0).add(fault, 1.0)
    if not comparison.groups:
        try:
            model = case.model()
        except ValueError as error:
            comparison.group("names", 0.0).add(str(error), 1.0)
        else:
            _compare_model(comparison, case, model)
    return comparison


def _compare_model(comparison: Comparison, case: CoarseCase, model: FiberImageText) -> None:
    """Compare all that is recorded with what the model gives; training comes last."""
    allowed = coarse_tolerances(case.config)
    _compare_weights(comparison, case)
    with torch.no_grad():
        for run in (run_dual, run_fused, run_caption, run_beams):
            _compare_tensors(comparison, case, run(model, case), allowed)
    losses = Losses(model, case)
    with torch.no_grad():
        for task, loss in losses.tasks().items():
            name = "caption_gold_eval" if task == "caption_gold" else task
            if f"loss.{name}" in case.scalars:
                _compare_loss(comparison, case, f"loss.{name}", loss(), allowed)
    _compare_tensors(comparison, case, losses.found, allowed)
    for name, indices in losses.indices.items():
        if name in case.scalars:
            recorded = torch.tensor(case.scalars[name])
            comparison.tensor("itc heads", name, indices, recorded, allowed.tensors, 1.0)
    _compare_samples(comparison, case, model, allowed)
    model.train()
    _compare_training(comparison, case, model, allowed)
    _compare_queue(comparison, case, model, allowed)
    _compare_groups(comparison, case, model)
    _compare_steps(comparison, case, model, allowed)
    recorded = {*case.records, *case.scalars, *(f"grad.{task}" for task in case.grads)}
    comparison.not_compared = sorted(
        name for name in recorded - comparison.compared if not name.startswith(NEVER_COMPARED)
    )


def _compare_weights(comparison: Comparison, case: CoarseCase) -> None:
    """Check the weight rule and the inputs against their recorded sums and samples."""
    drawn = case.published_state() | {f"input.{name}": case.input(name) for name in PICTURES}
    # The queues stand among the published weights, with what the case puts into them.
    drawn |= {
        name: case.input(name.removeprefix("input."))
        for name in case.weights_check
        if name.endswith("_queue")
    }
    for name, (_, total, norm, first) in case.weights_check.items():
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
    # Labels follow from the layout of the 3 B pairs.
    if "itm_hardneg.labels" in case.records:
        ours = matching_labels(case.config["B"]).float()
        recorded = case.stored("itm_hardneg.labels")
        comparison.tensor("itm_hardneg labels", "itm_hardneg.labels", ours, recorded, 0.0, 1.0)


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
    losses = Losses(model, case)
    for task, loss in losses.tasks().items():
        if f"train.loss.{task}" not in case.scalars and task not in case.grads:
            continue
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        _compare_loss(comparison, case, f"train.loss.{task}", value, allowed)
        _compare_gradients(comparison, case, model, task, allowed)
    model.zero_grad(set_to_none=True)
    if "pretrain_total_full" in case.grads:
        torch.stack(losses.pretraining()).sum().backward()
        _compare_gradients(comparison, case, model, "pretrain_total_full", allowed)
        model.zero_grad(set_to_none=True)


def _compare_samples(
    comparison: Comparison, case: CoarseCase, model: FiberImageText, allowed: CoarseTolerances
) -> None:
    """Compare the captions that were sampled for CIDEr-D."""
    name = "cider.sampled_text_ids"
    if name in case.records:
        rows, length = case.records[name]["shape"]
        images = case.input("image")
        ids = sampled_captions(model, images, rows // len(images), length)
        comparison.tensor("cider samples", name, ids, case.stored(name), allowed.tensors, 1.0)


def _compare_queue(
    comparison: Comparison, case: CoarseCase, model: FiberImageText, allowed: CoarseTolerances
) -> None:
    """Compare the queue after one training pass."""
    losses = Losses(model, case)
    losses.enqueue()
    queue = losses.queue
    found = {
        "image_queue": queue.image_vectors.T,
        "text_queue": queue.text_vectors.T,
        "image_input_queue": queue.images,
        "text_input_queue": queue.token_ids,
        "text_input_mask_queue": queue.text_mask.long(),
    }
    named = {f"after_enqueue.{name}": value for name, value in found.items()}
    _compare_tensors(comparison, case, named, allowed)
    for name, number in (("queue_ptr", queue.pointer), ("queue_total", queue.total)):
        if f"after_enqueue.{name}" in case.scalars:
            name = f"after_enqueue.{name}"
            comparison.number("after_enqueue counts", name, number, case.scalars[name], 0.0)


def _compare_groups(comparison: Comparison, case: CoarseCase, model: FiberImageText) -> None:
    """Compare the optimiser's groups: names by the published rule, sizes and settings."""
    if "opt.group_sizes" not in case.scalars:
        return
    recorded = groups_by_rule(case.parameter_shapes())
    group = comparison.group("optimizer groups", 0.0)
    for number, names in enumerate(recorded):
        error = abs(len(names) - case.scalars["opt.group_sizes"][number])
        group.add(f"size of group {number}", error)
        factor = (1.0, OPTIM.head_lr_multiplier, OPTIM.cross_modal_lr_multiplier)[number // 2]
        error = abs(OPTIM.lr * factor - case.scalars["opt.group_lr0"][number])
        group.add(f"learning rate of group {number}", float(error > 1e-12))
        decay = OPTIM.weight_decay if number % 2 == 0 else 0.0
        error = abs(decay - case.scalars["opt.group_wd"][number])
        group.add(f"decay of group {number}", error)
    faults = group_faults(model, recorded)
    for fault in faults:
        group.add(fault, 1.0)
    group.count += sum(map(len, recorded)) - len(faults)
    comparison.compared |= {"opt.group_sizes", "opt.group_lr0", "opt.group_wd"}


def _compare_steps(
    comparison: Comparison, case: CoarseCase, model: FiberImageText, allowed: CoarseTolerances
) -> None:
    """Compare the recorded optimiser steps and the weights after them; the model is changed.

    It trains in double precision. A gradient that is all rounding still moves its weight by the
    whole learning rate, since Adam divides it by its own size: in single precision the order in
    which a processor adds shows in the weights.
    """
    if "train_steps" not in case.scalars:
        return
    recorded = case.scalars["train_steps"]
    model.double()
    ours, norms = train_steps(model, Losses(model, case), len(recorded))
    for number, (found, expected) in enumerate(zip(ours, recorded, strict=True)):
        for name in sorted({*found, *expected}):
            label = f"step {number} {name}"
            if name not in found or name not in expected:
                comparison.group("optimizer steps, names", 0.0).add(label, 1.0)
            elif name in ("step", "queue_ptr", "queue_total"):
                comparison.number(
                    "optimizer steps, counts", label, found[name], expected[name], 0.0
                )
            elif name == "lr":
                pairs = zip(found[name], expected[name], strict=True)
                worst = max(abs(a - b) for a, b in pairs)
                comparison.group("optimizer steps, rates", LEARNING_RATES).add(label, worst)
            else:
                comparison.number(
                    "optimizer steps", label, found[name], expected[name], allowed.steps
                )
    for name, norm in case.scalars["after_steps.param_norms"].items():
        found_norm = norms.get(name, float("nan"))
        tolerance = allowed.weights_after_steps
        comparison.number("weights after steps", name, found_norm, norm, tolerance)
    comparison.compared |= {"train_steps", "after_steps.param_norms"}


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
