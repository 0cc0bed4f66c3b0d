"""Functions for tensors and for arrays of numpy: the same names, and the same results."""

import inspect

import numpy as np
import pytest
import torch

from fiber.ops import numpy_functions, torch_functions
from fiber.ops.anchors import level_anchor_array, level_anchors
from fiber.ops.arrays import functions_of
from fiber.ops.boxes import clip_to_image, decode_deltas
from fiber.ops.nms import nms

pytestmark = pytest.mark.oldest

DRAW = np.random.default_rng(0)
VALUES = DRAW.normal(0, 30, (4, 7)).astype(np.float32)
OTHERS = DRAW.normal(0, 30, (4, 7)).astype(np.float32)
INDICES = DRAW.integers(0, 4, (2, 7))


def public(module):
    found = {name for name, value in vars(module).items() if name[0] != "_" and callable(value)}
    own = {name for name in found if not inspect.isclass(getattr(module, name))}
    return own - {"pad_sequence"}


def test_both_have_the_same_names():
    assert public(numpy_functions) == public(torch_functions)
    assert functions_of(VALUES) is numpy_functions
    assert functions_of(torch.zeros(1)) is torch_functions


CASES = {
    "sigmoid": lambda f, a: f.sigmoid(a(VALUES * 10)),
    "softmax": lambda f, a: f.softmax(a(VALUES)),
    "log_softmax": lambda f, a: f.log_softmax(a(VALUES * 10)),
    "sqrt": lambda f, a: f.sqrt(a(np.abs(VALUES))),
    "exp": lambda f, a: f.exp(a(VALUES / 30)),
    "minimum": lambda f, a: f.minimum(a(VALUES), a(OTHERS)),
    "maximum": lambda f, a: f.maximum(a(VALUES), a(OTHERS)),
    "where": lambda f, a: f.where(a(VALUES > 0), a(VALUES), -1.0),
    "where of integers": lambda f, a: f.where(a(INDICES > 1), a(INDICES), 9),
    "clip": lambda f, a: f.clip(a(VALUES), -3.5, 7),
    "clip below": lambda f, a: f.clip(a(VALUES), 2),
    "clip above": lambda f, a: f.clip(a(VALUES), most=2),
    "largest": lambda f, a: f.largest(a(VALUES), 1),
    "smallest": lambda f, a: f.smallest(a(VALUES), 0),
    "best": lambda f, a: f.best(a(np.round(VALUES / 30)), 0)[1],
    "best values": lambda f, a: f.best(a(VALUES), -1)[0],
    "unique": lambda f, a: f.unique(a(INDICES)),
    "einsum": lambda f, a: f.einsum("ij,kj->ik", a(VALUES / 30), a(OTHERS / 30)),
    "topk": lambda f, a: f.topk(a(VALUES), 3)[1],
    "topk of all": lambda f, a: f.topk(a(VALUES), 7)[0],
    "topk of none": lambda f, a: f.topk(a(VALUES), 0)[1],
    "argsort": lambda f, a: f.argsort(a(INDICES), descending=False),
    "argsort descending": lambda f, a: f.argsort(a(np.round(VALUES[0] / 30)), descending=True),
    "take": lambda f, a: f.take(a(VALUES), a(INDICES[0])),
    "take_along": lambda f, a: f.take_along(a(VALUES), a(INDICES), 0),
    "take_along broadcast": lambda f, a: f.take_along(a(VALUES), a(INDICES[:, :1]), 0),
    "array": lambda f, a: f.array([1, 2.5], a(VALUES)),
    "zeros": lambda f, a: f.zeros([0, 3], a(VALUES)),
    "arange": lambda f, a: f.arange(5, a(VALUES)),
    "indices": lambda f, a: f.indices([], a(VALUES)),
    "moved": lambda f, a: f.moved(INDICES > 1, a(VALUES)),
    "concat": lambda f, a: f.concat([a(VALUES), a(OTHERS)], 1),
    "stack": lambda f, a: f.stack([a(VALUES), a(OTHERS)], -1),
    "broadcast_to": lambda f, a: f.broadcast_to(a(INDICES[:, :1]), (2, 5)),
    "searchsorted": lambda f, a: f.searchsorted(a(np.array([1, 1, 4])), a(np.array([1, 4, 5]))),
    "float32": lambda f, a: f.float32(a(VALUES.astype(np.float64))),
    "at_least_float32": lambda f, a: f.at_least_float32(a(VALUES.astype(np.float16))),
    "pad_rows": lambda f, a: f.pad_rows([a(VALUES), a(OTHERS[:1]), a(VALUES[:0])]),
    "copy": lambda f, a: f.copy(a(VALUES)),
    "cpu": lambda f, a: f.cpu(a(VALUES)),
}


@pytest.mark.parametrize("name", CASES)
def test_both_give_the_same(name):
    ours = CASES[name](numpy_functions, lambda array: array)
    theirs = CASES[name](torch_functions, torch.from_numpy)
    assert ours.dtype == theirs.numpy().dtype
    assert ours.shape == tuple(theirs.shape)
    # A few roundings of float32, for the functions that are not exact.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-37)
    np.testing.assert_array_equal(torch_functions.as_numpy(theirs), theirs.numpy())
    assert numpy_functions.as_numpy(ours) is ours


def test_sigmoid_has_no_overflow():
    with np.errstate(all="raise", under="ignore"):
        found = numpy_functions.sigmoid(np.array([-1e4, -100, 0, 100, 1e4], np.float32))
    np.testing.assert_allclose(found, [0, np.exp(-100), 0.5, 1, 1], rtol=1e-6, atol=1e-44)


def boxes(count):
    low = DRAW.uniform(0, 40, (count, 2))
    return np.concatenate([low, low + DRAW.uniform(1, 40, (count, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_suppression(count, threshold):
    given = (boxes(count), DRAW.random(count, np.float32), DRAW.integers(0, 3, count))
    kept = nms(*given, threshold)
    expected = nms(*map(torch.from_numpy, given), threshold)
    assert kept.tolist() == expected.tolist()
    assert count < 300 or threshold == 1.0 or len(kept) < count


def test_suppression_of_equal_boxes_and_empty_ones():
    same = np.array([[0, 0, 4, 4]] * 3 + [[2, 2, 2, 2]] * 2, np.float32)
    scores, labels = np.array([0.5, 0.9, 0.7, 0.3, 0.2], np.float32), np.zeros(5, np.int64)
    assert nms(same, scores, labels, 0.5).tolist() == [1, 3, 4]
    expected = nms(*map(torch.from_numpy, (same, scores, labels)), 0.5)
    assert expected.tolist() == [1, 3, 4]


@pytest.mark.parametrize("size", [(0, 3), (1, 1), (5, 2)])
def test_anchors(size):
    ours, theirs = level_anchor_array(size, 8, 3.0), level_anchors(size, 8, 3.0)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_decoding_and_clipping():
    deltas, anchors = VALUES[:, :4] / 10, boxes(4)
    ours = clip_to_image(decode_deltas(deltas, anchors), 30, 50)
    theirs = clip_to_image(decode_deltas(*map(torch.from_numpy, (deltas, anchors))), 30, 50)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
