import math
from collections import defaultdict

import numpy as np
import pytest

from fiber.metrics.panoptic import FoundSegments, PanopticCounts, TrueSegments
from tests.metrics.generated_masks import CLASSES, THINGS, Segmented, generated

pytestmark = pytest.mark.oldest

IS_THING = [label < THINGS for label in range(CLASSES)]
#: Rounding of sums of a few hundred numbers.
ROUNDING = 1e-9


def counted(pairs, crowd=frozenset(), classes=CLASSES):
    counts = PanopticCounts(classes)
    for truth, found in pairs:
        counts.add(
            FoundSegments(ids=found.ids, labels=found.labels),
            TrueSegments(ids=truth.ids, labels=truth.labels, crowd=crowd),
        )
    return counts


def by_the_formula(pairs, crowd=frozenset()):
    """PQ, SQ and RQ of the paper, segment by segment: means over the classes that occur."""
    overlap, matched, wrong, missed = (defaultdict(float) for _ in range(4))
    for truth, found in pairs:
        void = ~np.isin(truth.ids, list(truth.labels))
        seen = set()
        for segment, label in found.labels.items():
            own = found.ids == segment
            best, ignored = None, (own & void).sum()
            for other, other_label in truth.labels.items():
                real = truth.ids == other
                if other_label != label:
                    continue
                if other in crowd:
                    ignored += (own & real).sum()
                    continue
                iou = (own & real).sum() / ((own & ~void) | real).sum()
                if iou > 0.5:
                    best = other
                    overlap[label] += iou
            if best is not None:
                seen.add(best)
                matched[label] += 1
            elif ignored / own.sum() <= 0.5:
                wrong[label] += 1
        for other, label in truth.labels.items():
            if other not in seen and other not in crowd:
                missed[label] += 1
    rows = []
    for label in sorted({*matched, *wrong, *missed}):
        sq = overlap[label] / matched[label] if matched[label] else 0.0
        rq = matched[label] / (matched[label] + wrong[label] / 2 + missed[label] / 2)
        rows.append((sq * rq, sq, rq))
    return np.mean(rows, 0)


def test_nothing_is_nan():
    values = PanopticCounts(3).metrics([True, False, True])
    assert len(values) == 9 and all(math.isnan(value) for value in values.values())


def test_by_hand():
    truth = TrueSegments(ids=[[1, 1, 1, 2], [1, 1, 1, 0]], labels={1: 0, 2: 1})
    # 4 of 6 pixels, and one in an unlabeled pixel; class 1 is missed, class 2 is wrong.
    found = FoundSegments(ids=[[5, 5, 0, 7], [5, 5, 7, 5]], labels={5: 0, 7: 2})
    counts = PanopticCounts(3)
    counts.add(found, truth)
    assert counts.by_class() == pytest.approx([4 / 6, 0.0, 0.0])
    values = counts.metrics([True, False, False])
    assert values["pq"] == pytest.approx(4 / 18) and values["rq"] == pytest.approx(1 / 3)
    assert (values["pq_things"], values["pq_stuff"]) == (pytest.approx(4 / 6), 0.0)


def test_segments_in_unlabeled_or_crowd_pixels_are_not_wrong():
    truth = TrueSegments(ids=[[1, 1, 0, 0]], labels={1: 0}, crowd={1})
    counts = PanopticCounts(1)
    counts.add(FoundSegments(ids=[[3, 3, 3, 4]], labels={3: 0, 4: 0}), truth)
    assert (counts.matched, counts.wrong, counts.missed) == (0, 0, 0)
    other = PanopticCounts(2)
    other.add(FoundSegments(ids=[[3, 3, 3, 4]], labels={3: 1, 4: 0}), truth)
    assert other.wrong.tolist() == [0, 1]


@pytest.mark.parametrize("crowd", [frozenset(), frozenset({2})], ids=["all", "crowd"])
def test_generated_images_equal_the_formula(crowd):
    pairs = generated()
    values = counted(pairs, crowd).metrics()
    expected = by_the_formula(pairs, crowd)
    assert 0.2 < expected[0] < 0.9
    assert [values[name] for name in ("pq", "sq", "rq")] == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.slow
def test_generated_images_equal_torchmetrics(request):
    """It has no crowds, and leaves out pixels without a prediction: they get a class here."""
    detection = pytest.importorskip("torchmetrics.detection", reason="torchmetrics is optional")
    torch = pytest.importorskip("torch")
    # It divides numbers of pixels in the default dtype.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    request.addfinalizer(lambda: torch.set_default_dtype(before))
    rest, void = CLASSES, CLASSES + 1
    theirs = detection.PanopticQuality(
        things=set(range(THINGS)),
        stuffs=set(range(THINGS, CLASSES + 1)),
        allow_unknown_preds_category=True,
        return_sq_and_rq=True,
    )

    def pixels(own):
        labels = np.array([void, *(own.labels.get(n, void) for n in range(1, 30))])[own.ids]
        return torch.from_numpy(np.stack([labels, own.ids], -1))[None]

    pairs = []
    for truth, found in generated():
        free = found.ids == 0
        labels = found.labels | ({29: rest} if free.any() else {})
        pairs.append((truth, Segmented(np.where(free, 29, found.ids), labels)))
        theirs.update(pixels(pairs[-1][1]), pixels(truth))
    values = counted(pairs, classes=CLASSES + 1).metrics()
    own = [values[name] for name in ("pq", "sq", "rq")]
    assert own == pytest.approx(theirs.compute().tolist(), abs=ROUNDING)


def test_merging_images_in_any_order():
    pairs = generated(images=20)
    one, other = counted(pairs).metrics(IS_THING), counted(pairs[::-1]).metrics(IS_THING)
    assert one == pytest.approx(other, abs=ROUNDING)


@pytest.mark.parametrize(
    ("found", "truth", "named"),
    [
        ({"ids": [[1]], "labels": {1: 0, 4: 0}}, {"ids": [[1]], "labels": {1: 0}}, "found .* 4"),
        ({"ids": [[1]], "labels": {1: 0}}, {"ids": [[1]], "labels": {}}, None),
        ({"ids": [[1]], "labels": {1: 9}}, {"ids": [[1]], "labels": {1: 0}}, "1 has class 9"),
        ({"ids": [[1]], "labels": {1: 0}}, {"ids": [[1, 1]], "labels": {1: 0}}, r"\(1, 2\)"),
    ],
)
def test_bad_segments_are_named(found, truth, named):
    counts = PanopticCounts(2)
    if named is None:
        counts.add(FoundSegments(**found), TrueSegments(**truth))
        assert counts.wrong.sum() == 0
        return
    with pytest.raises(ValueError, match=named):
        counts.add(FoundSegments(**found), TrueSegments(**truth))
    assert counts.matched.sum() == counts.wrong.sum() == 0
