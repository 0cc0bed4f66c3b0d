"""Run every mode of a fine case without recordings: `python -m tests.parity fine --preset base`.

Both versions of the fusion run. What a model gives has nothing to be equal to: it must be finite
and of the shapes that a recorded case of these settings has. Time and memory are printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fiber.checkpoints.published import published_state
from fiber.losses.grounding import grounding_losses
from fiber.models.fiber.detector import DetectorOutput, FiberDetector
from fiber.training.config.run import load_recipe
from fiber.training.optim import build_optimizer, lr_factor, set_learning_rate
from tests.parity.fine import EDGE_CASES, LOSSES, edge_losses
from tests.parity.fine_preset import (
    BASE_PARAMETERS,
    FinePresetCase,
    Shape,
    is_buffer,
    recorded_shapes,
)
from tests.parity.fine_runs import assignment, detections, run_detector
from tests.parity.modes import Mode, peak_bytes

#: Tensors by name, and the shape that each of them must have.
Output = tuple[dict[str, Tensor], dict[str, Shape]]
VERSIONS = ("v2", "v3")


@dataclass
class FineReport:
    """All modes of both versions."""

    modes: list[Mode] = field(default_factory=list)
    #: Largest memory of the process before it had a model.
    empty_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether every mode ran, and gave what it must."""
        return bool(self.modes) and not any(mode.faults for mode in self.modes)


def run_preset(name: str, show: Callable[[str], None]) -> FineReport:
    """Run every mode of both versions.

    Args:
        name: "base" or "micro".
        show: is given each part of the table as soon as it is there.

    Raises:
        FileNotFoundError: if the list of the published names is not here.
        ValueError: if the weights of those names do not fit the model.
    """
    report = FineReport(empty_bytes=peak_bytes())
    for version in VERSIONS:
        _run_version(FinePresetCase(name, version), report, show)
    peak = max(mode.peak_bytes for mode in report.modes)
    show(
        f"peak memory {peak / 1e9:.2f} GB; {report.empty_bytes / 1e9:.2f} GB before there was a"
        " model"
    )
    return report


def _run_version(case: FinePresetCase, report: FineReport, show: Callable[[str], None]) -> None:
    batch, _, height, width = case.inputs["in.images"].shape
    show(
        f"{case.name}: {batch} pictures of {height} x {width} pixels, texts of"
        f" {case.inputs['in.input_ids'].shape[1]} tokens; weights by the rule, nothing recorded to"
        f" compare with\n"
        f"  {'mode':<22} {'count':>5}  {'largest':>8}  {'seconds':>7}  {'peak GB':>7}"
    )
    start = time.perf_counter()
    model = case.model()
    shapes, seen = recorded_shapes(case), set()
    for number, (title, outputs) in enumerate(MODES.items()):
        mode = Mode(title)
        for found, expected in outputs(model, case):
            mode.add(found, expected)
            seen |= {*expected}
            # Those of the detection text are the same once more.
            mode.shapes |= {
                key: shape
                for key, shape in expected.items()
                if key in shapes and not key.startswith("test.")
            }
        if number == len(MODES) - 1:
            mode.faults += [
                f"{key}: recorded of a case, given by no mode" for key in sorted({*shapes} - seen)
            ]
        mode.seconds, start = time.perf_counter() - start, time.perf_counter()
        mode.peak_bytes = peak_bytes()
        report.modes.append(mode)
        show(str(mode))


