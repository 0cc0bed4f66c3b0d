"""Write a fine case of our own in the format of the recorded ones, in the form of the base case.

It proves nothing about the model: what the model gives is compared with itself. It shows that a
folder of that form is read whole, whatever its size, and that what differs in it is found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fiber.losses.grounding import grounding_losses
from fiber.ops.boxes import to_inclusive
from tests.parity.fine import LOSSES
from tests.parity.fine_preset import FinePresetCase
from tests.parity.fine_runs import assignment, detections, run_detector

#: Intermediates that a case of features alone records: no blocks and layers, no dynamic head.
NOT_RECORDED = ("train.vis.", "train.txt.", "train.dyhead.", "train.head.cls_logits.")


def record_case(case: FinePresetCase, kind: str, folder: Path) -> Path:
    """Run a case of its settings alone and write what came out.

    Args:
        case: what runs.
        kind: class of the case ("tiny", "base"), by which its inputs are named and its tolerances
            looked up; its name begins with it.
        folder: where NAME.json, NAME.safetensors, NAME_grad_l2.json and KIND_inputs.safetensors go.

    Returns:
        The path of NAME.json.
    """
    name = f"{kind}_{case.name.partition('_')[2]}"
    model, batch = case.model(), case.batch()
    output, found = run_detector(model, "train", batch.images, batch.token_ids, batch.text_mask)
    losses = grounding_losses(output, batch, model.config, background_token=255)
    recorded = {theirs: weight * losses[ours] for ours, (theirs, weight) in LOSSES.items()}
    total = torch.stack(list(recorded.values())).sum()
    total.backward()
    grads = case.published_grads(model)
    with torch.no_grad():
        labels = assignment(output, case)["atss.cls_labels"]
        asked, _ = run_detector(model, "test", batch.images, *case.detection_text())
    stored = {key: value for key, value in found.items() if not key.startswith(NOT_RECORDED)}
    content: dict[str, Any] = {
        **case.content,
        "losses": {key: value.item() for key, value in recorded.items()} | {"loss_cls": 0.0},
        "loss_total": total.item(),
        "atss_num_positive_per_image": (labels > 0).sum(1).tolist(),
        "atss_margins": {},
        "time_s": 0.0,
        "config": {
            **case.config,
            "kind": kind,
            "num_params": sum(parameter.numel() for parameter in model.parameters()),
        },
    }
    numbers = [int(label) for label in content["detection"]["label_to_token"]]
    for variant, settings in content["detection"].items():
        if variant in ("caption", "label_to_token"):
            continue
        boxes = detections(asked, case, variant)
        settings["num"] = [len(each.scores) for each in boxes]
        # Of the other settings only the numbers are recorded.
        if variant == "default":
            for image, each in enumerate(boxes):
                parts = {
                    "boxes": to_inclusive(each.boxes_xyxy),
                    "scores": each.scores,
                    "labels": torch.tensor(numbers)[each.label_indices],
                }
                stored |= {f"det.{variant}.{image}.{part}": parts[part] for part in parts}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    _save(stored, path.with_suffix(".safetensors"))
    _save(case.inputs, folder / f"{kind}_inputs.safetensors")
    norms = {
        key: None if grad is None else grad.double().norm().item() for key, grad in grads.items()
    }
    path.with_name(f"{name}_grad_l2.json").write_text(json.dumps(norms))
    return path


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, each in memory of its own."""
    save_file(
        {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        },
        path,
    )
