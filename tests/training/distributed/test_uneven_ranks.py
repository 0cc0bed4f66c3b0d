"""Micro-batches that the ranks do not divide."""

import pytest

from tests.training.test_task_loaders import streams


@pytest.mark.parametrize("unit", ["token", "word", "position"])
def test_ranks_mask_the_same_words_of_a_batch_that_they_do_not_divide(pictures, unit):
    options = {"data__batch_size": 8, "data__mlm_unit": unit}
    loaders = [streams(pictures, rank=rank, world_size=3, **options) for rank in range(3)]
    one = streams(pictures, **options)
    for _ in range(3):
        whole = one.next_batch("image_text")
        parts = [loader.next_batch("image_text") for loader in loaders]
        assert [len(part) for part in parts] == [2, 3, 3]
        labels = [row[row >= 0].tolist() for part in parts for row in part.mlm_labels]
        assert labels == [row[row >= 0].tolist() for row in whole.mlm_labels]
    assert [loader.consumed["image_text"] for loader in loaders] == [24] * 3


def test_ranks_without_a_sample_are_refused(pictures):
    with pytest.raises(ValueError, match=r"batch_size 4 in 1 micro-batches.*4 samples for 5 proc"):
        streams(pictures, world_size=5)
