import dataclasses
import json
import math

import pytest
import torch

from fiber.config import preset
from fiber.data.batch import GroundingBatch
from fiber.losses import grounding
from fiber.losses.atss import atss_assign
from fiber.losses.grounding import centerness_targets, grounding_losses, token_focal_loss
from fiber.models.fiber.detector import DetectorOutput
from fiber.ops.anchors import pyramid_anchors
from fiber.ops.boxes import decode_deltas
from tests.box_deltas import encode_deltas
from tests.golden import FINE

pytestmark = pytest.mark.oldest

RECORDED = FINE / "data_geometry.json"
CONFIG = preset("small", stage="fine")
SIZES = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
LENGTHS = [height * width for height, width in SIZES]
TOKENS = 6


def predictions(batch, seed=0):
    """Random predictions that need a gradient."""
    random = torch.Generator().manual_seed(seed)
    parts = [torch.randn(batch, sum(LENGTHS), n, generator=random) for n in (TOKENS, 4, 1)]
    return [part.requires_grad_() for part in parts]


def output(parts, text_mask):
    tokens, deltas, centerness = parts
    detector = CONFIG.detector
    return DetectorOutput(
        token_logits=list(tokens.split(LENGTHS, dim=1)),
        box_deltas=list(deltas.split(LENGTHS, dim=1)),
        centerness_logits=list(centerness.squeeze(-1).split(LENGTHS, dim=1)),
        anchors=pyramid_anchors(SIZES, detector.strides, detector.anchor_scale),
        text_mask=text_mask,
    )


def batch_of(counts, seed=0):
    random = torch.Generator().manual_seed(seed)
    size, total = len(counts), sum(counts)
    low = torch.rand(total, 2, generator=random) * 48
    mask = torch.ones(size, TOKENS, dtype=torch.bool)
    mask[1:, 4:] = False
    return GroundingBatch(
        keys=tuple(str(index) for index in range(size)),
        images=torch.zeros(size, 3, 96, 96),
        image_sizes=torch.full((size, 2), 96),
        original_sizes=torch.full((size, 2), 96),
        token_ids=torch.zeros(size, TOKENS, dtype=torch.int64),
        text_mask=mask,
        boxes_xyxy=torch.cat([low, low + 12 + torch.rand(total, 2, generator=random) * 30], 1),
        boxes_per_image=torch.tensor(counts, dtype=torch.int64),
        positive_map=torch.rand(total, TOKENS, generator=random) < 0.3,
    )


def part_of(batch, images):
    """Some consecutive pictures of a batch, with their boxes."""
    starts = [0, *batch.boxes_per_image.cumsum(0).tolist()]
    boxes = slice(starts[images.start], starts[images.stop])
    rows = {
        name: getattr(batch, name)[images]
        for name in (
            "keys",
            "images",
            "image_sizes",
            "original_sizes",
            "token_ids",
            "text_mask",
            "boxes_per_image",
        )
    }
    return GroundingBatch(
        **rows, boxes_xyxy=batch.boxes_xyxy[boxes], positive_map=batch.positive_map[boxes]
    )


def losses_of(counts, seed=0, **options):
    batch = batch_of(counts)
    parts = predictions(len(counts), seed)
    return grounding_losses(output(parts, batch.text_mask), batch, CONFIG, **options), parts, batch


@pytest.mark.parametrize("counts", [[0], [0, 0]])
def test_pictures_without_boxes_still_teach_the_tokens(counts):
    losses, parts, batch = losses_of(counts)
    assert losses["box"] == 0
    assert losses["centerness"] == 0
    probability = parts[0].detach().sigmoid()
    expected = 0.75 * probability**2 * -(1 - probability).log() * batch.text_mask[:, None]
    assert losses["alignment"].item() == pytest.approx(expected.sum().item(), rel=1e-5)
    sum(losses.values()).backward()
    assert all(part.grad is None or part.grad.isfinite().all() for part in parts)
    assert parts[0].grad.abs().sum() > 0


