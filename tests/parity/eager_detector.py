"""Compare the benches' eager detector with recorded fine cases, so that it stays a fair peer.

Compared are its forward passes, tensor by tensor, and its detections. Anchors as they are learned
from, losses and gradients are not among what it is timed for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benches.eager_detections import Settings, detect, level_anchors
from benches.eager_detector import EagerDetector, Predictions
from fiber.postprocess import FoundBoxes
from tests.parity.comparison import Comparison
from tests.parity.fine_case import LEVELS, FineCase
from tests.parity.fine_runs import not_recovered
from tests.parity.tolerances import FineTolerances, fine_tolerances

#: Endings of published buffers, which the eager model computes.
BUFFERS = ("relative_position_index", "position_ids")
#: Recorded tensors that are no part of a pass: what anchors learn.
TARGETS = "atss."


def build(case: FineCase) -> EagerDetector:
    """Make the model with the weights of a case.

    Raises:
        ValueError: if a tensor of either side is unknown to the other.
    """
    model = EagerDetector(case.fiber_config())
    load_published(model, case.published_state())
    return model.eval()


def load_published(model: EagerDetector, state: dict[str, Tensor]) -> None:
    """Load a published state dict; the published buffers are left out.

    Raises:
        ValueError: if a tensor of either side is unknown to the other.
    """
    found = model.load_state_dict(state, strict=False)
    unknown = [
        name
        for name in found.unexpected_keys
        if not name.endswith(BUFFERS) and "cell_anchors" not in name
    ]
    if found.missing_keys or unknown:
        raise ValueError(f"missing {found.missing_keys}, unexpected {unknown}")


def compare_case(path: Path) -> Comparison:
    """Run the eager detector's passes on one recorded case.

    Args:
        path: `<name>.json` of the case.
    """
    case = FineCase(path)
    comparison = Comparison(f"{case.name} (eager)")
    allowed = fine_tolerances(case.config)
    model = build(case)
    count = sum(parameter.numel() for parameter in model.parameters())
    comparison.number("parameters", "num_params", count, case.config["num_params"], 0.0)
    batch = case.batch()
    with torch.no_grad():
        predictions, found = run(model, "train", batch.images, batch.token_ids, batch.text_mask)
        _compare_tensors(comparison, case, found, allowed)
        predictions, found = run(model, "test", batch.images, *case.detection_text())
        _compare_tensors(comparison, case, found, allowed)
    _compare_detections(comparison, case, predictions, allowed)
    left = {*case.tensors} - comparison.compared
    comparison.not_compared = sorted(name for name in left if not name.startswith(TARGETS))
    return comparison


def run(
    model: EagerDetector, prefix: str, images: Tensor, ids: Tensor, mask: Tensor
) -> tuple[Predictions, dict[str, Tensor]]:
    """Run the model; the second part holds every intermediate under its recorded name."""
    found: dict[str, Tensor] = {}
    with _recorded_modules(model, prefix, found):
        features = model.fuse(images, ids, mask)
        predictions = model.predict(features, mask)
    real = mask.unsqueeze(-1).float()
    found[f"{prefix}.vis.patch_embed"] = (
        found[f"{prefix}.vis.patch_embed"]
        .transpose(1, 2)
        .unflatten(2, (images.shape[-2] // 4, images.shape[-1] // 4))
    )
    found[f"{prefix}.lang.hidden"] = features.text
    found[f"{prefix}.lang.embedded"] = features.text * real
    found[f"{prefix}.lang.aggregate"] = (features.text * real).sum(1) / real.sum(1)
    found |= {f"{prefix}.backbone.C{n}": each for n, each in enumerate(features.maps, 2)}
    detector = model.config.detector
    for level, name in enumerate(LEVELS):
        head = f"{prefix}.head"
        found[f"{head}.dot_product_logits.{name}"] = predictions.tokens[level]
        found[f"{head}.bbox_reg.{name}"] = predictions.deltas[level]
        found[f"{head}.centerness.{name}"] = predictions.centerness[level]
        found[f"{head}.cls_logits.{name}"] = predictions.unused[level]
        size = predictions.deltas[level].shape[-2:]
        anchors = level_anchors(size, detector.strides[level], detector.anchor_scale)
        found[f"anchors.{name}"] = anchors
    return predictions, found


@contextmanager
def _recorded_modules(model: EagerDetector, prefix: str, into: dict[str, Tensor]) -> Iterator[None]:
    """Store the output of every block, layer, pyramid and block of the head."""
    body, text, pyramid, head = model.parts
    named: dict[str, nn.Module] = {"vis.patch_embed": body.patch_embed}
    for number, stage in enumerate(body.stages):
        for block, module in enumerate(stage.typed_blocks):
            named[f"vis.layers.{number}.blocks.{block}"] = module
    named["txt.embeddings"] = text.embeddings
    named |= {f"txt.layer.{number}": layer for number, layer in enumerate(text.layers)}
    named["fpn"] = pyramid
    named |= {f"dyhead.{number}": block for number, block in enumerate(head.dyhead_tower)}

    def recorder(name: str) -> Callable[[nn.Module, tuple, Tensor | list[Tensor]], None]:
        def record(_module: nn.Module, _arguments: tuple, output: Tensor | list[Tensor]) -> None:
            if isinstance(output, Tensor):
                into[f"{prefix}.{name}"] = output
            else:
                levels = zip(LEVELS, output, strict=True)
                into.update({f"{prefix}.{name}.{level}": value for level, value in levels})

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in named.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare_tensors(
    comparison: Comparison, case: FineCase, found: dict[str, Tensor], allowed: FineTolerances
) -> None:
    """Compare every recorded tensor among those found; errors are absolute."""
    for name, value in found.items():
        if name not in case.tensors:
            continue
        recorded, absmax, parts = case.tensors[name], 1.0, name.split(".")
        if parts[0] == "anchors":
            group, tolerance, absmax = "anchors", allowed.geometry, recorded.abs().max().item()
        else:
            group = ".".join(parts[:2])
            tolerance = allowed.heads if parts[1] in ("head", "dyhead") else allowed.features
        comparison.tensor(group, name, value, recorded, tolerance, absmax)


def _compare_detections(
    comparison: Comparison, case: FineCase, predictions: Predictions, allowed: FineTolerances
) -> None:
    """Compare sets of detections: label equal, box within 1e-2 pixels, score within 1e-4."""
    recorded = case.content["detection"]
    label_tokens = {int(label): tokens for label, tokens in recorded["label_to_token"].items()}
    numbers = torch.tensor(list(label_tokens))
    sizes = case.inputs["in.image_sizes_hw"].tolist()
    for variant in sorted({name.split(".")[1] for name in case.tensors if name.startswith("det.")}):
        chosen = recorded[variant]
        settings = Settings(
            score_threshold=chosen["pre_nms_thresh"],
            candidates_per_level=chosen["pre_nms_top_n"],
            nms_threshold=chosen["nms_thresh"],
            max_detections=chosen["fpn_post_nms_top_n"],
            aggregate=chosen["agg"].lower(),
            num_classes=None if chosen["cls"] == -1 else chosen["cls"],
        )
        every = detect(predictions, case.fiber_config(), label_tokens, sizes, settings)
        for image, found in enumerate(every):
            name = f"det.{variant}.{image}"
            half_open = found.boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
            places = (found.labels[:, None] == numbers).int().argmax(1)
            lost = not_recovered(FoundBoxes(half_open, found.scores, places), case, name)
            comparison.group("detections", allowed.detections).add(name, float(lost))
            comparison.compared |= {f"{name}.{part}" for part in ("boxes", "scores", "labels")}
