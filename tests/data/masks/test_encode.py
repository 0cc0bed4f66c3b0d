"""COCO's run-length encoding, against pycocotools."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco

from fiber.data import encode_rle


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (13, 5), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_are_encoded_as_by_pycocotools(size, share):
    mask = np.random.default_rng(0).random(size) < share
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encode_rle(mask).counts
    assert counts == expected["counts"].decode()
    decoded = coco.decode({"size": list(size), "counts": counts})
    assert np.array_equal(decoded.astype(bool), mask)


def test_long_runs():
    mask = np.zeros((3000, 1000), bool)
    mask[10:2900, 3:990] = True
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask).counts == expected["counts"].decode()
