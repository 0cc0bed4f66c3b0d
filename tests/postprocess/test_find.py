import json

import pytest
import torch
from torchvision.ops import batched_nms

from fiber.models.fiber.detector import DetectorOutput
from fiber.ops.anchors import pyramid_anchors
from fiber.ops.nms import nms
from fiber.postprocess import FoundBoxes, detect_boxes, ground_phrases, join_chunks
from tests.box_deltas import encode_deltas
from tests.golden import FINE

RECORDED = FINE / "data_geometry.json"
SIZES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
LENGTHS = [height * width for height, width in SIZES]
ANCHORS = pyramid_anchors(SIZES, (8, 16, 32, 64, 128), 3.0)
TOKENS = 5
SQUARE = [[64, 64]]


class Scene:
    """Predictions written by hand: nothing fits anywhere until `put` says so."""

    def __init__(self, batch=1):
        self.tokens = torch.full((batch, sum(LENGTHS), TOKENS), -12.0)
        self.deltas = torch.zeros(batch, sum(LENGTHS), 4)
        self.centerness = torch.full((batch, sum(LENGTHS)), 30.0)

    def put(self, place, box, token_scores, *, image=0, centerness=1.0):
        """Predict a box at a location, with the probabilities of some tokens."""
        (deltas,) = encode_deltas(torch.tensor([box]), torch.cat(ANCHORS)[place : place + 1])
        self.deltas[image, place] = deltas
        for token, score in token_scores.items():
            self.tokens[image, place, token] = torch.tensor(score).logit()
        self.centerness[image, place] = torch.tensor(centerness).clamp(max=0.999999).logit()
        return self

    def output(self):
        return DetectorOutput(
            token_logits=list(self.tokens.split(LENGTHS, dim=1)),
            box_deltas=list(self.deltas.split(LENGTHS, dim=1)),
            centerness_logits=list(self.centerness.split(LENGTHS, dim=1)),
            anchors=ANCHORS,
            text_mask=torch.ones(len(self.tokens), TOKENS, dtype=torch.bool),
        )


BOX, SHIFTED, OTHER = [8.0, 8.0, 40.0, 40.0], [10.0, 8.0, 42.0, 40.0], [40.0, 40.0, 60.0, 60.0]


def detect(scene, maps, **options):
    count = len(scene.tokens)
    return detect_boxes(scene.output(), maps, SQUARE * count, SQUARE * count, **options)


def test_nothing_is_found_where_nothing_fits():
    (found,) = detect(Scene(), [[[1], [2]]])
    assert found.boxes_xyxy.shape == (0, 4)
    assert len(found.scores) == len(found.label_indices) == 0


@pytest.mark.parametrize("maps", [[], [[]]])
def test_a_picture_without_labels_has_no_boxes(maps):
    scene = Scene().put(9, BOX, {1: 0.9})
    (found,) = detect(scene, [maps[0] if maps else []])
    assert len(found.scores) == 0
    (found,) = ground_phrases(scene.output(), [[]], SQUARE, SQUARE)
    assert len(found.scores) == 0


def test_an_empty_batch_gives_an_empty_list():
    assert detect(Scene(0), []) == []
    assert ground_phrases(Scene(0).output(), [], [], []) == []


def test_a_score_is_the_root_of_mean_token_probability_times_centerness():
    scene = Scene().put(9, BOX, {1: 0.9, 2: 0.5}, centerness=0.64)
    (found,) = detect(scene, [[[1, 2], [3]]])
    assert found.label_indices.tolist() == [0]
    assert found.scores.item() == pytest.approx((0.7 * 0.64) ** 0.5, rel=1e-5)
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([BOX]), rtol=1e-5, atol=1e-4)
    (found,) = detect(scene, [[[1, 2], [3]]], aggregate="max")
    assert found.scores.item() == pytest.approx((0.9 * 0.64) ** 0.5, rel=1e-5)


def test_the_threshold_is_on_the_score_before_centerness():
    scene = Scene().put(9, BOX, {1: 0.4}, centerness=0.01)
    assert len(detect(scene, [[[1]]], score_threshold=0.3)[0].scores) == 1
    assert len(detect(scene, [[[1]]], score_threshold=0.41)[0].scores) == 0


def test_overlapping_boxes_of_one_label_are_suppressed_and_those_of_two_are_not():
    scene = (
        Scene().put(9, BOX, {1: 0.8, 2: 0.7}).put(10, SHIFTED, {1: 0.9}).put(45, OTHER, {1: 0.6})
    )
    (found,) = detect(scene, [[[1], [2]]])
    assert found.label_indices.tolist() == [0, 1, 0]
    torch.testing.assert_close(
        found.boxes_xyxy, torch.tensor([SHIFTED, BOX, OTHER]), rtol=1e-5, atol=1e-4
    )
    (found,) = detect(scene, [[[1], [2]]], nms_threshold=0.95)
    assert found.label_indices.tolist() == [0, 0, 1, 0]
    (found,) = detect(scene, [[[1], [2]]], max_detections=2)
    assert found.label_indices.tolist() == [0, 1]


