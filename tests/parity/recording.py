"""Write a case of our own in the format of the recorded ones, in the form that the base case has.

It proves nothing about the model: what the model gives is compared with itself. It shows that a
folder of that form, of whatever size, is read whole and that what differs in it is found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fiber.losses.itm import matching_labels
from fiber.models.fiber.image_text import FiberImageText
from tests.parity.coarse_case import FEATURE_QUEUES, PICTURES
from tests.parity.coarse_losses import Losses
from tests.parity.coarse_preset import PresetCase
from tests.parity.coarse_runs import run_beams, run_caption, run_dual, run_fused

#: Tasks whose gradients the base case has (golden/coarse README, Files and names).
GRADIENTS = ("mlm", "itc", "vqa", "caption_mle")
#: What it has not, of what a case may record.
NOT_RECORDED = ("cider.", "loss.caption_gold", "train.loss.caption_gold")
#: A tensor of more values than this is stored as about so many of them.
STORED_WHOLE, STORED = 16384, 2048


def record_case(name: str, folder: Path) -> Path:
    """Run a case of its settings alone and write what came out.

    Args:
        name: "base" or "micro".
        folder: where NAME.json, NAME.safetensors and NAME_weights_check.json go.

    Returns:
        The path of NAME.json.
    """
    case = PresetCase(name)
    model = case.model()
    stored: dict[str, Tensor] = {}
    records: dict[str, Any] = {}

    def keep(found: dict[str, Tensor]) -> None:
        for key, value in found.items():
            if key in case.records and not key.startswith(NOT_RECORDED):
                stored[key], records[key] = _stored(value)

    keep(
        {
            key: case.input(key.removeprefix("input."))
            for key in case.records
            if key.startswith("input.")
        }
    )
    keep({"itm.labels": case.stored("itm.labels")})
    with torch.no_grad():
        for run in (run_dual, run_fused, run_caption, run_beams):
            keep(run(model, case))
        losses = Losses(model, case)
        scalars = {f"loss.{task}": loss().item() for task, loss in losses.tasks().items()}
    keep(losses.found)
    keep({"itm_hardneg.labels": matching_labels(case.config["B"]).float()})
    scalars |= case.scalars
    scalars |= {key: indices.tolist() for key, indices in losses.indices.items()}
    gradients = _train(model, case, scalars)
    losses = Losses(model, case)
    losses.enqueue()
    keep({"after_enqueue.image_queue": losses.queue.image_vectors.T})
    keep({"after_enqueue.text_input_queue": losses.queue.token_ids})
    scalars["after_enqueue.queue_ptr"] = losses.queue.pointer
    scalars["after_enqueue.queue_total"] = losses.queue.total
    scalars = {key: value for key, value in scalars.items() if not key.startswith(NOT_RECORDED)}
    content = {"config": case.config, "tensors": records, "scalars": scalars, "grads": gradients}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    save_file(stored, path.with_suffix(".safetensors"))
    path.with_name(f"{name}_weights_check.json").write_text(json.dumps(_weights_check(case)))
    return path


def _stored(value: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What is stored of a tensor, and what is said of it."""
    stride = -(-value.numel() // STORED) if value.numel() > STORED_WHOLE else 1
    record: dict[str, Any] = {"shape": list(value.shape), "stride": stride}
    if value.is_floating_point():
        record["absmax"] = value.abs().max().item()
    if stride > 1:
        value = value.reshape(-1)[::stride]
    return value.detach().clone(memory_format=torch.contiguous_format), record


def _train(
    model: FiberImageText, case: PresetCase, scalars: dict[str, Any]
) -> dict[str, dict[str, list[float] | None]]:
    """Add the losses in training mode to the numbers, and return the gradients."""
    gradients: dict[str, dict[str, list[float] | None]] = {}
    model.train()
    for task, loss in Losses(model, case).tasks().items():
        model.zero_grad(set_to_none=True)
        # Without its gradient a loss's graph, of gigabytes, would only wait for the next one.
        with torch.set_grad_enabled(task in GRADIENTS):
            value = loss()
        scalars[f"train.loss.{task}"] = value.item()
        if task not in GRADIENTS:
            continue
        value.backward()
        found = case.published_grads(model)
        gradients[task] = {name: _norm_and_sum(found.get(name)) for name in case.parameter_shapes()}
    model.zero_grad(set_to_none=True)
    return gradients


def _norm_and_sum(grad: Tensor | None) -> list[float] | None:
    return None if grad is None else [grad.double().norm().item(), grad.double().sum().item()]


def _weights_check(case: PresetCase) -> dict[str, list[Any]]:
    """Shape, sum, L2 norm and first values of every weight and picture."""
    drawn = case.published_state()
    for name in (*PICTURES, *FEATURE_QUEUES):
        # The queues stand among the weights of the published model.
        drawn[name if name.endswith("_queue") else f"input.{name}"] = case.input(name)
    return {
        name: [
            list(value.shape),
            round(value.double().sum().item(), 6),
            round(value.double().norm().item(), 6),
            value.flatten()[:3].tolist(),
        ]
        for name, value in drawn.items()
    }
