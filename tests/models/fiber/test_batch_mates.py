"""Predictions for an image do not depend on the rest of its batch.

In single precision, the bound is 1e-4 of the largest value, or 1e-4; in double precision, only the
summation order differs.
"""

import dataclasses
import random

import pytest
import torch

from fiber.config import preset
from fiber.data.batch import GroundingBatch
from fiber.losses.atss import atss_assign
from fiber.losses.grounding import centerness_targets, grounding_losses
from fiber.models.fiber.detector import DetectorOutput, FiberDetector
from fiber.postprocess import detect_boxes, ground_phrases

pytestmark = pytest.mark.oldest

#: Image side lengths in pixels, in addition to whole patches.
SIDES = (17, 32, 50, 64, 96, 100, 160)
TOKENS = [[[1], [2, 3]], [[2]], [[1, 2]], [[3], [1]]]


def build(name: str, *, shift_small_maps: bool, dtype: torch.dtype) -> FiberDetector:
    """A detector with nonuniform attention, so that reading a wrong neighbor has an effect."""
    torch.manual_seed(0)
    config = preset(name, stage="fine")
    fusion = dataclasses.replace(config.fusion, shift_small_maps=shift_small_maps)
    model = FiberDetector(dataclasses.replace(config, fusion=fusion)).to(dtype).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("qkv.weight", "query.weight", "key_value.weight", "bias_table")):
                parameter *= 4
            if key.endswith(("box_deltas.weight", "centerness.weight", "text_projection.weight")):
                parameter *= 20
    return model


