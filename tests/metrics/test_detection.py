import contextlib
import io
import math

import numpy as np
import pytest

from fiber.metrics.detection import (
    COCO_THRESHOLDS,
    ScoredBoxes,
    TrueBoxes,
    average_precision,
)

pytestmark = pytest.mark.oldest

BOX = [0.0, 0.0, 10.0, 10.0]
#: In pycocotools' order.
COCO_NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_at_1", "ar_at_10", "ar_at_100", "ar_small", "ar_medium", "ar_large"),
)
ARS = {"ar_at_1", "ar_at_10", "ar_at_100"}


def test_no_ground_truth_is_nan():
    assert all(math.isnan(value) for value in average_precision([], []).values())
    empty = average_precision([ScoredBoxes([BOX], [0.5], ["cat"])], [TrueBoxes([], [])])
    assert all(math.isnan(value) for value in empty.values())


def test_no_detection_is_zero():
    found = average_precision([ScoredBoxes([], [], [])], [TrueBoxes([BOX], ["cat"])])
    measured = {name for name, value in found.items() if not math.isnan(value)}
    # The box of 10 x 10 is small.
    assert measured == {"ap", "ap50", "ap75", "ap_small", "ar_small"} | ARS
    assert all(found[name] == 0.0 for name in measured)


def test_a_perfect_detector():
    truths = [TrueBoxes([BOX, [20, 20, 30, 40]], ["cat", "dog"]), TrueBoxes([BOX], ["dog"])]
    detections = [ScoredBoxes(t.boxes_xyxy, [0.5] * len(t.labels), t.labels) for t in truths]
    assert average_precision(detections, truths)["ap"] == pytest.approx(1.0)


def test_by_hand():
    # One class, two true boxes; sorted by score: hit, miss, hit.
    truths = [TrueBoxes([BOX, [20, 0, 30, 10]], ["cat", "cat"])]
    detections = [
        ScoredBoxes([[20, 0, 30, 10], [50, 50, 60, 60], BOX], [0.3, 0.6, 0.9], ["cat"] * 3)
    ]
    found = average_precision(detections, truths)
    # Precision 1 at the 51 recalls up to 0.5, 2/3 at the 50 above.
    assert found["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found["ar_at_100"] == 1.0
    # The best detection alone finds one of two.
    assert found["ar_at_1"] == 0.5


def test_overlap_decides_at_each_threshold():
    # IoU 0.8 reaches seven of the ten thresholds, 0.5 to 0.8.
    detections = [ScoredBoxes([[0, 0, 10, 8]], [0.5], ["cat"])]
    found = average_precision(detections, [TrueBoxes([BOX], ["cat"])])
    assert found["ap"] == pytest.approx(0.7)
    assert found["ap75"] == pytest.approx(1.0)


def test_last_of_equal_overlaps_is_matched():
    # The first detection overlaps both by 9/11; the second is the first true box itself and
    # overlaps the other by 2/3.
    truths = [TrueBoxes([BOX, [2, 0, 12, 10]], ["cat", "cat"])]
    detections = [ScoredBoxes([[1, 0, 11, 10], BOX], [0.9, 0.8], ["cat", "cat"])]
    assert average_precision(detections, truths)["ap75"] == pytest.approx(1.0)


def test_detections_in_a_crowd_are_ignored():
    truths = [TrueBoxes([BOX, [20, 0, 60, 40]], ["cat", "cat"], [False, True])]
    in_crowd = [[22, 2, 30, 10], [40, 20, 50, 30]]
    detections = [ScoredBoxes([*in_crowd, BOX], [0.9, 0.8, 0.7], ["cat"] * 3)]
    assert average_precision(detections, truths)["ap"] == pytest.approx(1.0)


def test_classes_are_averaged():
    truths = [TrueBoxes([BOX, BOX], ["dog", "cat"])]
    detections = [ScoredBoxes([BOX], [0.5], ["cat"])]
    found = ap_by_class(detections, truths, ["cat", "dog"])
    assert found == {"cat": pytest.approx(1.0), "dog": 0.0}
    assert average_precision(detections, truths)["ap"] == pytest.approx(0.5)


def ap_by_class(detections, truths, labels):
    """AP of each class, computed from its own boxes alone; only classes with ground truth."""

    def only(label, boxes):
        rows = [row for row, own in enumerate(boxes.labels) if own == label]
        return type(boxes)(*([c[i] for i in rows] if c is not None else None for c in boxes))

    found = {
        label: average_precision(
            [only(label, boxes) for boxes in detections], [only(label, boxes) for boxes in truths]
        )["ap"]
        for label in labels
    }
    return {label: value for label, value in found.items() if not math.isnan(value)}


def test_object_area_decides_the_size_range():
    # Both boxes are 40 x 40, medium; what the first one frames has 900 square pixels, small.
    first, second = [0, 0, 40, 40], [100, 0, 140, 40]
    truths = [TrueBoxes([first, second], ["cat", "cat"], areas=[900.0, 1600.0])]
    found = average_precision([ScoredBoxes([first], [0.5], ["cat"])], truths)
    assert (found["ap_small"], found["ap_medium"]) == (pytest.approx(1.0), 0.0)
    # Without areas both are medium, of which one is found: precision 1 up to recall 0.5.
    boxes_alone = [TrueBoxes([first, second], ["cat", "cat"])]
    found = average_precision([ScoredBoxes([first], [0.5], ["cat"])], boxes_alone)
    assert math.isnan(found["ap_small"]) and found["ap_medium"] == pytest.approx(51 / 101)


def test_detections_past_the_limit_are_ignored():
    wrong = [[500.0 + i, 0, 501.0 + i, 1] for i in range(100)]
    boxes, scores = [*wrong, BOX], [*(0.9,) * 100, 0.1]
    truths = [TrueBoxes([BOX], ["cat"])]
    assert average_precision([ScoredBoxes(boxes, scores, ["cat"] * 101)], truths)["ar_at_100"] == 0
    found = average_precision([ScoredBoxes(boxes[1:], scores[1:], ["cat"] * 100)], truths)
    assert found["ar_at_100"] == 1.0 and found["ar_at_10"] == 0.0
    assert found["ap50"] == pytest.approx(1 / 100)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="detections for 0 images, got 1"):
        average_precision([ScoredBoxes([], [], [])], [])
    with pytest.raises(ValueError, match="image 0 has 1 detected boxes, 2 scores and 1 labels"):
        average_precision([ScoredBoxes([BOX], [0.1, 0.2], ["a"])], [TrueBoxes([], [])])
    with pytest.raises(ValueError, match="image 0 has 1 ground-truth boxes, 0 labels"):
        average_precision([ScoredBoxes([], [], [])], [TrueBoxes([BOX], [])])
    with pytest.raises(ValueError, match="1 crowd flags and 2 areas"):
        average_precision([ScoredBoxes([], [], [])], [TrueBoxes([BOX], ["a"], areas=[1, 2])])


