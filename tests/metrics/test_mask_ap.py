import contextlib
import io
import math

import numpy as np
import pytest

from fiber.metrics.mask_ap import ScoredMasks, TrueMasks, encode_masks, mask_average_precision
from tests.metrics.generated_masks import generated

pytestmark = pytest.mark.oldest

#: In pycocotools' order.
COCO_NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_at_1", "ar_at_10", "ar_at_100", "ar_small", "ar_medium", "ar_large"),
)
EMPTY = np.zeros((0, 4, 4), bool)


def test_nothing_is_nan():
    assert all(math.isnan(value) for value in mask_average_precision([], []).values())
    nothing = ScoredMasks(encode_masks(EMPTY), [], []), TrueMasks(encode_masks(EMPTY), [])
    assert math.isnan(mask_average_precision([nothing[0]], [nothing[1]])["ap"])


def test_masks_count_and_not_their_boxes():
    mask = np.eye(8, dtype=bool)[None]
    truth = TrueMasks(encode_masks(mask), ["line"])
    same = ScoredMasks(encode_masks(mask), [0.5], ["line"])
    turned = ScoredMasks(encode_masks(mask[:, ::-1]), [0.5], ["line"])
    assert mask_average_precision([same], [truth])["ap"] == pytest.approx(1.0)
    assert mask_average_precision([turned], [truth])["ap"] == 0.0


def test_generated_images_equal_pycocotools():
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is optional")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    random = np.random.default_rng(1)
    found, truths, annotations, results, images = [], [], [], [], []
    for number, (truth, prediction) in enumerate(generated()):
        height, width = truth.ids.shape
        images.append({"id": number, "height": int(height), "width": int(width)})
        parts = []
        for own in (truth, prediction):
            masks = np.stack([own.ids == n for n in own.labels]) if own.labels else None
            empty = np.zeros((0, height, width), bool)
            parts.append((encode_masks(empty if masks is None else masks), [*own.labels.values()]))
        (true_masks, true_labels), (masks, labels) = parts
        crowd = random.random(len(true_labels)) < 0.1
        scores = np.round(random.random(len(labels)), 2)
        found.append(ScoredMasks(masks, scores, labels))
        truths.append(TrueMasks(true_masks, true_labels, crowd))
        for mask, label, is_crowd in zip(true_masks, true_labels, crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "segmentation": mask,
                    "area": _area(mask),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(is_crowd),
                }
            )
        results += [
            {"image_id": number, "category_id": label, "segmentation": mask, "score": float(score)}
            for mask, label, score in zip(masks, labels, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = coco.COCO()
        labels = {entry["category_id"] for entry in annotations + results}
        theirs.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label} for label in sorted(labels)],
        }
        theirs.createIndex()
        run = evaluation.COCOeval(theirs, theirs.loadRes(results), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = mask_average_precision(found, truths)
    expected = dict(zip(COCO_NAMES, run.stats.tolist(), strict=True))
    assert 0.02 < values["ap"] < values["ap50"] < 0.9
    for name in COCO_NAMES:
        own = -1.0 if math.isnan(values[name]) else values[name]
        assert own == pytest.approx(expected[name], abs=1e-9), name


def _area(mask):
    masks = pytest.importorskip("pycocotools.mask")
    return float(masks.area(mask))


def test_bad_masks_are_named():
    one = encode_masks(np.ones((1, 2, 2), bool))
    truth = TrueMasks(one, ["a"])
    with pytest.raises(ValueError, match=r"image 0 has 1 found masks and 2 scores"):
        mask_average_precision([ScoredMasks(one, [0.1, 0.2], ["a"])], [truth])
    with pytest.raises(ValueError, match=r"image 0 has 1 true masks and 0 labels"):
        mask_average_precision([ScoredMasks(one, [0.1], ["a"])], [TrueMasks(one, [])])
    other = encode_masks(np.ones((1, 2, 3), bool))
    with pytest.raises(ValueError, match=r"\(2, 2\), \(2, 3\)"):
        mask_average_precision([ScoredMasks(other, [0.1], ["a"])], [truth])
    with pytest.raises(ValueError, match=r"instances of 1 images, got 0"):
        mask_average_precision([], [truth])
    with pytest.raises(ValueError, match=r"\(2, 2\); expected \(N, H, W\)"):
        encode_masks(np.ones((2, 2), bool))