def batch_of(seed: int, dtype: torch.dtype) -> GroundingBatch:
    """Images of two to four sizes and texts of various lengths, padded with zeros."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    count = draw.randint(2, 4)
    sizes = [(draw.choice(SIDES), draw.choice(SIDES)) for _ in range(count)]
    height, width = (-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    images = torch.zeros(count, 3, height, width, dtype=dtype)
    lengths = torch.tensor([draw.randint(4, 9) for _ in range(count)])
    for row, (own_height, own_width) in enumerate(sizes):
        images[row, :, :own_height, :own_width] = torch.randn(
            3, own_height, own_width, generator=generator
        )
    mask = torch.arange(9) < lengths[:, None]
    ids = torch.randint(4, 300, (count, 9), generator=generator).masked_fill(~mask, 1)
    # The first image has no box.
    owners = list(range(1, count))
    boxes = [
        [0.1 * sizes[row][1], 0.2 * sizes[row][0], 0.8 * sizes[row][1], 0.9 * sizes[row][0]]
        for row in owners
    ]
    positive = torch.zeros(len(owners), 9, dtype=torch.bool)
    positive[:, 1:3] = True
    return GroundingBatch(
        keys=tuple(map(str, range(count))),
        images=images,
        image_sizes=torch.tensor(sizes),
        original_sizes=torch.tensor(sizes) * 2,
        token_ids=ids,
        text_mask=mask,
        boxes_xyxy=torch.tensor(boxes),
        boxes_per_image=torch.tensor([0] + [1] * len(owners)),
        positive_map=positive,
    )


def alone(batch: GroundingBatch, row: int) -> GroundingBatch:
    """One image of the batch, padded as it would be on its own."""
    height, width = (-(-side // 32) * 32 for side in batch.image_sizes[row].tolist())
    length = int(batch.text_mask[row].sum())
    own = slice(int(batch.boxes_per_image[:row].sum()), int(batch.boxes_per_image[: row + 1].sum()))
    return GroundingBatch(
        keys=batch.keys[row : row + 1],
        images=batch.images[row : row + 1, :, :height, :width],
        image_sizes=batch.image_sizes[row : row + 1],
        original_sizes=batch.original_sizes[row : row + 1],
        token_ids=batch.token_ids[row : row + 1, :length],
        text_mask=batch.text_mask[row : row + 1, :length],
        boxes_xyxy=batch.boxes_xyxy[own],
        boxes_per_image=batch.boxes_per_image[row : row + 1],
        positive_map=batch.positive_map[own, :length],
    )


def run(model: FiberDetector, batch: GroundingBatch, *, sizes: bool = True) -> DetectorOutput:
    return model(
        batch.images, batch.token_ids, batch.text_mask, batch.image_sizes if sizes else None
    )


def worst_error(model: FiberDetector, batch: GroundingBatch, *, sizes: bool = True) -> float:
    """Largest difference from the single images, divided by max(1, largest value)."""
    together = run(model, batch, sizes=sizes)
    worst = 0.0
    for row in range(len(batch)):
        single = alone(batch, row)
        expected = run(model, single, sizes=False)
        height, width = single.images.shape[-2:]
        for level, stride in enumerate(model.config.detector.strides):
            whole = [-(-side // stride) for side in batch.images.shape[-2:]]
            own = -(-height // stride), -(-width // stride)
            for ours, theirs in (
                (together.token_logits, expected.token_logits),
                (together.box_deltas, expected.box_deltas),
                (together.centerness_logits, expected.centerness_logits),
            ):
                cut = ours[level][row].unflatten(0, whole)[: own[0], : own[1]].flatten(0, 1)
                wanted = theirs[level][0]
                cut = cut[..., : wanted.shape[-1]] if wanted.ndim > 1 else cut
                error = (cut - wanted).abs().max() / max(1.0, wanted.abs().max().item())
                worst = max(worst, error.item())
    return worst


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_random_batches_in_single_precision(seed):
    model = build("small", shift_small_maps=False, dtype=torch.float32)
    assert worst_error(model, batch_of(seed, torch.float32)) <= 1e-4


@pytest.mark.parametrize("shift_small_maps", [True, False])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_random_batches_in_double_precision(seed, shift_small_maps):
    model = build("micro", shift_small_maps=shift_small_maps, dtype=torch.float64)
    assert worst_error(model, batch_of(seed, torch.float64)) <= 1e-11


@torch.no_grad()
def test_padding_affects_outputs_without_sizes():
    """Shows that the check above can fail: without sizes, padding changes the logits."""
    model = build("micro", shift_small_maps=True, dtype=torch.float64)
    assert worst_error(model, batch_of(0, torch.float64), sizes=False) > 1e-2


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_batched_detections_match_single_images(seed):
    """Same labels, boxes within 1e-2 pixels, scores within 1e-4, none missing and none added."""
    model = build("small", shift_small_maps=False, dtype=torch.float32)
    batch = batch_of(seed, torch.float32)
    together = run(model, batch)
    maps = TOKENS[: len(batch)]
    for find in (
        lambda *arguments: detect_boxes(*arguments, score_threshold=0.0),
        lambda *arguments: ground_phrases(*arguments, boxes_per_phrase=50),
    ):
        found = find(together, maps, batch.image_sizes, batch.original_sizes)
        for row in range(len(batch)):
            single = alone(batch, row)
            (expected,) = find(
                run(model, single), maps[row : row + 1], single.image_sizes, single.original_sizes
            )
            assert len(expected.scores)
            same = (found[row].boxes_xyxy[:, None] - expected.boxes_xyxy).abs().amax(-1) <= 1e-2
            same &= (found[row].scores[:, None] - expected.scores).abs() <= 1e-4
            same &= found[row].label_indices[:, None] == expected.label_indices
            assert same.any(0).all()
            assert same.any(1).all()


@pytest.mark.parametrize("seed", range(3))
def test_batched_losses_match_single_images(seed):
    """Each loss is a sum over images and a divisor; the sums are compared."""
    model = build("micro", shift_small_maps=True, dtype=torch.float64)
    batch = batch_of(seed, torch.float64)
    with torch.no_grad():
        together = grounding_losses(run(model, batch), batch, model.config)
        sums = dict.fromkeys(together, 0.0)
        totals = dict.fromkeys(together, 0.0)
        for row in range(len(batch)):
            single = alone(batch, row)
            output = run(model, single)
            losses = grounding_losses(output, single, model.config)
            for name, divisor in divisors(model, output, single).items():
                totals[name] += divisor
                # An image without a box has a divisor of 1 alone, and none in a batch.
                sums[name] += losses[name].item() * (divisor or 1.0)
    for name, total in totals.items():
        assert total > 0
        assert together[name].item() * total == pytest.approx(sums[name], rel=1e-5)


def divisors(
    model: FiberDetector, output: DetectorOutput, batch: GroundingBatch
) -> dict[str, float]:
    """The divisors of each loss for some images."""
    assigned = atss_assign(
        output.anchors,
        batch.boxes_xyxy,
        batch.boxes_per_image,
        top_k=model.config.detector.atss_top_k,
    )
    image, anchor = (assigned >= 0).nonzero(as_tuple=True)
    anchors = torch.cat(output.anchors)[anchor]
    central = centerness_targets(anchors, batch.boxes_xyxy[assigned[image, anchor]]).sum().item()
    count = float(len(anchor))
    return {"alignment": count, "box": central, "centerness": count}


def test_gradients_reach_every_image_but_no_padding():
    model = build("micro", shift_small_maps=True, dtype=torch.float64)
    batch = batch_of(1, torch.float64)
    images = batch.images.clone().requires_grad_()
    output = run(model, dataclasses.replace(batch, images=images))
    losses = grounding_losses(output, batch, model.config)
    torch.stack(list(losses.values())).sum().backward()
    assert images.grad is not None
    for row in range(len(batch)):
        height, width = (-(-side // 32) * 32 for side in batch.image_sizes[row].tolist())
        assert images.grad[row, :, :height, :width].abs().max() > 0
        assert (images.grad[row, :, height:] == 0).all()
        assert (images.grad[row, :, :, width:] == 0).all()


def test_sizes_outside_the_tensor_are_rejected():
    model = build("micro", shift_small_maps=True, dtype=torch.float32)
    batch = batch_of(0, torch.float32)
    wrong = batch.image_sizes.clone()
    wrong[1, 0] = 1000
    with pytest.raises(ValueError, match=r"image_sizes\[1\].*got \(1000, \d+\)"):
        run(model, dataclasses.replace(batch, image_sizes=wrong))
    with pytest.raises(ValueError, match=r"image_sizes: expected \d.*got \d"):
        model(batch.images, batch.token_ids, batch.text_mask, wrong[:1] * 0 + 32)
