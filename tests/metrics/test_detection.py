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
    average_precision_by_class,
)

BOX = [0.0, 0.0, 10.0, 10.0]


def test_nothing_to_measure_is_nan():
    assert all(math.isnan(value) for value in average_precision([], []).values())
    empty = average_precision([ScoredBoxes([BOX], [0.5], ["cat"])], [TrueBoxes([], [])])
    assert all(math.isnan(value) for value in empty.values())


def test_no_detection_is_zero():
    found = average_precision([ScoredBoxes([], [], [])], [TrueBoxes([BOX], ["cat"])])
    assert found == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ar": 0.0}


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
    assert found["ar"] == 1.0


def test_overlap_decides_at_each_threshold():
    # IoU 0.8 reaches seven of the ten thresholds, 0.5 to 0.8.
    detections = [ScoredBoxes([[0, 0, 10, 8]], [0.5], ["cat"])]
    found = average_precision(detections, [TrueBoxes([BOX], ["cat"])])
    assert found["ap"] == pytest.approx(0.7)
    assert found["ap75"] == pytest.approx(1.0)


def test_of_equal_overlaps_the_last_is_taken():
    # The first detection overlaps both by 9/11; the second is the first true box itself and
    # overlaps the other by 2/3.
    truths = [TrueBoxes([BOX, [2, 0, 12, 10]], ["cat", "cat"])]
    detections = [ScoredBoxes([[1, 0, 11, 10], BOX], [0.9, 0.8], ["cat", "cat"])]
    assert average_precision(detections, truths)["ap75"] == pytest.approx(1.0)


def test_a_crowd_counts_neither_way():
    truths = [TrueBoxes([BOX, [20, 0, 60, 40]], ["cat", "cat"], [False, True])]
    in_crowd = [[22, 2, 30, 10], [40, 20, 50, 30]]
    detections = [ScoredBoxes([*in_crowd, BOX], [0.9, 0.8, 0.7], ["cat"] * 3)]
    assert average_precision(detections, truths)["ap"] == pytest.approx(1.0)


def test_classes_apart_and_sorted():
    truths = [TrueBoxes([BOX, BOX], ["dog", "cat"])]
    detections = [ScoredBoxes([BOX], [0.5], ["cat"])]
    found = average_precision_by_class(detections, truths)
    assert list(found) == ["cat", "dog"]
    assert found["cat"]["ap"] == pytest.approx(1.0) and found["dog"]["ap"] == 0.0
    assert average_precision(detections, truths)["ap"] == pytest.approx(0.5)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="detections of 1 pictures; expected 0"):
        average_precision([ScoredBoxes([], [], [])], [])
    with pytest.raises(ValueError, match="picture 0 has 1 detected boxes, 2 scores and 1 labels"):
        average_precision([ScoredBoxes([BOX], [0.1, 0.2], ["a"])], [TrueBoxes([], [])])
    with pytest.raises(ValueError, match="picture 0 has 1 true boxes, 0 labels"):
        average_precision([ScoredBoxes([], [], [])], [TrueBoxes([BOX], [])])


def random_pictures(seed, pictures, classes, levels, grid=0):
    """Boxes that often overlap, some of them crowds; `levels` different scores.

    With a grid, corners are multiples of it, so that overlaps are often equal.
    """
    random = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(pictures):
        count = int(random.integers(0, 9))
        start = random.uniform(0, 60, (count, 2))
        own = np.concatenate([start, start + random.uniform(4, 40, (count, 2))], axis=1)
        labels = random.integers(0, classes, count)
        truths.append(TrueBoxes(own, labels.tolist(), random.random(count) < 0.15))
        near = np.repeat(own, 3, axis=0) + random.normal(0, 2.5, (3 * count, 4))
        far_start = random.uniform(0, 60, (6, 2))
        far = np.concatenate([far_start, far_start + random.uniform(4, 40, (6, 2))], axis=1)
        boxes = np.concatenate([near, far])
        if grid:
            own[:] = np.round(own / grid) * grid
            boxes = np.round(boxes / grid) * grid
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        guessed = np.concatenate([np.repeat(labels, 3), random.integers(0, classes, 6)])
        scores = random.integers(1, levels, len(boxes)) / levels
        detections.append(ScoredBoxes(boxes, scores, guessed.tolist()))
    return detections, truths


@pytest.mark.parametrize(
    ("seed", "pictures", "classes", "levels", "max_detections", "grid"),
    [
        (0, 1, 1, 1000, 100, 0),
        (1, 12, 3, 10**6, 100, 0),
        (2, 25, 5, 10, 100, 0),
        (3, 25, 2, 1000, 4, 0),
        (4, 7, 40, 1000, 100, 0),
        (5, 40, 1, 1000, 100, 16),
    ],
    ids=[
        "one picture",
        "distinct scores",
        "equal scores",
        "few detections",
        "rare classes",
        "equal overlaps",
    ],
)
def test_equals_pycocotools(seed, pictures, classes, levels, max_detections, grid):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `eval`)")
    detections, truths = random_pictures(seed, pictures, classes, levels, grid)
    expected, expected_by_class = coco_numbers(detections, truths, classes, max_detections)
    found = average_precision(detections, truths, max_detections=max_detections)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    by_class = average_precision_by_class(detections, truths, max_detections=max_detections)
    assert by_class.keys() == expected_by_class.keys()
    for label, value in expected_by_class.items():
        assert by_class[label]["ap"] == pytest.approx(value, abs=1e-9), label


def coco_numbers(detections, truths, classes, max_detections):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations, results = [], []
    for image, (found, true) in enumerate(zip(detections, truths, strict=True), start=1):
        for box, label, crowd in zip(true.boxes_xyxy, true.labels, true.crowd, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
                | {"bbox": sides(box), "area": 1.0, "iscrowd": int(crowd)}
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
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        assert np.allclose(evaluation.params.iouThrs, COCO_THRESHOLDS, atol=0)
        evaluation.evaluate()
        evaluation.accumulate()
    # (thresholds, recalls, classes) and (thresholds, classes); -1 where a class has no true box.
    precisions = evaluation.eval["precision"][:, :, :, 0, 0]
    recalls = evaluation.eval["recall"][:, :, 0, 0]
    seen = recalls[0] > -1
    totals = {
        "ap": precisions[:, :, seen].mean(),
        "ap50": precisions[0][:, seen].mean(),
        "ap75": precisions[5][:, seen].mean(),
        "ar": recalls[:, seen].mean(),
    }
    return totals, {c: precisions[:, :, c].mean() for c in range(classes) if seen[c]}