def test_losses_equal_their_definitions():
    losses, parts, batch = losses_of([2, 0, 3])
    tokens, deltas, centerness = (part.detach().double() for part in parts)
    out = output(parts, batch.text_mask)
    everything = torch.cat(out.anchors).double()
    assigned = atss_assign(out.anchors, batch.boxes_xyxy, batch.boxes_per_image)
    alignment = box = center = centrality_sum = 0.0
    taken = 0
    for image in range(3):
        for place, anchor in enumerate(everything.tolist()):
            number = int(assigned[image, place])
            for token in range(TOKENS):
                if not batch.text_mask[image, token]:
                    continue
                p = 1 / (1 + math.exp(-tokens[image, place, token].item()))
                if number >= 0 and batch.positive_map[number, token]:
                    alignment += 0.25 * (1 - p) ** 2 * -math.log(p)
                else:
                    alignment += 0.75 * p**2 * -math.log(1 - p)
            if number < 0:
                continue
            taken += 1
            # Inclusive corners, as published.
            goal = [
                corner - (index > 1)
                for index, corner in enumerate(batch.boxes_xyxy[number].tolist())
            ]
            x, y = (anchor[0] + anchor[2] - 1) / 2, (anchor[1] + anchor[3] - 1) / 2
            left, right = sorted((x - goal[0], goal[2] - x))
            top, bottom = sorted((y - goal[1], goal[3] - y))
            centrality = math.sqrt(left / right * top / bottom)
            centrality_sum += centrality
            p = 1 / (1 + math.exp(-centerness[image, place, 0].item()))
            center -= centrality * math.log(p) + (1 - centrality) * math.log(1 - p)
            side = anchor[2] - anchor[0]
            dx, dy, dw, dh = (deltas[image, place] / torch.tensor([10, 10, 5, 5])).tolist()
            width, height = side * math.exp(dw) - 1, side * math.exp(dh) - 1
            cx, cy = x + dx * side, y + dy * side
            guess = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
            box += centrality * (1 - plain_giou(guess, goal))
    assert taken > 10
    assert losses["alignment"].item() == pytest.approx(alignment / taken, rel=1e-5)
    assert losses["box"].item() == pytest.approx(box / centrality_sum, rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(center / taken, rel=1e-5)


def plain_giou(a, b):
    a = [*a[:2], max(a[0], a[2]), max(a[1], a[3])]
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (enclosing - union) / enclosing


def test_right_predictions_cost_nothing():
    batch = batch_of([3, 2])
    parts = predictions(2)
    out = output(parts, batch.text_mask)
    assigned = atss_assign(out.anchors, batch.boxes_xyxy, batch.boxes_per_image)
    taken = assigned >= 0
    anchors = torch.cat(out.anchors).expand(2, -1, 4)
    with torch.no_grad():
        parts[0].fill_(-30)
        parts[0][taken] = torch.where(batch.positive_map[assigned[taken]], 30.0, -30.0)
        parts[1][taken] = encode_deltas(batch.boxes_xyxy[assigned[taken]], anchors[taken])
        goal = centerness_targets(anchors[taken], batch.boxes_xyxy[assigned[taken]])
        parts[2][taken] = goal.logit()[:, None]
    losses = grounding_losses(output(parts, batch.text_mask), batch, CONFIG)
    assert losses["alignment"] < 1e-6
    assert losses["box"].item() == pytest.approx(0, abs=1e-4)
    sum(losses.values()).backward()
    # The least of a binary cross-entropy is where the prediction is the target.
    assert parts[2].grad.abs().max() < 1e-6


def test_padded_tokens_teach_nothing():
    losses, parts, batch = losses_of([2, 2])
    losses["alignment"].backward()
    padded = ~batch.text_mask[:, None].expand_as(parts[0])
    assert (parts[0].grad[padded] == 0).all()
    assert (parts[0].grad[~padded] != 0).all()


def test_a_background_token_is_wanted_where_there_is_no_box():
    plain, parts, batch = losses_of([2])
    with_token, *_ = losses_of([2], background_token=5)
    assert with_token["alignment"] != plain["alignment"]
    assert with_token["box"] == plain["box"]
    # In the padding it changes nothing, as in the published training with shorter texts.
    mask = batch.text_mask.clone()
    mask[:, 5] = False
    out = dataclasses.replace(output(parts, mask), text_mask=mask)
    one = grounding_losses(out, batch, CONFIG)
    other = grounding_losses(out, batch, CONFIG, background_token=5)
    assert one["alignment"] == other["alignment"]


@pytest.mark.parametrize("counts", [[3, 1, 0, 4], [0, 0, 2, 5], [0, 0, 0, 0]])
def test_two_ranks_equal_one_process_with_the_whole_batch(monkeypatch, counts):
    """The mean over ranks of losses and gradients is that of the whole batch."""
    whole, parts, batch = losses_of(counts)
    sum(whole.values()).backward()
    sums = []

    def remember(tensor):
        sums.append(tensor.detach())
        return tensor.detach()

    halves = [slice(0, 2), slice(2, 4)]
    monkeypatch.setattr(grounding, "all_rank_sum", remember)
    for half in halves:
        piece = part_of(batch, half)
        grounding_losses(output([p[half] for p in parts], piece.text_mask), piece, CONFIG)
    total = sums[0] + sums[1]
    monkeypatch.setattr(grounding, "all_rank_sum", lambda _: total)
    monkeypatch.setattr(grounding, "world_size", lambda: 2)
    means = dict.fromkeys(whole, 0.0)
    copies = [part.detach().clone().requires_grad_() for part in parts]
    for half in halves:
        piece = part_of(batch, half)
        found = grounding_losses(output([p[half] for p in copies], piece.text_mask), piece, CONFIG)
        (sum(found.values()) / 2).backward()
        for name, value in found.items():
            means[name] += value.item() / 2
    for name, value in whole.items():
        assert means[name] == pytest.approx(value.item(), rel=1e-5)
    for part, copy in zip(parts, copies, strict=True):
        torch.testing.assert_close(copy.grad, part.grad, rtol=1e-5, atol=1e-8)


def test_half_precision_predictions_give_float32_losses():
    batch = batch_of([2])
    parts = [part.detach().bfloat16() for part in predictions(1)]
    losses = grounding_losses(output(parts, batch.text_mask), batch, CONFIG)
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_focal_loss_stays_finite_for_bounded_logits():
    logits = torch.tensor([-50000.0, 50000.0], requires_grad=True)
    for target in (True, False):
        loss = token_focal_loss(logits, torch.tensor([target, target]))
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert grad.isfinite().all()


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_focal_loss_equals_the_published_one(recorded):
    case = recorded["token_sigmoid_focal"]
    loss = token_focal_loss(torch.tensor(case["logits"]), torch.tensor(case["targets"]) > 0.5)
    mask = torch.tensor(case["text_mask"])[:, None] > 0
    assert loss.sum().item() == pytest.approx(case["sum_no_mask"], rel=1e-5)
    assert (loss * mask).sum().item() == pytest.approx(case["sum"], rel=1e-5)


def test_centerness_equals_the_published_one(recorded):
    case = recorded["centerness_target"]
    corner = torch.tensor([0.0, 0.0, 1.0, 1.0])
    anchors = torch.tensor(case["anchors"]) + corner
    boxes = decode_deltas(torch.tensor(case["reg_targets"]), anchors)
    found = centerness_targets(anchors, boxes)
    torch.testing.assert_close(found, torch.tensor(case["centerness"]), rtol=1e-5, atol=1e-5)