def random_images(seed, *, images, classes, levels, grid=0, empty=0.0, scale=1.0, doubled=3):
    """Boxes that often overlap, some of them crowds; `levels` different scores.

    Areas of things are a part of their boxes'. With a grid, corners are multiples of it, so that
    overlaps are often equal; `empty` of the images lack true boxes, as many lack detections.
    """
    random = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        count = int(random.integers(0, 9)) if random.random() >= empty else 0
        own = drawn_boxes(random, count, scale)
        labels = random.integers(0, classes, count)
        near = np.repeat(own, doubled, axis=0)
        near = near + random.normal(0, 2.5 * scale, (doubled * count, 4))
        boxes = np.concatenate([near, drawn_boxes(random, 6, scale)])
        if grid:
            own = np.round(own / grid) * grid
            boxes = np.round(boxes / grid) * grid
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        areas = np.prod(own[:, 2:] - own[:, :2], axis=1) * random.uniform(0.4, 1, count)
        crowd = random.random(count) < 0.15
        truths.append(TrueBoxes(own, labels.tolist(), crowd, areas))
        guessed = np.concatenate([np.repeat(labels, doubled), random.integers(0, classes, 6)])
        scores = random.integers(1, levels, len(boxes)) / levels
        if random.random() < empty:
            boxes, scores, guessed = boxes[:0], scores[:0], guessed[:0]
        detections.append(ScoredBoxes(boxes, scores, guessed.tolist()))
    return detections, truths


def drawn_boxes(random, count, scale):
    start = random.uniform(0, 60, (count, 2))
    return np.concatenate([start, start + random.uniform(4, 40, (count, 2))], axis=1) * scale


@pytest.mark.parametrize(
    ("images", "classes", "levels", "options"),
    [
        (1, 1, 1000, {}),
        (12, 3, 10**6, {}),
        (25, 5, 10, {"scale": 2}),
        (7, 40, 1000, {}),
        (40, 1, 1000, {"grid": 16}),
        (30, 4, 50, {"empty": 0.4}),
        (10, 2, 8, {"doubled": 60, "scale": 3, "grid": 8}),
        (40, 6, 1000, {"scale": 4}),
    ],
    ids=[
        "one image",
        "distinct scores",
        "equal scores",
        "classes without truths",
        "equal overlaps",
        "empty images",
        "more than 100 detections",
        "large things",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed, images, classes, levels, options):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `dev`)")
    detections, truths = random_images(
        seed, images=images, classes=classes, levels=levels, **options
    )
    expected, expected_by_class = coco_numbers(detections, truths, classes)
    found = average_precision(detections, truths)
    assert len(expected) == 12 and found.keys() == expected.keys()
    for name, value in expected.items():
        # pycocotools has -1 for what has no true box.
        value = float("nan") if value == -1 else value
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    by_class = ap_by_class(detections, truths, range(classes))
    assert by_class.keys() == expected_by_class.keys()
    for label, value in expected_by_class.items():
        assert by_class[label] == pytest.approx(value, abs=1e-9), label


def coco_numbers(detections, truths, classes):
    """The twelve numbers of pycocotools, and AP class by class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations, results = [], []
    for image, (found, true) in enumerate(zip(detections, truths, strict=True), start=1):
        for box, label, crowd, area in zip(*true, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
                | {"bbox": sides(box), "area": float(area), "iscrowd": int(crowd)}
            )
        for box, score, label in zip(*found, strict=True):
            results.append(
                {"image_id": image, "category_id": label + 1, "bbox": sides(box)}
                | {"score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(truths))],
            "categories": [{"id": c + 1} for c in range(classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        assert np.allclose(evaluation.params.iouThrs, COCO_THRESHOLDS, atol=0)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes); -1 where a class has no true box.
    precisions = evaluation.eval["precision"][:, :, :, 0, 2]
    seen = precisions[0, 0] > -1
    return dict(zip(COCO_NAMES, evaluation.stats.tolist(), strict=True)), {
        c: precisions[:, :, c].mean() for c in range(classes) if seen[c]
    }
