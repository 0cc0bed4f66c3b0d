"""Compare the recorded geometry of the fine stage: boxes, pictures, suppression, losses, rates.

Recorded boxes have inclusive corners, ours are half-open (`fiber.ops.boxes`).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_area, box_iou

from fiber import _core
from fiber.data import DataLoader, ImageTransform, Record, Tokenizer, sources
from fiber.data.batch import Batch
from fiber.losses.grounding import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    centerness_targets,
    token_focal_loss,
)
from fiber.metrics.boxes import pairwise_giou
from fiber.ops.anchors import pyramid_anchors
from fiber.ops.boxes import (
    DELTA_WEIGHTS,
    MAX_LOG_SCALE,
    clip_to_image,
    decode_deltas,
    paired_giou,
    to_inclusive,
)
from fiber.ops.nms import nms
from fiber.training.config.run import load_recipe
from fiber.training.optim import lr_factor
from tests.box_deltas import encode_deltas
from tests.parity.comparison import Comparison, Reading
from tests.parity.tolerances import GEOMETRY, LEARNING_RATES

#: Explanations, for readers.
NOTES = ("note", "pad")
#: Recorded values that nothing is compared with, and why.
SET_ASIDE = {
    "ml_nms_boundary.keep_at_0.6": "in float32 its IoU of 0.6 came out above 0.6; its own note,"
    " which is compared, says that both boxes stay",
}


def compare_geometry(path: Path) -> Comparison:
    """Compare `data_geometry.json`."""
    recorded = json.loads(path.read_text())
    comparison = Comparison(path.stem)
    comparison.set_aside |= SET_ASIDE
    for name in PARTS:
        compare_part(comparison, name, recorded)
    names = [name for name in recorded if not isinstance(recorded[name], dict)]
    for name, content in recorded.items():
        if isinstance(content, dict):
            names += Reading(comparison, name, content).unread(NOTES)
    known = comparison.compared | {*comparison.set_aside}
    comparison.not_compared = [name for name in names if name not in known]
    return comparison


def compare_part(comparison: Comparison, name: str, recorded: dict[str, Any]) -> None:
    """Compare one entry; one that lacks something, or that the package refuses, fails."""
    try:
        PARTS[name](comparison, Reading(comparison, name, recorded[name]))
    except KeyError as error:
        comparison.group("names", 0.0).add(f"{name}: {error.args[0]} is missing", 1.0)
    except ValueError as error:
        comparison.group("refused", 0.0).add(f"{name}: {error}", 1.0)


def half_open(boxes: list[list[float]]) -> Tensor:
    """Recorded boxes as ours."""
    return torch.tensor(boxes) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def _same(comparison: Comparison, name: str, ours: Tensor, recorded: Any) -> None:
    expected = torch.tensor(recorded, dtype=torch.float32)
    comparison.values(name.partition(".")[0], name, ours.float(), expected, GEOMETRY)


def _equal(comparison: Comparison, name: str, ours: Any, recorded: Any) -> None:
    label = name if ours == recorded else f"{name}: {ours}, recorded {recorded}"
    comparison.group(f"{name.partition('.')[0]} (exact)", 0.0).add(label, float(ours != recorded))


def _coder(comparison: Comparison, case: Reading) -> None:
    _same(comparison, "box_coder.weights", torch.tensor(DELTA_WEIGHTS), case["weights"])
    _same(comparison, "box_coder.clip_dw_dh", torch.tensor(MAX_LOG_SCALE), case["clip_dw_dh"])
    anchors, boxes = half_open(case["anchors"]), half_open(case["gt"])
    # What has no 1 to add would be no half-open box.
    _equal(comparison, "box_coder.plus_one", bool((box_area(anchors) > 0).all()), case["plus_one"])
    _same(comparison, "box_coder.encoded", encode_deltas(boxes, anchors), case["encoded"])
    for deltas, expected in (("encoded", "decoded_of_encoded"), ("deltas", "decoded_deltas")):
        decoded = to_inclusive(decode_deltas(torch.tensor(case[deltas]), anchors))
        _same(comparison, f"box_coder.{expected}", decoded, case[expected])


def _giou_loss(comparison: Comparison, case: Reading) -> None:
    anchors = half_open(case["anchors"])
    predicted, targets = (
        to_inclusive(decode_deltas(torch.tensor(case[name]), anchors))
        for name in ("pred_deltas", "target_deltas")
    )
    losses = 1 - paired_giou(predicted, targets)
    _same(comparison, "giou_loss.per_box", losses, case["per_box_loss_1_minus_giou"])
    weighted = (torch.tensor(case["weights"]) * losses).sum()
    _same(comparison, "giou_loss.weighted_sum", weighted, case["weighted_sum"])


def _centerness(comparison: Comparison, case: Reading) -> None:
    anchors = half_open(case["anchors"])
    targets = centerness_targets(anchors, decode_deltas(torch.tensor(case["reg_targets"]), anchors))
    _same(comparison, "centerness_target.centerness", targets, case["centerness"])


def _overlaps(comparison: Comparison, case: Reading) -> None:
    overlaps = box_iou(half_open(case["a"]), half_open(case["b"]))
    _same(comparison, "boxlist_iou_plus_one.iou", overlaps, case["iou"])


def _anchors(comparison: Comparison, case: Reading) -> None:
    """The first anchor of every level of the published model."""
    detector = load_recipe("grounding").model.detector
    cells = pyramid_anchors([(1, 1)] * 5, detector.strides, detector.anchor_scale)
    _same(comparison, case.name, to_inclusive(torch.stack(cells)), case.content)
    comparison.compared.add(case.name)


def _resized_sizes(comparison: Comparison, case: Reading) -> None:
    for number, entry in enumerate(case.content):
        transform = ImageTransform.shorter_side([entry["min"]], entry["max"], divisor=1)
        blank = np.zeros((entry["h"], entry["w"], 3), np.uint8)
        _, _, size = _core.apply_transform(blank, transform)
        _equal(comparison, f"{case.name}.{number}", list(size), entry["out_hw"])
    comparison.compared.add(case.name)


def _boxlist(comparison: Comparison, case: Reading) -> None:
    """What happens to boxes when their picture is resized and mirrored; their sizes; clipping."""
    width, height = case["size_wh"]
    boxes = half_open(case["boxes"])
    # As published, the very corners are scaled: inclusive ones here, half-open ones in the package.
    for name in ("resize_1066x800", "resize_1280x960"):
        shorter = int(name.partition("x")[2])
        transform = ImageTransform.shorter_side([shorter], 1333)
        scaled = _moved(to_inclusive(boxes), (height, width), transform)
        _same(comparison, f"boxlist.{name}", scaled, case[name])
    mirror = {"max_size": 1333, "flip_probability": 1.0}
    transform = ImageTransform.shorter_side([height], **mirror)
    mirrored = _moved(boxes, (height, width), transform)
    _same(comparison, "boxlist.hflip", to_inclusive(mirrored), case["hflip"])
    # Upside down is left to right of the picture with its axes swapped. The published formula,
    # which no published training uses, leaves the pixel's own height out: one pixel lower.
    swapped = [1, 0, 3, 2]
    turned = _moved(boxes[:, swapped], (width, height), transform)[:, swapped]
    lower = to_inclusive(turned) + torch.tensor([0.0, 1.0, 0.0, 1.0])
    _same(comparison, "boxlist.vflip", lower, case["vflip"])
    sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    _same(comparison, "boxlist.to_xywh_plus_one", sizes, case["to_xywh_plus_one"])
    back, _ = read_coco((height, width), case["to_xywh_plus_one"])
    _same(comparison, "boxlist.xywh_back", to_inclusive(back), case["xywh_back"])
    _same(comparison, "boxlist.area", box_area(boxes), case["area"])
    clipped = clip_to_image(half_open(case["clip_in"]), height, width)
    left, _ = read_coco((height, width), _xywh(clipped))
    _same(comparison, "boxlist.clip_out", to_inclusive(left), case["clip_out_remove_empty"])


def _moved(boxes: Tensor, size: tuple[int, int], transform: ImageTransform) -> Tensor:
    """Move boxes as a transform moves them in a picture of some (height, width)."""
    blank = np.zeros((*size, 3), np.uint8)
    _, moved, _ = _core.apply_transform(blank, transform, boxes.tolist())
    return torch.tensor(moved)


def _xywh(boxes: Tensor) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def read_coco(
    size: tuple[int, int], boxes_xywh: list[list[float]], *, crowds: int = 0
) -> tuple[Tensor, int]:
    """Write boxes into a file in COCO's form and read it as the package does.

    Returns:
        The half-open boxes (G, 4) of the picture, and how many crowds were left out.
    """
    entries = [{"bbox": box, "iscrowd": 0} for box in boxes_xywh]
    entries += [{"bbox": [0, 0, 9, 9], "iscrowd": 1}] * crowds
    for number, entry in enumerate(entries):
        entries[number] = {"id": number, "image_id": 1, "category_id": 1, "area": 1, **entry}
    image = {"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}
    content = {
        "images": [image],
        "annotations": entries,
        "categories": [{"id": 1, "name": "thing"}],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        (folder / "images" / "1.png").write_bytes(_picture(*size))
        (folder / "instances_train.json").write_text(json.dumps(content))
        records = sources.detection(folder, "train")
    return torch.tensor(records[0].boxes_xyxy), records.counts.get("crowd boxes", 0)


def _coco_boxes(comparison: Comparison, case: Reading) -> None:
    """Boxes of a COCO file; ours are to lie in their picture, and are clipped before."""
    width, height = case["size_wh"]
    given = [box for box in case["in"] if box != "crowd"]
    crowds = len(case["in"]) - len(given)
    corners = torch.tensor(given, dtype=torch.float32)
    corners[:, 2:] += corners[:, :2]
    boxes, left_out = read_coco(
        (height, width), _xywh(clip_to_image(corners, height, width)), crowds=crowds
    )
    _equal(comparison, "convert_coco_xywh.crowds", left_out, crowds)
    _same(comparison, "convert_coco_xywh.boxes", to_inclusive(boxes), case["out_boxes_xyxy"])


def _normalize(comparison: Comparison, case: Reading) -> None:
    """Values between two bytes lie between their results, which are linear."""
    values = torch.tensor(case["rgb01"], dtype=torch.float64) * 255
    transform = ImageTransform.squash(values.shape[1], channel_order="bgr")

    def normalized(levels: Tensor) -> Tensor:
        picture = levels.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        pixels, _, _ = _core.apply_transform(picture, transform)
        return torch.tensor(np.asarray(pixels)).double()

    # A byte's worth above, its share taken; red first before, blue first after.
    share = (values - values.floor()).flip(0)
    low, high = normalized(values.floor()), normalized(values.floor() + 1)
    _same(comparison, "normalize_bgr255.out", low + share * (high - low), case["out"])


def _image_list(comparison: Comparison, case: Reading) -> None:
    """Two pictures of different sizes in one batch."""
    sizes = case["sizes_in"]
    batch = _batch_of(sizes)
    _equal(comparison, "to_image_list.image_sizes", batch.image_sizes.tolist(), case["image_sizes"])
    _equal(comparison, "to_image_list.shape", list(batch.images.shape), case["batch_shape"])
    for number, (picture, (height, width)) in enumerate(zip(batch.images, sizes, strict=True)):
        # All of a white picture is the same above 0.
        padding = picture.clone()
        padding[:, :height, :width] = 0
        inside = bool((picture[:, :height, :width] > 0).all())
        _equal(comparison, f"to_image_list.inside {number}", inside, True)
        _equal(comparison, f"to_image_list.padding {number}", padding.any().item(), False)


def _batch_of(sizes: list[list[int]]) -> Batch:
    """Load white pictures of some (height, width), none of them resized.

    Every picture's shorter side is drawn; a draw that leaves all of them as they are is looked for.
    """
    records = [
        Record(key=str(number), images=(_picture(*size),), text="a", image_id=str(number))
        for number, size in enumerate(sizes)
    ]
    transform = ImageTransform.shorter_side([min(size) for size in sizes], 1333)
    options: dict[str, Any] = {"batch_size": len(sizes), "max_tokens": 8, "threads": 1}
    tokenizer = Tokenizer.train(["a"], 261)
    batches = (
        next(
            DataLoader(
                records,
                "grounding",
                tokenizer=tokenizer,
                transform=transform,
                seed=seed,
                **options,
            ).epoch()
        )
        for seed in range(100)
    )
    for batch in batches:
        if batch.image_sizes.tolist() == sizes:
            return batch
    raise ValueError(f"no draw gave pictures of {sizes}")


def _picture(height: int, width: int) -> bytes:
    """A white PNG."""
    stream = BytesIO()
    Image.new("RGB", (width, height), "white").save(stream, "png")
    return stream.getvalue()


def _suppression(comparison: Comparison, case: Reading) -> None:
    boxes, scores = half_open(case["boxes"]), torch.tensor(case["scores"])
    labels = torch.tensor(case["labels"])
    for threshold, expected in case["keep_ascending"].items():
        kept = nms(boxes, scores, labels, float(threshold))
        _equal(comparison, f"ml_nms.{threshold}", kept.sort().values.tolist(), expected)


def _suppression_at_the_threshold(comparison: Comparison, case: Reading) -> None:
    """Boxes as the note describes them, which are not recorded: an IoU of exactly 0.6."""
    boxes = half_open([[0, 0, 9, 9], [0, 0, 9, 5], [50, 50, 59, 59]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3, dtype=torch.int64)
    kept = nms(boxes, scores, labels, 0.599)
    _equal(comparison, "ml_nms_boundary.0.599", kept.tolist(), case["keep_at_0.599"])
    kept = nms(boxes, scores, labels, 0.6)
    _equal(comparison, "ml_nms_boundary.note", kept.tolist(), [0, 1, 2])


def _focal(comparison: Comparison, case: Reading) -> None:
    _same(comparison, "token_sigmoid_focal.alpha", torch.tensor(FOCAL_ALPHA), case["alpha"])
    _same(comparison, "token_sigmoid_focal.gamma", torch.tensor(FOCAL_GAMMA), case["gamma"])
    losses = token_focal_loss(torch.tensor(case["logits"]), torch.tensor(case["targets"]) > 0.5)
    masked = losses * torch.tensor(case["text_mask"])[:, None]
    _same(comparison, "token_sigmoid_focal.sum", masked.sum(), case["sum"])
    _same(comparison, "token_sigmoid_focal.sum_no_mask", losses.sum(), case["sum_no_mask"])


def _rates(comparison: Comparison, case: Reading) -> None:
    """The published pre-training's learning rates; the v2 run warms up for 2,000 steps."""
    run = load_recipe("grounding")
    optim = dataclasses.replace(run.optim, warmup_fraction=case["warmup_iters"] / run.train.steps)
    group = comparison.group("learning rates", LEARNING_RATES)
    group.add("base", abs(optim.lr - case["base"]))
    group.add("warmup_factor", abs(optim.warmup_start - case["warmup_factor"]))
    for number, milestone in enumerate(case["milestones"]):
        ours = optim.milestones[number] * run.train.steps
        group.add(f"milestone {number}", abs(ours - milestone))
    first = case["milestones"][0]
    before, after = (lr_factor(step, run.train.steps, optim) for step in (first - 1, first))
    group.add("gamma", abs(after / before - case["gamma"]))
    for step, recorded in case["lr_at"].items():
        ours = optim.lr * lr_factor(int(step), run.train.steps, optim)
        group.add(f"rate at {step}", abs(ours - recorded) / optim.lr)


def _referring(comparison: Comparison, case: Reading) -> None:
    overlaps = torch.tensor(pairwise_giou(case["pred"], case["gt_xyxy"]))
    _same(comparison, "refexp_generalized_iou.giou", overlaps, case["giou"])


PARTS: dict[str, Callable[[Comparison, Reading], None]] = {
    "box_coder": _coder,
    "giou_loss": _giou_loss,
    "centerness_target": _centerness,
    "boxlist_iou_plus_one": _overlaps,
    "cell_anchors_base": _anchors,
    "resize_get_size": _resized_sizes,
    "boxlist": _boxlist,
    "convert_coco_xywh": _coco_boxes,
    "normalize_bgr255": _normalize,
    "to_image_list": _image_list,
    "ml_nms": _suppression,
    "ml_nms_boundary": _suppression_at_the_threshold,
    "token_sigmoid_focal": _focal,
    "warmup_multistep_lr": _rates,
    "refexp_generalized_iou": _referring,
}
