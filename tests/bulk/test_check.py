"""A small case of `python -m tests.check_map`."""

import pytest

from tests.check_map import OPTIONS, check, differences


@pytest.mark.slow
def test_every_task_gives_what_single_calls_give(tmp_path):
    lines = []
    assert check(tmp_path, 9, 3, list(OPTIONS), lines.append) == 0, lines
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, []),
        ({"score": 0.50002}, ["score"]),
        ({"labels": ["a", "c"]}, ["labels"]),
        ({"boxes_xyxy": [[0.0, 0.0, 9.0, 9.01]]}, ["boxes_xyxy"]),
        ({"boxes_xyxy": []}, ["boxes_xyxy"]),
    ],
)
def test_differences_are_seen(changed, wrong):
    expected = {"score": 0.5, "labels": ["a", "b"], "boxes_xyxy": [[0.0, 0.0, 9.0, 9.0]]}
    assert differences({**expected, "height": 10, "width": 20, **changed}, expected) == wrong