def test_each_level_keeps_its_best():
    scene = Scene().put(0, BOX, {1: 0.9}).put(45, OTHER, {1: 0.8}).put(70, BOX, {2: 0.3})
    (found,) = detect(scene, [[[1], [2]]], candidates_per_level=1)
    assert found.scores.tolist() == pytest.approx([0.9**0.5, 0.3**0.5], rel=1e-4)


def test_pictures_have_their_own_labels_and_sizes():
    scene = Scene(2)
    for image in (0, 1):
        scene.put(9, BOX, {1: 0.9, 2: 0.8}, image=image)
    found = detect_boxes(
        scene.output(), [[[1]], [[3], [2]]], [[64, 64], [32, 30]], [[128, 64], [320, 300]]
    )
    assert [each.label_indices.tolist() for each in found] == [[0], [1]]
    # Height doubles, width stays; and clipped to the picture without its padding, then 10 times.
    expected = [[8.0, 16.0, 40.0, 80.0], [80.0, 80.0, 300.0, 320.0]]
    boxes = torch.cat([each.boxes_xyxy for each in found])
    torch.testing.assert_close(boxes, torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_a_label_without_tokens_is_not_found():
    scene = Scene().put(9, BOX, {1: 0.9})
    (found,) = detect(scene, [[[], [1]]], score_threshold=0.0)
    assert 0 not in found.label_indices
    (found,) = ground_phrases(scene.output(), [[[], [1]]], SQUARE, SQUARE)
    assert found.label_indices.tolist() == [1]


def test_every_phrase_has_its_best_box_however_low():
    scene = Scene().put(9, BOX, {1: 0.9, 2: 0.02}).put(45, OTHER, {2: 0.04})
    (found,) = ground_phrases(scene.output(), [[[1], [2]]], SQUARE, SQUARE)
    assert found.label_indices.tolist() == [0, 1]
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([BOX, OTHER]), rtol=1e-5, atol=1e-4)
    (found,) = ground_phrases(scene.output(), [[[1], [2]]], SQUARE, SQUARE, score_threshold=0.5)
    assert found.label_indices.tolist() == [0]


def test_more_boxes_of_a_phrase_do_not_overlap():
    scene = (
        Scene()
        .put(9, BOX, {1: 0.9, 2: 0.3})
        .put(10, SHIFTED, {1: 0.8})
        .put(45, OTHER, {1: 0.5, 2: 0.6})
    )
    (found,) = ground_phrases(
        scene.output(), [[[1], [2]]], SQUARE, SQUARE, boxes_per_phrase=2, score_threshold=0.1
    )
    assert found.label_indices.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([BOX, OTHER, OTHER, BOX])
    torch.testing.assert_close(found.boxes_xyxy, expected, rtol=1e-5, atol=1e-4)
    assert found.scores.tolist() == pytest.approx([s**0.5 for s in (0.9, 0.5, 0.6, 0.3)], rel=1e-4)


def test_bad_input_is_named():
    scene = Scene()
    with pytest.raises(ValueError, match=r"got 2 token maps, .* expected 1 of each"):
        detect_boxes(scene.output(), [[], []], SQUARE, SQUARE)
    with pytest.raises(
        ValueError, match=r"image 0: label 1 has token indices \[5\]; expected 0 to 4"
    ):
        detect(scene, [[[1], [5]]])
    with pytest.raises(ValueError, match="aggregate: expected 'mean' or 'max', got 'power'"):
        detect(scene, [[[1]]], aggregate="power")


def test_chunks_are_joined_best_first_under_their_own_labels():
    def chunk(scores, labels):
        return FoundBoxes(torch.rand(len(scores), 4), torch.tensor(scores), torch.tensor(labels))

    chunks = [chunk([0.9, 0.3], [1, 0]), chunk([0.5], [1])]
    joined = join_chunks(chunks, [0, 40])
    assert joined.label_indices.tolist() == [1, 41, 0]
    assert torch.equal(joined.boxes_xyxy[1], chunks[1].boxes_xyxy[0])
    assert join_chunks(chunks, [0, 40], max_detections=1).label_indices.tolist() == [1]


def test_suppression_equals_the_published_one():
    case = json.loads(RECORDED.read_text())["ml_nms"]
    boxes = torch.tensor(case["boxes"]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    scores, labels = torch.tensor(case["scores"]), torch.tensor(case["labels"])
    for threshold, expected in case["keep_ascending"].items():
        assert nms(boxes, scores, labels, float(threshold)).sort().values.tolist() == expected


def test_an_overlap_of_exactly_the_threshold_is_kept():
    # 30 of 50 square pixels: 0.6. As published, only more than the threshold suppresses.
    boxes = torch.tensor([[0.0, 0.0, 4.0, 10.0], [1.0, 0.0, 5.0, 10.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert len(nms(boxes, scores, labels, 0.6)) == 2
    assert len(nms(boxes, scores, labels, 0.59)) == 1


@pytest.mark.parametrize("count", [0, 1, 7])
def test_one_box_for_each_label_is_ranked_as_by_nms(count):
    boxes = torch.tensor([BOX]).expand(count, 4)
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.9, 0.5, 0.2])[:count]
    labels = torch.arange(count)
    expected = batched_nms(boxes.double(), scores.double(), labels, 0.6)
    assert nms(boxes, scores, labels, 0.6).tolist() == expected.tolist()
