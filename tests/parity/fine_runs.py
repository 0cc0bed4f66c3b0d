"""What our detector computes for every recorded name of a fine case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fiber.losses.atss import atss_assign
from fiber.losses.grounding import centerness_targets
from fiber.models.fiber.detector import DetectorOutput, FiberDetector
from fiber.ops.boxes import to_inclusive
from fiber.postprocess import FoundBoxes, detect_boxes
from tests.box_deltas import encode_deltas
from tests.parity.fine_case import LEVELS, FineCase


def run_detector(
    model: FiberDetector, prefix: str, images: Tensor, ids: Tensor, mask: Tensor
) -> tuple[DetectorOutput, dict[str, Tensor]]:
    """Run the model; the second part holds every intermediate under its recorded name."""
    found: dict[str, Tensor] = {}
    with _recorded_blocks(model, prefix, found):
        features = model.backbone.encode_pair(images, ids, mask)
    text = features.text
    assert text is not None
    real = mask.unsqueeze(-1).float()
    found[f"{prefix}.lang.hidden"] = text
    found[f"{prefix}.lang.embedded"] = text * real
    found[f"{prefix}.lang.aggregate"] = (text * real).sum(1) / real.sum(1)
    maps = model.stage_maps(features)
    found[f"{prefix}.backbone.C2"] = features.stages[0].permute(0, 3, 1, 2)
    found |= {f"{prefix}.backbone.C{number}": each for number, each in enumerate(maps, 3)}
    levels = model.pyramid(maps)
    _add_levels(found, f"{prefix}.fpn", levels)
    for number, block in enumerate(model.tower.blocks):
        levels = block(levels)
        _add_levels(found, f"{prefix}.dyhead.{number}", levels)
    unused = [model.head.unused_classes(level.permute(0, 2, 3, 1)) for level in levels]
    _add_levels(found, f"{prefix}.head.cls_logits", [each.permute(0, 3, 1, 2) for each in unused])
    output = model.predict(features)
    for name, level, tokens, deltas, centerness in zip(
        LEVELS,
        levels,
        output.token_logits,
        output.box_deltas,
        output.centerness_logits,
        strict=True,
    ):
        shape = (len(images), -1, *level.shape[-2:])
        found[f"{prefix}.head.dot_product_logits.{name}"] = tokens
        # (B, H W, 4) -> (B, 4, H, W)
        found[f"{prefix}.head.bbox_reg.{name}"] = deltas.transpose(1, 2).reshape(shape)
        found[f"{prefix}.head.centerness.{name}"] = centerness.reshape(shape)
    return output, found


def _add_levels(found: dict[str, Tensor], prefix: str, levels: list[Tensor]) -> None:
    found |= {f"{prefix}.{name}": level for name, level in zip(LEVELS, levels, strict=True)}


@contextmanager
def _recorded_blocks(model: FiberDetector, prefix: str, into: dict[str, Tensor]) -> Iterator[None]:
    """Store the output of every block and layer under its recorded name."""
    backbone = model.backbone
    handles = []

    def record(module: nn.Module, name: str, *, as_map: bool = False) -> None:
        def hook(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
            if as_map:
                output = output.permute(0, 3, 1, 2)
            elif output.ndim == 4:
                output = output.flatten(1, 2)
            into[f"{prefix}.{name}"] = output

        handles.append(module.register_forward_hook(hook))

    record(backbone.image.patch_embedding, "vis.patch_embed", as_map=True)
    for number, (stage, block) in enumerate(backbone.image.places):
        record(backbone.image.block(number), f"vis.layers.{stage}.blocks.{block}")
    record(backbone.text.embeddings, "txt.embeddings")
    for number, layer in enumerate(backbone.text.layers):
        record(layer, f"txt.layer.{number}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assignment(output: DetectorOutput, case: FineCase) -> dict[str, Tensor]:
    """Anchors and what they are to learn; an anchor without a box learns the last token."""
    batch = case.batch()
    assigned = atss_assign(
        output.anchors, batch.boxes_xyxy, batch.boxes_per_image, top_k=case.config["atss_topk"]
    )
    found = {
        f"anchors.{name}": to_inclusive(level)
        for name, level in zip(LEVELS, output.anchors, strict=True)
    }
    taken = assigned >= 0
    labels = case.inputs["in.labels"]
    found["atss.cls_labels"] = torch.where(taken, labels[assigned.clamp(min=0)], 0)
    tokens = torch.zeros(*assigned.shape, batch.positive_map.shape[1])
    tokens[taken] = batch.positive_map[assigned[taken]].float()
    tokens[~taken] = 0
    tokens[..., -1] += (~taken).float()
    found["atss.token_labels_nonzero"] = tokens.nonzero()
    # The published code encodes the picture's first box where there is none.
    firsts = (batch.boxes_per_image.cumsum(0) - batch.boxes_per_image)[:, None]
    boxes = batch.boxes_xyxy[torch.where(taken, assigned, firsts)]
    anchors = torch.cat(output.anchors)
    found["atss.reg_targets"] = encode_deltas(boxes, anchors.expand_as(boxes))
    found["atss.centerness_targets_of_positives"] = centerness_targets(
        anchors.expand_as(boxes)[taken], boxes[taken]
    )
    return found


def detections(output: DetectorOutput, case: FineCase, variant: str) -> list[FoundBoxes]:
    """Detect under one recorded setting, in the model's own pixels."""
    recorded = case.content["detection"]
    settings = recorded[variant]
    sizes = case.inputs["in.image_sizes_hw"]
    return detect_boxes(
        output,
        [list(recorded["label_to_token"].values())] * len(sizes),
        sizes,
        sizes,
        score_threshold=settings["pre_nms_thresh"],
        nms_threshold=settings["nms_thresh"],
        max_detections=settings["fpn_post_nms_top_n"],
        candidates_per_level=settings["pre_nms_top_n"],
        aggregate=settings["agg"].lower(),
    )


def not_recovered(found: FoundBoxes, case: FineCase, name: str) -> int:
    """Count recorded detections that ours lack, and ours that are not recorded."""
    boxes, scores, labels = (
        case.tensors[f"{name}.{part}"] for part in ("boxes", "scores", "labels")
    )
    numbers = torch.tensor([int(label) for label in case.content["detection"]["label_to_token"]])
    same = (to_inclusive(found.boxes_xyxy)[:, None] - boxes).abs().amax(-1) <= 1e-2
    same &= (found.scores[:, None] - scores).abs() <= 1e-4
    same &= numbers[found.label_indices][:, None] == labels
    return int((~same.any(0)).sum() + (~same.any(1)).sum())
