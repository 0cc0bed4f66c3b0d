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

from fiber.metrics.lvis import BestOfClasses, FederatedTruth, fixed_average_precision
from fiber.metrics.precision import DetectionTable

BOX, OTHER = [0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 110.0, 10.0]
NOWHERE = [500.0, 0.0, 510.0, 10.0]
CUP, MUG, SPOON = 0, 1, 2


def truth(*boxes, absent=(), incomplete=(), **options):
    """(class, box) pairs of a picture, and what is known of other classes."""
    return FederatedTruth(
        [box for _, box in boxes],
        [label for label, _ in boxes],
        frozenset(absent),
        frozenset(incomplete),
        **options,
    )


def table(*rows):
    """(picture, class, box, score) each."""
    pictures, classes, boxes, scores = zip(*rows, strict=True)
    return DetectionTable(
        np.array(pictures), np.array(classes), np.array(boxes, float), np.array(scores, float)
    )


def measured(rows, truths, frequencies=("f", "f", "f"), **options):
    return fixed_average_precision(table(*rows), truths, frequencies, **options)


def test_nothing_to_measure_is_nan():
    none = BestOfClasses(2).table()
    numbers = fixed_average_precision(none, [truth(absent=[0])], ["r", "c"])
    assert all(math.isnan(value) for value in numbers.values())


def test_no_detection_is_zero():
    none = BestOfClasses(2).table()
    numbers = fixed_average_precision(none, [truth((0, BOX))], ["r", "c"])
    assert numbers["ap"] == numbers["apr"] == 0.0 and math.isnan(numbers["apc"])


def test_a_class_that_nobody_looked_for_is_left_out():
    """Cups are known to be absent from picture 1; of picture 2 nothing is said.

    Cup: the list by score is picture 2 (not judged), picture 1 (wrong), picture 0 (right): the hit
    is second of two that count, AP 1 / 2. If picture 2 counted it would be 1 / 3, and if picture 1
    did not, 1.
    """
    truths = [truth((CUP, BOX)), truth((MUG, BOX), absent=[CUP]), truth((MUG, BOX))]
    rows = [(2, CUP, BOX, 0.9), (1, CUP, NOWHERE, 0.8), (0, CUP, BOX, 0.7)]
    numbers = measured(rows, truths)
    # The mug has two true boxes and no detection: AP 0.
    assert numbers["ap"] == pytest.approx((1 / 2 + 0) / 2)
    assert numbers["apf"] == numbers["ap50"] == numbers["ap"]


def test_a_class_that_is_not_exhaustive_is_not_punished():
    """Cups of picture 0 may have more than their box.

    By score: picture 0 far from the box (not punished), picture 1 far (wrong), picture 0 on the box
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
    """One picture with one box of each class, found at places 1, 2 and 3 of its class's list."""
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


def test_any_number_in_a_picture_counts():
    """The 400th detection of a picture finds the box: AP 1 / 400, where COCO looks at 100."""
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


def test_the_best_of_a_class_over_the_whole_set():
    """Two detections of a class are kept, whatever the pictures and the other classes score."""
    best = BestOfClasses(2, limit=2)
    best.add(1, [BOX, OTHER, BOX], [0.5, 0.9, 0.99], [0, 0, 1])
    best.add(0, [BOX, OTHER], [0.5, 0.1], [0, 0])
    best.add(2, [BOX], [0.7], [0])
    kept = best.table()
    rows = zip(kept.classes.tolist(), kept.pictures.tolist(), kept.scores.tolist(), strict=True)
    assert [(label, picture, round(score, 4)) for label, picture, score in rows] == [
        (0, 1, 0.9),
        (0, 2, 0.7),
        (1, 1, 0.99),
    ]
    # Of equal scores the earlier ones stay; rows come in the order of the pictures.
    best = BestOfClasses(1, limit=3)
    for picture in (4, 2, 3, 1, 0, 5, 6):
        best.add(picture, [BOX], [0.5], [0])
    assert best.table().pictures.tolist() == [2, 3, 4]


@pytest.mark.parametrize("waiting", [0, 3, 10**6])
def test_when_worse_ones_are_dropped_changes_nothing(waiting):
    """Against all detections at once, sorted in plain Python; scores are often equal."""
    random = np.random.default_rng(0)
    best, everything = BestOfClasses(4, limit=5, waiting=waiting), []
    for picture in random.permutation(12).tolist():
        count = int(random.integers(0, 8))
        labels = random.integers(0, 3, count).tolist()
        scores = (random.integers(1, 6, count) / 8).tolist()
        best.add(picture, [BOX] * count, scores, labels)
        everything += zip(labels, scores, [picture] * count, strict=True)
    kept = best.table()
    found = zip(kept.classes.tolist(), kept.pictures.tolist(), kept.scores.tolist(), strict=True)
    expected = []
    for label in range(4):
        own = [(score, picture) for number, score, picture in everything if number == label]
        # `sorted` is stable.
        chosen = sorted(own, key=lambda row: -row[0])[:5]
        expected += [(label, picture, score) for score, picture in chosen]
    assert sorted(found) == sorted(expected)
    assert kept.classes.tolist() == sorted(kept.classes.tolist())


def test_what_is_cut_is_cut_before_classes_are_left_out():
    """The published order: the limit first, then what nobody looked for.

    With a limit of 1 the unjudged detection of picture 1 takes the only place of its class.
    """
    truths = [truth((CUP, BOX)), truth()]
    for limit, expected in ((1, 0.0), (2, 1.0)):
        best = BestOfClasses(1, limit=limit)
        best.add(0, [BOX], [0.5], [CUP])
        best.add(1, [BOX], [0.9], [CUP])
        numbers = fixed_average_precision(best.table(), truths, ["r"])
        assert numbers["ap"] == pytest.approx(expected)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"(picture|image) 3.*1.*2.*1"):
        BestOfClasses(1).add(3, [BOX], [0.1, 0.2], [0])
    wrong = FederatedTruth([BOX], [], frozenset())
    with pytest.raises(ValueError, match=r"(picture|image) 0.*1.*0.*1"):
        fixed_average_precision(BestOfClasses(1).table(), [wrong], ["r"])


def test_equals_what_the_lvis_package_gave():
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


def spelled_out(detections, truths, num_classes):
    """LVIS' published algorithm for all areas, written in loops from its description."""
    precisions = []
    for label in range(num_classes):
        lists, positives = [], 0
        for picture, own in enumerate(truths):
            boxes = [b for b, c in zip(own.boxes_xyxy, own.classes, strict=True) if c == label]
            positives += len(boxes)
            if label not in own.absent and not boxes:
                continue
            rows = (detections.pictures == picture) & (detections.classes == label)
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
                    lists.append((round(threshold, 2), -score, picture, chosen is not None))
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
def test_equals_the_algorithm_spelled_out(seed):
    random = np.random.default_rng(seed)
    truths, rows = [], []
    for picture in range(6):
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
                rows.append((picture, label, box, random.integers(1, 12) / 12))
    found = measured(rows, truths, ("f",) * 4)
    assert 0 < found["ap"] < 1
    assert found["ap"] == pytest.approx(spelled_out(table(*rows), truths, 4), abs=1e-9)
