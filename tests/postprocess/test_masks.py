"""Semantic maps, panoptic segments and instances of small masks that can be checked by eye."""

import pytest
import torch

from fiber.postprocess.masks import (
    final_masks,
    instance_masks,
    panoptic_segments,
    semantic_scores,
)

pytestmark = pytest.mark.oldest

#: Classes of the examples: a thing, and two kinds of stuff.
IS_THING = (True, False, False)
BACKGROUND = 3


def masks_of(*rows):
    """Mask logits of one row of pixels: "#" is inside, "." outside."""
    values = [[4.0 if pixel == "#" else -4.0 for pixel in row] for row in rows]
    return torch.tensor(values)[:, None]


def classes_of(*labels, logit=6.0):
    return logit * torch.nn.functional.one_hot(torch.tensor(labels), 4).float()


def segments_of(*arguments, **options):
    found = panoptic_segments(*arguments, IS_THING, **options)
    return found.ids[0].tolist(), [(each.id, each.label) for each in found.segments]


def test_no_masks():
    ids, segments = segments_of(torch.zeros(0, 1, 4), torch.zeros(0, 4))
    assert ids == [0, 0, 0, 0] and segments == []
    found = instance_masks(torch.zeros(0, 1, 4), torch.zeros(0, 4))
    assert found.scores.shape == (0,) and found.boxes.shape == (0, 4)


def test_background_and_unsure_masks_are_dropped():
    masks = masks_of("##..", "..##")
    assert segments_of(masks, classes_of(BACKGROUND, 0)) == ([0, 0, 1, 1], [(1, 0)])
    unsure = classes_of(0, 0, logit=1.0)
    assert segments_of(masks, unsure)[1] == []
    assert len(segments_of(masks, unsure, score_threshold=0.3)[1]) == 2


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    masks = masks_of("#...", ".#..", "..#.", "...#")
    assert segments_of(masks, classes_of(1, 0, 1, 0)) == ([1, 2, 1, 3], [(1, 1), (2, 0), (3, 0)])


def test_a_mask_that_keeps_too_little_is_dropped_and_its_pixels_belong_to_none():
    masks = masks_of("####", "###.")
    # The second is surer, and has the first three pixels.
    logits = classes_of(0, 0)
    logits[1] *= 2
    assert segments_of(masks, logits) == ([1, 1, 1, 0], [(1, 0)])
    assert segments_of(masks, logits, overlap_threshold=0.2) == ([2, 2, 2, 1], [(1, 0), (2, 0)])


def test_equal_masks_belong_to_the_first():
    masks = masks_of("##", "##") * 10
    assert segments_of(masks, classes_of(1, 2)) == ([1, 1], [(1, 1)])


def test_semantic_scores_are_sums_over_masks():
    masks, logits = masks_of("##..", ".##."), classes_of(0, 0)
    scores = semantic_scores(masks, logits)
    expected = (logits.softmax(-1)[:, :3, None] * masks.sigmoid()).sum(0)
    torch.testing.assert_close(scores[:, 0], expected)
    assert semantic_scores(masks, logits, with_background=True).shape == (4, 1, 4)


def test_instances_are_sorted_and_things_are_picked_last():
    masks, logits = masks_of("##..", ".#..", "...#"), classes_of(0, 1, 0)
    logits[2, 0] = 3.0
    found = instance_masks(masks, logits, IS_THING, max_instances=3)
    # The best three pairs have one of stuff.
    assert found.labels.tolist() == [0, 0]
    assert found.masks[:, 0].tolist() == [[True, True, False, False], [False] * 3 + [True]]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [3, 0, 4, 1]]
    probability = logits.softmax(-1)[0, 0] * torch.tensor(4.0).sigmoid()
    assert found.scores[0].item() == pytest.approx(probability.item(), rel=1e-5)
    everything = instance_masks(masks, logits, max_instances=100)
    assert len(everything.scores) == 9
    assert (everything.scores.diff() <= 0).all()


def test_padding_is_cut_before_the_last_resize():
    logits = torch.zeros(1, 8, 8)
    logits[:, :, 6:] = 50.0
    found = final_masks(logits, (32, 32), (32, 16), (10, 7))
    assert found.shape == (1, 10, 7)
    torch.testing.assert_close(found, torch.zeros(1, 10, 7))
