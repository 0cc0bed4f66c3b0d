"""Compare post-processing of masks: crafted ones in post.json, and those of a case's images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from fiber.metrics.regions import (
    PRECISION_THRESHOLDS,
    SemanticCounts,
    phrase_areas,
    phrase_mask_metrics,
)
from fiber.models.masks.pixel_decoder import sine_positions
from fiber.postprocess.masks import (
    Panoptic,
    final_masks,
    instance_masks,
    panoptic_segments,
    semantic_scores,
)
from tests.parity.comparison import Comparison
from tests.parity.tolerances import METRICS, XDECODER_POST
from tests.parity.xdecoder_case import XDecoderCase, compare_tensors
from tests.parity.xdecoder_losses import compare_units

#: Thresholds of the recorded maps, by the end of their names: of the score and of the overlap.
_THRESHOLDS = {"": (0.8, 0.8), "_0.3_0.02": (0.3, 0.02), "_0.5_0.1": (0.5, 0.1)}
#: Largest number of masks of instances that were recorded.
_INSTANCE_MASKS = 12
#: What waits in post.json, by the start of the name.
_PENDING = {
    "sizes": "the transforms of segmentation",
}


def final_size(case: XDecoderCase, logits: Tensor, number: int) -> Tensor:
    """Resize masks of an image, (R, H / 4, W / 4), to its wanted size."""
    padded = (4 * logits.shape[-2], 4 * logits.shape[-1])
    inside, wanted = (tuple(case.config[name][number]) for name in ("image", "out"))
    return final_masks(logits, padded, inside, wanted)


def compare_outputs(
    comparison: Comparison, case: XDecoderCase, logits: Tensor, class_logits: Tensor, number: int
) -> None:
    """Compare the outputs for one image: masks, semantic map, panoptic maps, instances."""
    names, things = case.config["names"], case.config["things"]
    is_thing = [label < things for label in range(len(names))]
    image, masks = f"seg.image{number}", final_size(case, logits, number)
    found = {
        f"{image}.mask_logits": masks,
        f"{image}.sem_seg": semantic_scores(masks, class_logits),
    }
    compare_tensors(comparison, case, "final masks", found, case.tolerances.final_masks)
    for end, (score, overlap) in _THRESHOLDS.items():
        panoptic = panoptic_segments(
            masks, class_logits, is_thing, score_threshold=score, overlap_threshold=overlap
        )
        _compare_segments(
            comparison, f"{image}.segments{end}", panoptic, case.scalars[f"{image}.segments{end}"]
        )
        name = f"{image}.panoptic{end}"
        comparison.compared.add(name)
        stored, ours = case.stored(name), case.sample(name, panoptic.ids)
        # Where two masks are equal in float32, rounding decides.
        share = (ours != stored).double().mean().item()
        comparison.group("panoptic pixels", case.tolerances.bits).add(name, share)
    instances = instance_masks(masks, class_logits, is_thing)
    found = {f"{image}.instances.scores": instances.scores}
    compare_tensors(comparison, case, "instances", found, case.tolerances.scores)
    found = {
        f"{image}.instances.classes": instances.labels,
        f"{image}.instances.masks": instances.masks[:_INSTANCE_MASKS],
    }
    compare_tensors(comparison, case, "instances", found, 0.0)


def _compare_segments(
    comparison: Comparison, name: str, ours: Panoptic, recorded: list[dict[str, Any]]
) -> None:
    own = [(each.id, each.is_thing, each.label) for each in ours.segments]
    theirs = [(each["id"], each["isthing"], each["category_id"]) for each in recorded]
    comparison.compared.add(name)
    comparison.group("segments", 0.0).add(name, float(own != theirs))


def compare_post(path: Path) -> Comparison:
    """Compare post-processing of crafted masks, with and without stuff."""
    content, stored = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    config, records = content["config"], content["tensors"]
    comparison = Comparison("post")
    for name in sorted(set(records) ^ set(stored)):
        comparison.group("names", 0.0).add(f"{name}: in one of both files", 1.0)
    if comparison.groups:
        return comparison
    low = stored["post.low"].view(records["post.low"]["shape"])
    classes = stored["post.class_logits"].view(records["post.class_logits"]["shape"])
    sizes = (tuple(config[name]) for name in ("padded", "inside", "wanted"))
    masks = final_masks(low, *sizes)
    is_thing = [label < config["things"] for label in range(config["classes"])]
    found = {
        "post.padded": final_masks(low, *[tuple(config["padded"])] * 3),
        "post.mask_logits": masks,
        "post.semantic": semantic_scores(masks, classes),
        "post.semantic_with_background": semantic_scores(masks, classes, with_background=True),
        "unit.position_3x5_8": sine_positions(3, 5, 16, masks)[None],
    }
    for name in records:
        kind, _, thresholds = name.removeprefix("post.").partition("_")
        if kind == "panoptic":
            score, overlap = map(float, thresholds.split("_"))
            panoptic = panoptic_segments(
                masks, classes, is_thing, score_threshold=score, overlap_threshold=overlap
            )
            entry = f"post.segments_{thresholds}"
            _compare_segments(comparison, entry, panoptic, content["scalars"][entry])
            found[name] = panoptic.ids
    for kind, things in (("things", is_thing), ("all", None)):
        own = instance_masks(masks, classes, things, max_instances=config["topk"])
        name = f"post.instances_{kind}"
        found |= {f"{name}.scores": own.scores, f"{name}.classes": own.labels}
        found |= {f"{name}.masks": own.masks, f"{name}.boxes": own.boxes}
    for name, value in found.items():
        record, recorded = records[name], stored[name].reshape(-1)
        if record.get("packed"):
            bits = np.unpackbits(recorded.numpy())[: int(np.prod(record["shape"]))]
            recorded = torch.from_numpy(bits).bool()
        ours = value.reshape(-1)[:: record.get("stride") or 1]
        absmax = record.get("absmax", 1.0)
        comparison.tensor("post-processing", name, ours, recorded, XDECODER_POST, absmax)
    comparison.compared |= {"post.low", "post.class_logits"}
    compare_units(comparison, records, stored, content["scalars"])
    _compare_metrics(comparison, records, stored, content["scalars"])
    for name in sorted({*records, *content["scalars"]} - comparison.compared):
        waits = next((why for start, why in _PENDING.items() if name.startswith(start)), None)
        if waits is None:
            comparison.not_compared.append(name)
        else:
            comparison.set_aside[name] = f"waits for {waits}"
    return comparison


def _compare_metrics(
    comparison: Comparison,
    records: dict[str, Any],
    stored: dict[str, Tensor],
    scalars: dict[str, Any],
) -> None:
    """Compare metrics of crafted masks of phrases and of a semantic map; recorded in percent."""

    def given(name: str) -> NDArray[Any]:
        comparison.compared.add(name)
        value, record = stored[name].numpy(), records[name]
        if record.get("packed"):
            value = np.unpackbits(value)[: int(np.prod(record["shape"]))].astype(bool)
        return value.reshape(record["shape"])

    masks = zip(given("metrics.ref.prediction"), given("metrics.ref.truth"), strict=True)
    found = phrase_mask_metrics([phrase_areas(own, real) for own, real in masks])
    ours = {"cIoU": found["ciou"], "mIoU": found["miou"]}
    ours |= {f"precision@{at}": found[f"precision_at_{at}"] for at in PRECISION_THRESHOLDS}
    _compare_numbers(comparison, "metrics.ref", ours, scalars["metrics.ref"])
    theirs = dict(scalars["metrics.sem"])
    counts = SemanticCounts(theirs.pop("classes"))
    truth = given("metrics.sem.truth")
    counts.add(given("metrics.sem.prediction"), truth, theirs.pop("ignore"))
    by_class = theirs.pop("iou")
    found = counts.metrics()
    names = {
        "mIoU": "published_miou",
        "fwIoU": "frequency_iou",
        "mACC": "accuracy",
        "pACC": "pixel_accuracy",
    }
    ours = {theirs: found[own] for theirs, own in names.items()}
    _compare_numbers(comparison, "metrics.sem", ours, theirs)
    for label, (own, expected) in enumerate(zip(counts.iou_by_class(), by_class, strict=True)):
        name = f"metrics.sem.iou of class {label}"
        if expected is None:
            comparison.group("metrics", METRICS).add(name, float(not np.isnan(own)))
        else:
            comparison.number("metrics", name, float(own), expected, METRICS)


def _compare_numbers(
    comparison: Comparison, name: str, ours: dict[str, float], recorded: dict[str, float]
) -> None:
    comparison.compared.add(name)
    for key in sorted({*ours, *recorded}):
        if key not in ours or key not in recorded:
            comparison.group("metrics", METRICS).add(f"{name}.{key}: in one of both", float("nan"))
            continue
        comparison.number("metrics", f"{name}.{key}", 100 * ours[key], recorded[key], METRICS)
