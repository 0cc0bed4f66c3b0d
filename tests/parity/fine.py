"""Compare the detector with recorded cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fiber.losses.grounding import grounding_losses
from fiber.models.fiber.detector import DetectorOutput, FiberDetector
from tests.parity.comparison import Comparison
from tests.parity.fine_case import FineCase, without_boxes_of
from tests.parity.fine_geometry import compare_geometry
from tests.parity.fine_groups import compare_groups
from tests.parity.fine_inputs import compare_inputs, unknown_parts
from tests.parity.fine_prompts import compare_drawn_prompts
from tests.parity.fine_runs import assignment, detections, not_recovered, run_detector
from tests.parity.fine_text import compare_text
from tests.parity.fine_units import compare_units
from tests.parity.tolerances import FineTolerances, fine_tolerances

#: Published losses by ours, and the published weight of each.
LOSSES = {
    "alignment": ("loss_dot_product_token", 1.0),
    "box": ("loss_reg", 2.0),
    "centerness": ("loss_centerness", 1.0),
}
#: Recorded edge cases: pictures that lose their boxes, and the tokens that count as real, None
#: where they are those of the text.
EDGE_CASES: dict[str, tuple[set[int], int | None]] = {
    "both": (set(), None),
    "second_image_empty": ({1}, None),
    "both_empty": ({0, 1}, None),
    "all_256_tokens_valid": (set(), 256),
    "first_255_tokens_valid": (set(), 255),
}

#: Of a layer that nothing reads; never compared (golden/fine README).
DEAD_EDGE_LOSS = "cls"

#: A fine case reads every tensor and number that is recorded beside it.
READ_COMPANIONS = (".safetensors", "_grad_l2.json", "_edge_losses.json")
NEVER_COMPARED_COMPANIONS: tuple[str, ...] = ()
UNIT_FILES: dict[str, Callable[[Path], Comparison]] = {
    "data_geometry.json": compare_geometry,
    "data_text.json": compare_text,
    "param_groups.json": compare_groups,
    "units_deform_dyconv.safetensors": compare_units,
}
#: Sections of a file that are compared by themselves.
SECTIONS: dict[str, Callable[[Path], Comparison]] = {"data_text.json": compare_drawn_prompts}
#: Pictures and texts of the cases, and a report that is never compared (golden/fine README).
READ_UNIT_FILES = (
    *("tiny_inputs.safetensors", "base_inputs.safetensors"),
    *("roberta_tokens.json", "tolerance_report.json"),
)
#: Files of the folder that no comparison reads, and what each waits for.
PENDING_FILES: dict[str, str] = {}


def compare_case(path: Path) -> Comparison:
    """Run the training and the detection text of one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = FineCase(path)
    comparison = Comparison(case.name)
    allowed = fine_tolerances(case.config)
    model = case.model()
    count = sum(parameter.numel() for parameter in model.parameters())
    comparison.number("parameters", "num_params", count, case.config["num_params"], 0.0)
    compare_inputs(comparison, case)

    batch = case.batch()
    output, found = run_detector(model, "train", batch.images, batch.token_ids, batch.text_mask)
    with torch.no_grad():
        _compare_tensors(comparison, case, found, allowed)
        _compare_tensors(comparison, case, assignment(output, case), allowed)
    _compare_losses(comparison, case, model, output, allowed)
    with torch.no_grad():
        text = case.detection_text()
        test_output, found = run_detector(model, "test", batch.images, *text)
        _compare_tensors(comparison, case, found, allowed)
    _compare_detections(comparison, case, test_output, allowed)
    comparison.not_compared += sorted({*case.tensors} - comparison.compared) + unknown_parts(case)
    if not case.tensors:
        comparison.not_compared.append(f"no tensor is recorded beside {path.name}")
    return comparison


def _compare_tensors(
    comparison: Comparison, case: FineCase, found: dict[str, Tensor], allowed: FineTolerances
) -> None:
    """Compare every recorded tensor among those found; errors are absolute."""
    for name, value in found.items():
        if name not in case.tensors:
            continue
        parts = name.split(".")
        group = ".".join(parts[:2]) if parts[0] in ("train", "test") else parts[0]
        if parts[0] in ("anchors", "atss"):
            # Geometry, 1e-5 of the largest value.
            tolerance, absmax = allowed.geometry, case.tensors[name].abs().max().item()
        elif len(parts) > 1 and parts[1] in ("head", "dyhead"):
            tolerance, absmax = allowed.heads, 1.0
        else:
            tolerance, absmax = allowed.features, 1.0
        comparison.tensor(group, name, value, case.tensors[name], tolerance, absmax)


