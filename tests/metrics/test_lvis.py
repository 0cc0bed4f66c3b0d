"""Fixed AP by hand, and as the `lvis` package gave it (`record_lvis.py`): it needs an old numpy.

Every box is 10 x 10 (or as said) and a detection is a true box itself or far from all, so that each
is right or wrong at every threshold and AP is the precision at 101 recalls of one list. With one
true box, found at place n of its class's list (1 is the surest), AP is 1 / n.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fiber.metrics import lvis
from fiber.metrics.detection import coco_curves, coco_entries
from fiber.metrics.lvis import (
    BestOfClasses,
    DetectionTable,
    FederatedTruth,
    fixed_average_precision,
)

BOX, OTHER = [0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 110.0, 10.0]
NOWHERE = [500.0, 0.0, 510.0, 10.0]
CUP, MUG, SPOON = 0, 1, 2


def truth(*boxes, absent=(), incomplete=(), **options):
    """(class, box) pairs of an image, and what is known of other classes."""
    return FederatedTruth(
        [box for _, box in boxes],
        [label for label, _ in boxes],
        frozenset(absent),
        frozenset(incomplete),
        **options,
    )


def table(*rows):
    """(image, class, box, score) each."""
    images, classes, boxes, scores = zip(*rows, strict=True)
    return DetectionTable(
        np.array(images), np.array(classes), np.array(boxes, float), np.array(scores, float)
    )


def measured(rows, truths, frequencies=("f", "f", "f"), **options):
    return fixed_average_precision(table(*rows), truths, frequencies, **options)


def test_no_ground_truth_is_nan():
    none = BestOfClasses(2).table()
    numbers = fixed_average_precision(none, [truth(absent=[0])], ["r", "c"])
    assert all(math.isnan(value) for value in numbers.values())


def test_no_detection_is_zero():
    none = BestOfClasses(2).table()
    numbers = fixed_average_precision(none, [truth((0, BOX))], ["r", "c"])
    assert numbers["ap"] == numbers["apr"] == 0.0 and math.isnan(numbers["apc"])


def test_unverified_classes_are_ignored():
    """Cups are verified to be absent from image 1 and not verified in image 2.

    Cup: the list by score is image 2 (ignored), image 1 (wrong), image 0 (right): the hit
    is second of two that count, AP 1 / 2. If image 2 counted it would be 1 / 3, and if image 1
    did not, 1.
    """
    truths = [truth((CUP, BOX)), truth((MUG, BOX), absent=[CUP]), truth((MUG, BOX))]
    rows = [(2, CUP, BOX, 0.9), (1, CUP, NOWHERE, 0.8), (0, CUP, BOX, 0.7)]
    numbers = measured(rows, truths)
    # The mug has two true boxes and no detection: AP 0.
    assert numbers["ap"] == pytest.approx((1 / 2 + 0) / 2)
    assert numbers["apf"] == numbers["ap50"] == numbers["ap"]


def test_false_positives_of_a_non_exhaustive_class_are_ignored():
    """Cups of image 0 may have more than their box.

    By score: image 0 far from the box (not punished), image 1 far (wrong), image 0 on the box
    (right): second of two, 1 / 2. A second detection on the box finds it taken: not punished, and
    comes after the hit anyway.
    """
    truths = [truth((CUP, BOX), incomplete=[CUP]), truth(absent=[CUP])]
    rows = [
        (0, CUP, NOWHERE, 0.9),
        (1, CUP, NOWHERE, 0.8),
        (0, CUP, BOX, 0.7),
        (0, CUP, BOX, 0.6),
    ]
    assert measured(rows, truths)["ap"] == pytest.approx(1 / 2)
    # Exhaustive: third of three.
    truths[0] = truth((CUP, BOX))
    assert measured(rows, truths)["ap"] == pytest.approx(1 / 3)


def test_rare_common_and_frequent_classes():
    """One image with one box of each class, found at places 1, 2 and 3 of its class's list."""
    truths = [truth((CUP, BOX), (MUG, BOX), (SPOON, BOX))]
    rows = [
        *((0, label, NOWHERE, 0.9 - 0.1 * turn) for label in range(3) for turn in range(label)),
        *((0, label, BOX, 0.1) for label in range(3)),
    ]
    numbers = measured(rows, truths, ("r", "c", "f"))
    assert numbers["apr"] == pytest.approx(1)
    assert numbers["apc"] == pytest.approx(1 / 2)
    assert numbers["apf"] == pytest.approx(1 / 3)
    assert numbers["ap"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_detections_per_image_are_unlimited():
    """The 400th detection of an image finds the box: AP 1 / 400, where COCO looks at 100."""
    rows = [(0, CUP, NOWHERE, 0.9 - i / 1000) for i in range(399)] + [(0, CUP, BOX, 0.1)]
    assert measured(rows, [truth((CUP, BOX))])["ap"] == pytest.approx(1 / 400)


def test_areas_of_things_and_thresholds():
    """Two cups, of 400 and 2,000 square pixels by their annotation.

    The first detection overlaps the first by 0.8 (7 of 10 thresholds), the second is the second.
    At those 7 both are right: AP 1. At 0.85, 0.9 and 0.95: wrong, right; precision 1 / 2 up to
    recall 1 / 2, which 51 of 101 recalls are: 51 / 202.
    Small: the first alone counts; at the 3 thresholds its detection, of 80 square pixels, misses
    and counts, the other one took a box that does not count: 7 / 10. Medium: the second alone, and
    the small detection is not punished: 1.
    """
    rows = [(0, CUP, [0, 0, 10, 8], 0.9), (0, CUP, OTHER, 0.8)]
    truths = [truth((CUP, BOX), (CUP, OTHER), areas=[400.0, 2000.0])]
    numbers = measured(rows, truths)
    assert numbers["ap"] == pytest.approx((7 + 3 * 51 / 202) / 10)
    assert numbers["ap50"] == numbers["ap75"] == pytest.approx(1)
    assert numbers["ap_small"] == pytest.approx(7 / 10)
    assert numbers["ap_medium"] == pytest.approx(1) and math.isnan(numbers["ap_large"])


def test_best_of_a_class_over_the_data_set():
    """Two detections of a class are kept, whatever the images and the other classes score."""
    best = BestOfClasses(2, limit=2)
    best.add(1, [BOX, OTHER, BOX], [0.5, 0.9, 0.99], [0, 0, 1])
    best.add(0, [BOX, OTHER], [0.5, 0.1], [0, 0])
    best.add(2, [BOX], [0.7], [0])
    kept = best.table()
    rows = zip(kept.classes.tolist(), kept.images.tolist(), kept.scores.tolist(), strict=True)
    assert [(label, image, round(score, 4)) for label, image, score in rows] == [
        (0, 1, 0.9),
        (0, 2, 0.7),
        (1, 1, 0.99),
    ]
    # Of equal scores the earlier ones stay; rows come in the order of the images.
    best = BestOfClasses(1, limit=3)
    for image in (4, 2, 3, 1, 0, 5, 6):
        best.add(image, [BOX], [0.5], [0])
    assert best.table().images.tolist() == [2, 3, 4]


@pytest.mark.parametrize("max_pending", [0, 3, 10**6])
def test_max_pending_changes_nothing(max_pending):
    """Against all detections at once, sorted in plain Python; scores are often equal."""
    random = np.random.default_rng(0)
    best, everything = BestOfClasses(4, limit=5, max_pending=max_pending), []
    for image in random.permutation(12).tolist():
        count = int(random.integers(0, 8))
        labels = random.integers(0, 3, count).tolist()
        scores = (random.integers(1, 6, count) / 8).tolist()
        best.add(image, [BOX] * count, scores, labels)
        everything += zip(labels, scores, [image] * count, strict=True)
    kept = best.table()
    found = zip(kept.classes.tolist(), kept.images.tolist(), kept.scores.tolist(), strict=True)
    expected = []
    for label in range(4):
        own = [(score, image) for number, score, image in everything if number == label]
        # `sorted` is stable.
        chosen = sorted(own, key=lambda row: -row[0])[:5]
        expected += [(label, image, score) for score, image in chosen]
    assert sorted(found) == sorted(expected)
    assert kept.classes.tolist() == sorted(kept.classes.tolist())


def test_limit_is_applied_before_unverified_classes_are_ignored():
    """The published order: the limit first, then the verified classes.

    With a limit of 1 the ignored detection of image 1 takes the only place of its class.
    """
    truths = [truth((CUP, BOX)), truth()]
    for limit, expected in ((1, 0.0), (2, 1.0)):
        best = BestOfClasses(1, limit=limit)
        best.add(0, [BOX], [0.5], [CUP])
        best.add(1, [BOX], [0.9], [CUP])
        numbers = fixed_average_precision(best.table(), truths, ["r"])
        assert numbers["ap"] == pytest.approx(expected)


def test_limits_of_faster_coco_eval_are_per_image():
    """Why `BestOfClasses` exists: with a limit of 1, one detection of each image counts."""
    images = [
        {"id": number, "neg_category_ids": [], "not_exhaustive_category_ids": []}
        for number in (0, 1)
    ]
    both = coco_entries(np.array([0, 1]), np.array([CUP, CUP]), np.array([BOX, BOX]))
    found = [{**entry, "score": 0.5} for entry in both]
    curves = coco_curves(images, [CUP], both, found, thresholds=[0.5], limits=[1], lvis_style=True)
    assert curves.recall[0, 0, 0, 0] == 1.0
    best = BestOfClasses(1, limit=1)
    for number in (0, 1):
        best.add(number, [BOX], [0.5], [CUP])
    numbers = fixed_average_precision(best.table(), [truth((CUP, BOX))] * 2, ["r"])
    # Precision 1 at the 51 recalls up to 0.5.
    assert numbers["ap"] == pytest.approx(51 / 101)


@pytest.mark.parametrize("classes_at_once", [1, 2, 5])
def test_blocks_of_classes_change_nothing(monkeypatch, classes_at_once):
    random = np.random.default_rng(0)
    truths = [
        truth(*((label, BOX) for label in range(5) if random.random() < 0.5)) for _ in range(8)
    ]
    rows = [
        (image, int(random.integers(5)), BOX if random.random() < 0.5 else NOWHERE, random.random())
        for image in range(8)
        for _ in range(12)
    ]
    whole = measured(rows, truths, "rcffr")
    assert 0 < whole["ap"] < 1
    monkeypatch.setattr(lvis, "CLASSES_AT_ONCE", classes_at_once)
    assert measured(rows, truths, "rcffr") == pytest.approx(whole, nan_ok=True, abs=0)


def test_no_classes():
    numbers = fixed_average_precision(BestOfClasses(0).table(), [truth()], [])
    assert all(math.isnan(value) for value in numbers.values())


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="image 3 has 1 detected boxes, 2 scores and 1"):
        BestOfClasses(1).add(3, [BOX], [0.1, 0.2], [0])
    wrong = FederatedTruth([BOX], [], frozenset())
    with pytest.raises(ValueError, match=r"image 0 has 1 ground-truth boxes, 0 labels.*1 areas"):
        fixed_average_precision(BestOfClasses(1).table(), [wrong], ["r"])