def _weights(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """What the converter made of the drawn weights: every published tensor."""
    yield published_state(model), case.published_shapes()
    count = sum(parameter.numel() for parameter in model.parameters())
    if case.config["kind"] == "base":
        published = BASE_PARAMETERS[case.config["version"]]
        if count != published:
            raise ValueError(f"{case.name} has {count} parameters; published: {published}")


def _training_text(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """Every intermediate for the training texts, and what the anchors learn from the boxes."""
    batch = case.batch()
    with torch.no_grad():
        output, found = run_detector(model, "train", batch.images, batch.token_ids, batch.text_mask)
        yield found, _starting(case, "train.")
        found = assignment(output, case)
    taken = int((found["atss.cls_labels"] > 0).sum())
    labels = found["atss.token_labels_nonzero"]
    counted = {
        "atss.centerness_targets_of_positives": (taken,),
        "atss.token_labels_nonzero": (len(labels), 3),
    }
    yield found, _starting(case, "anchors.", "atss.") | counted


def _detection_text(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """Every intermediate for the detection text, and what each setting detects."""
    with torch.no_grad():
        output, found = run_detector(
            model, "test", case.inputs["in.images"], *case.detection_text()
        )
        yield found, _starting(case, "test.")
        yield from _detections(output, case)


def _detections(output: DetectorOutput, case: FinePresetCase) -> Iterator[Output]:
    """Boxes of each setting: as many as it asks for, so many anchors score above its threshold."""
    for variant, settings in case.content["detection"].items():
        if variant in ("caption", "label_to_token"):
            continue
        places = sum(map(len, output.anchors)) * len(case.content["detection"]["label_to_token"])
        count = min(settings["fpn_post_nms_top_n"], places)
        for image, found in enumerate(detections(output, case, variant)):
            name, boxes = f"det.{variant}.{image}", found.boxes_xyxy
            height, width = case.inputs["in.image_sizes_hw"][image].tolist()
            inside = (boxes >= 0) & (boxes <= torch.tensor([width, height, width, height]))
            # Suppression leaves fewer than are asked for, but never none. Scores of drawn weights
            # lie around 0.5: there may be none above a threshold.
            least = 0 if settings["pre_nms_thresh"] >= 0.5 else 1
            left = min(count, max(least, len(boxes)))
            yield (
                {
                    f"{name}.boxes": torch.where(inside, boxes, torch.inf),
                    f"{name}.scores": found.scores,
                    f"{name}.labels": found.label_indices,
                },
                {f"{name}.boxes": (left, 4), f"{name}.scores": (left,), f"{name}.labels": (left,)},
            )


def _losses(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """Losses and gradients as they are recorded, without dropout; and losses of edge cases."""
    yield _backward(model, case)
    batch = case.batch()
    with torch.no_grad():
        output = model(batch.images, batch.token_ids, batch.text_mask)
        for variant in EDGE_CASES:
            found = edge_losses(case, model, output, variant)
            yield (
                {f"{variant} {name}": value for name, value in found.items()},
                {f"{variant} {name}": () for name in LOSSES},
            )


def _training_mode(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """Losses and gradients with dropout, stochastic depth and DropBlock."""
    torch.manual_seed(0)
    model.train()
    yield _backward(model, case)
    model.eval()


def _step(model: FiberDetector, case: FinePresetCase) -> Iterator[Output]:
    """One optimiser step of published pre-training, on the gradients that are there."""
    run = load_recipe("grounding")
    optimizer = build_optimizer(model, run.optim)
    set_learning_rate(optimizer, run.optim.lr * lr_factor(0, run.train.steps, run.optim))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    yield published_state(model), case.published_shapes()


def _backward(model: FiberDetector, case: FinePresetCase) -> Output:
    """Losses, and the gradient of their sum for everything that is trained."""
    batch = case.batch()
    model.zero_grad(set_to_none=True)
    output = model(batch.images, batch.token_ids, batch.text_mask)
    losses = grounding_losses(output, batch, model.config, background_token=255)
    total = torch.stack([losses[name] * weight for name, (_, weight) in LOSSES.items()]).sum()
    total.backward()
    found = {name: grad for name, grad in case.published_grads(model).items() if grad is not None}
    trained = {
        name: shape
        for name, shape in case.published_shapes().items()
        if not is_buffer(name) and "cls_logits" not in name
    }
    # Gradients of 1 x 1 convolutions have the shape of our linear layers.
    found = {name: grad.reshape(trained.get(name, grad.shape)) for name, grad in found.items()}
    given = {f"loss.{name}": value for name, value in (losses | {"total": total}).items()}
    return found | given, trained | dict.fromkeys(given, ())


def _starting(case: FinePresetCase, *starts: str) -> dict[str, Shape]:
    return {name: shape for name, shape in recorded_shapes(case).items() if name.startswith(starts)}


#: The step, which changes the model, comes last.
MODES: dict[str, Callable[[FiberDetector, FinePresetCase], Iterator[Output]]] = {
    "weights": _weights,
    "training texts": _training_text,
    "detection text": _detection_text,
    "losses and gradients": _losses,
    "in training mode": _training_mode,
    "optimizer step": _step,
}