def _compare_losses(
    comparison: Comparison,
    case: FineCase,
    model: FiberDetector,
    output: DetectorOutput,
    allowed: FineTolerances,
) -> None:
    """Compare losses, gradients, and losses of pictures without boxes and of full texts."""
    batch, config = case.batch(), model.config
    losses = grounding_losses(output, batch, config, background_token=255)
    recorded = case.content["losses"]
    total = torch.zeros(())
    for ours, (theirs, weight) in LOSSES.items():
        comparison.number(
            "losses", theirs, weight * losses[ours].item(), recorded[theirs], allowed.losses
        )
        total = total + weight * losses[ours]
    # The loss of a layer that nothing reads is multiplied by 0.
    comparison.group("losses", allowed.losses).add("loss_cls", abs(recorded.get("loss_cls", 0.0)))
    known = {"loss_cls", *(theirs for theirs, _ in LOSSES.values())}
    comparison.not_compared += [f"losses.{name}" for name in recorded if name not in known]
    comparison.number("losses", "total", total.item(), case.content["loss_total"], allowed.losses)
    positives = case.content["atss_num_positive_per_image"]
    labels = assignment(output, case)["atss.cls_labels"]
    for image, count in enumerate(positives):
        error = abs(int((labels[image] > 0).sum()) - count)
        comparison.group("positives per picture", 0.0).add(f"picture {image}", error)
    if case.gradients:
        total.backward()
        _compare_gradients(comparison, case, model, allowed)
    for variant, expected in case.edge_losses.items():
        losses = edge_losses(case, model, output, variant)
        for ours, (theirs, weight) in LOSSES.items():
            if theirs in expected:
                # A loss of exactly 0 is compared absolutely.
                error = abs(weight * losses[ours].item() - expected[theirs])
                group = comparison.group("edge losses", allowed.losses)
                group.add(f"{variant} {theirs}", error / (abs(expected[theirs]) or 1.0))
        known = {DEAD_EDGE_LOSS, *(theirs for theirs, _ in LOSSES.values())}
        comparison.not_compared += [
            f"edge losses, {variant}: {name}" for name in expected if name not in known
        ]


def edge_losses(
    case: FineCase, model: FiberDetector, output: DetectorOutput, variant: str
) -> dict[str, Tensor]:
    """Losses of one recorded edge case.

    Raises:
        ValueError: for a case that this code does not know.
    """
    batch = case.batch()
    if variant not in EDGE_CASES:
        raise ValueError(f"edge loss {variant!r} is not known")
    with torch.no_grad():
        images, tokens = EDGE_CASES[variant]
        batch = without_boxes_of(batch, {image for image in images if image < len(batch)})
        if tokens is not None:
            mask = torch.ones_like(batch.text_mask)
            mask[:, tokens:] = False
            output = dataclasses.replace(output, text_mask=mask)
        return grounding_losses(output, batch, model.config, background_token=255)


def _compare_gradients(
    comparison: Comparison, case: FineCase, model: FiberDetector, allowed: FineTolerances
) -> None:
    """Compare the L2 norm of every recorded gradient of the total loss."""
    grads = case.published_grads(model)
    largest = max(norm for norm in case.gradients.values() if norm is not None)
    for name in sorted({*grads, *case.gradients}):
        if name not in grads or name not in case.gradients:
            comparison.group("gradients of other names", 0.0).add(name, 1.0)
            continue
        norm, grad = case.gradients[name], grads[name]
        if norm is None or grad is None:
            same = (norm is None) == (grad is None)
            comparison.group("gradients that are absent", 0.0).add(name, 0.0 if same else 1.0)
        elif norm < allowed.gradient_floor * largest:
            error = abs(grad.double().norm().item() - norm) / largest
            comparison.group("small gradients", allowed.small_gradients).add(name, error)
        else:
            error = abs(grad.double().norm().item() - norm) / norm
            tolerance = allowed.noisy_gradients.get(name, allowed.gradients)
            group = "noisy gradients" if name in allowed.noisy_gradients else "gradients"
            comparison.group(group, tolerance).add(name, error)


def _compare_detections(
    comparison: Comparison, case: FineCase, output: DetectorOutput, allowed: FineTolerances
) -> None:
    """Compare sets of detections: label equal, box within 1e-2 pixels, score within 1e-4."""
    variants = {name.split(".")[1] for name in case.tensors if name.startswith("det.")}
    settings = case.content["detection"]
    described = {name for name in settings if name not in ("caption", "label_to_token")}
    comparison.not_compared += [f"detection.{name}" for name in variants - described]
    for variant in sorted(described):
        counts = settings[variant]["num"]
        for image, found in enumerate(detections(output, case, variant)):
            name = f"det.{variant}.{image}"
            group = comparison.group("numbers of detections", allowed.detections)
            group.add(name, abs(len(found.scores) - counts[image]))
            parts = {f"{name}.{part}" for part in ("boxes", "scores", "labels")}
            missing = parts - {*case.tensors}
            group = comparison.group("detections", allowed.detections)
            if not missing:
                group.add(name, float(not_recovered(found, case, name)))
                comparison.compared |= parts
            # Of some settings only the number is recorded.
            elif variant in variants:
                group.add(f"{', '.join(sorted(missing))} missing", float("nan"))