def test_equals_the_lvis_package():
    recorded = json.loads(Path(__file__).with_name("lvis_recorded.json").read_text())
    truth, results = recorded["truth"], recorded["results"]
    truths = []
    for image in truth["images"]:
        own = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        truths.append(
            FederatedTruth(
                [corners(entry["bbox"]) for entry in own],
                [entry["category_id"] - 1 for entry in own],
                frozenset(number - 1 for number in image["neg_category_ids"]),
                frozenset(number - 1 for number in image["not_exhaustive_category_ids"]),
                [entry["area"] for entry in own],
            )
        )
    rows = [
        (entry["image_id"] - 1, entry["category_id"] - 1, corners(entry["bbox"]), entry["score"])
        for entry in results
    ]
    frequencies = [category["frequency"] for category in truth["categories"]]
    numbers = fixed_average_precision(table(*rows), truths, frequencies)
    names = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium"}
    names |= {"APl": "ap_large", "APr": "apr", "APc": "apc", "APf": "apf"}
    assert recorded["numbers"].keys() == names.keys()
    for name, value in recorded["numbers"].items():
        assert 0 < value < 1
        assert numbers[names[name]] == pytest.approx(value, abs=1e-9), name


def corners(sides):
    return [sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]]


def loops(detections, truths, num_classes):
    """LVIS AP over all areas, written in loops from the paper."""
    precisions = []
    for label in range(num_classes):
        lists, positives = [], 0
        for image, own in enumerate(truths):
            boxes = [b for b, c in zip(own.boxes_xyxy, own.classes, strict=True) if c == label]
            positives += len(boxes)
            if label not in own.absent and not boxes:
                continue
            rows = (detections.images == image) & (detections.classes == label)
            order = np.argsort(-detections.scores[rows], kind="stable")
            for threshold in np.linspace(0.5, 0.95, 10):
                free = [True] * len(boxes)
                for box, score in zip(
                    detections.boxes_xyxy[rows][order], detections.scores[rows][order], strict=True
                ):
                    best, chosen = threshold, None
                    for place, true in enumerate(boxes):
                        if free[place] and overlap(box, true) >= best:
                            best, chosen = overlap(box, true), place
                    if chosen is not None:
                        free[chosen] = False
                    elif label in own.incomplete:
                        continue
                    lists.append((round(threshold, 2), -score, image, chosen is not None))
        for threshold in np.linspace(0.5, 0.95, 10) if positives else ():
            own_list = [row for row in lists if row[0] == round(threshold, 2)]
            hits = [row[3] for row in sorted(own_list, key=lambda row: row[1:3])]
            found = np.cumsum(hits) if hits else np.zeros(0)
            precision = [
                max(
                    (
                        found[i] / (i + 1)
                        for i in range(len(hits))
                        if found[i] / positives >= recall
                    ),
                    default=0.0,
                )
                for recall in np.linspace(0, 1, 101)
            ]
            precisions.append(np.mean(precision))
    return np.mean(precisions)


def overlap(one, other):
    sides = [min(one[2 + i], other[2 + i]) - max(one[i], other[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_algorithm_in_loops(seed):
    random = np.random.default_rng(seed)
    truths, rows = [], []
    for image in range(6):
        labels = random.integers(0, 4, random.integers(0, 6)).tolist()
        start = random.uniform(0, 40, (len(labels), 2))
        boxes = np.concatenate([start, start + random.uniform(5, 40, (len(labels), 2))], axis=1)
        absent = {label for label in range(4) if label not in labels and random.random() < 0.5}
        incomplete = {label for label in labels if random.random() < 0.3}
        truths.append(FederatedTruth(boxes, labels, frozenset(absent), frozenset(incomplete)))
        for label in range(4):
            for _ in range(8):
                box = [*random.uniform(0, 40, 2), *random.uniform(45, 80, 2)]
                if len(boxes) and random.random() < 0.6:
                    box = random.choice(boxes) + random.normal(0, 1.5, 4)
                rows.append((image, label, box, random.integers(1, 12) / 12))
    found = measured(rows, truths, ("f",) * 4)
    assert 0 < found["ap"] < 1
    assert found["ap"] == pytest.approx(loops(table(*rows), truths, 4), abs=1e-9)
