import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fiber.losses.itc import Similarities, itc_loss
from fiber.losses.itm import (
    counter_uniforms,
    half_pairs,
    hard_negatives,
    itm_loss,
    join_pairs,
    matching_labels,
    negative_rows,
    pair_loss,
)
from tests.golden import COARSE

pytestmark = pytest.mark.oldest


def similarities(logits, image_ids):
    ids = torch.tensor(image_ids)
    return Similarities(
        image_to_text=logits,
        text_to_image=logits.T.contiguous(),
        is_negative=ids[:, None] != ids[None],
        counts=(len(image_ids),),
    )


def test_no_rows_no_negatives():
    none = similarities(torch.zeros(0, 0), [])
    found = hard_negatives(none, seed=0, step=0)
    assert found.text_index.shape == found.image_index.shape == found.exists.shape == (0,)
    assert float(itm_loss(torch.zeros(0, 2), 0, found)) == 0.0


def test_a_batch_of_one_picture_has_no_negative_and_no_loss_for_it():
    found = hard_negatives(similarities(torch.randn(3, 3), [7, 7, 7]), seed=0, step=0)
    assert found.exists.tolist() == [False] * 3
    assert found.text_index.tolist() == [0, 1, 2]
    assert matching_labels(3, found).tolist() == [1] * 3 + [-100] * 6
    logits = torch.randn(9, 2)
    expected = F.cross_entropy(logits[:3], torch.ones(3, dtype=torch.int64))
    assert torch.allclose(itm_loss(logits, 3, found), expected)


def test_the_only_other_picture_is_drawn():
    found = hard_negatives(similarities(torch.randn(3, 3), [7, 7, 8]), seed=0, step=0)
    assert found.text_index[:2].tolist() == [2, 2]
    assert found.text_index[2] in (0, 1)
    assert found.exists.all()


@pytest.mark.parametrize("huge", [1.0, 1e4], ids=["ordinary", "logits that overflow exp"])
def test_the_same_picture_is_never_drawn(huge):
    random = torch.Generator().manual_seed(0)
    ids = [0, 1, 0, 2, 1, 3, 0]
    logits = torch.randn(7, 7, generator=random) * huge
    logits[torch.eye(7, dtype=torch.bool)] = 50.0 * huge
    for step in range(50):
        found = hard_negatives(similarities(logits, ids), seed=1, step=step)
        for index in (found.text_index, found.image_index):
            assert all(ids[j] != ids[i] for i, j in enumerate(index.tolist()))


def test_draws_follow_the_softmax():
    logits = torch.tensor([[9.0, 0.0, 1.0, 2.0]] * 4)
    counts = np.zeros(4)
    draws = 4000
    for step in range(draws):
        found = hard_negatives(similarities(logits, [0, 1, 2, 3]), seed=2, step=step)
        counts[found.text_index[0]] += 1
    expected = np.array([0.0, 1.0, math.e, math.e**2])
    expected /= expected.sum()
    # Four standard deviations of a binomial count.
    bound = 4 * np.sqrt(draws * expected * (1 - expected)) + 1e-9
    assert (np.abs(counts - draws * expected) <= bound).all(), counts


def test_draws_depend_on_seed_step_direction_and_row_alone():
    base = counter_uniforms(1, 2, 0, np.arange(6))
    assert np.array_equal(counter_uniforms(1, 2, 0, np.arange(3, 6)), base[3:])
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0)):
        assert not np.isin(counter_uniforms(*other, np.arange(6)), base).any()
    many = counter_uniforms(0, 0, 0, np.arange(20_000))
    assert many.min() >= 0 and many.max() < 1
    # The mean of 20,000 uniform numbers has a standard deviation of 0.00204.
    assert abs(many.mean() - 0.5) < 0.008
    assert abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.03


def test_pairs_are_true_then_wrong_text_then_wrong_picture():
    ids = [0, 1, 2, 1]
    found = hard_negatives(similarities(torch.randn(4, 4), ids), seed=0, step=3)
    images = torch.randn(4, 2, 3, requires_grad=True)
    texts = torch.randn(4, 5, 6)
    mask = torch.arange(5) < torch.tensor([[2], [5], [1], [3]])
    wrong = negative_rows(images, texts, mask, found)
    pairs = join_pairs((images, texts, mask), wrong)
    assert torch.equal(pairs.image_rows[:8], torch.cat([images, images]))
    assert torch.equal(pairs.image_rows[8:], images[found.image_index])
    assert torch.equal(pairs.text_rows[4:8], texts[found.text_index])
    assert torch.equal(pairs.text_mask[4:8], mask[found.text_index])
    assert torch.equal(pairs.text_rows[8:], texts)
    pairs.image_rows.sum().backward()
    uses = 2 + torch.bincount(found.image_index, minlength=4)
    assert torch.equal(images.grad[:, 0, 0], uses.float())


def test_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0], [-1.0, 3.0]])
    expected = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(4))]
    assert float(itm_loss(logits, 1)) == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_loss_of_chosen_pairs():
    negatives = hard_negatives(similarities(torch.randn(3, 3), [0, 1, 1]), seed=0, step=0)
    logits, rows = torch.randn(9, 2), torch.tensor([0, 1, 2, 3, 7, 5])
    expected = F.cross_entropy(logits[rows], torch.tensor([1, 1, 1, 0, 0, 0]))
    assert torch.allclose(itm_loss(logits[rows], 3, negatives, rows=rows), expected)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*\(6, 2\)"):
        itm_loss(torch.zeros(4, 2), 2)


@pytest.mark.parametrize("rows", [0, 1])
def test_half_of_a_batch_without_another_picture_is_refused(rows):
    with pytest.raises(ValueError, match=rf"images.*got {rows} in the global batch"):
        half_pairs(torch.arange(rows), seed=0, step=0)


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 2, 3, 4], [7, 7, 8, 9, 8, 7]])
def test_half_of_the_texts_keep_their_picture(ids):
    image_ids = torch.tensor(ids)
    places = set()
    for step in range(60):
        found = half_pairs(image_ids, seed=0, step=step)
        assert found.labels.tolist().count(1) == len(ids) // 2
        own = torch.arange(len(ids))
        assert torch.equal(found.image_index == own, found.labels == 1)
        same = image_ids[found.image_index] == image_ids
        assert torch.equal(same, found.labels == 1)
        places.add(tuple(found.labels.tolist()))
    assert len(places) > 1


def test_other_pictures_are_drawn_evenly():
    counts = np.zeros(4)
    steps = 6000
    for step in range(steps):
        found = half_pairs(torch.tensor([0, 1, 2, 2]), seed=3, step=step)
        if found.labels[0] == 0:
            counts[found.image_index[0]] += 1
    total = counts.sum()
    # Four standard deviations of a binomial count.
    assert abs(total - steps / 2) < 4 * math.sqrt(steps / 4)
    assert (np.abs(counts[1:] - total / 3) < 4 * math.sqrt(total * 2 / 9)).all()
    assert counts[0] == 0


def test_half_of_equal_pictures_leaves_the_false_pairs_out():
    found = half_pairs(torch.tensor([5, 5, 5, 5]), seed=0, step=0)
    assert sorted(found.labels.tolist()) == [-100, -100, 1, 1]
    assert found.image_index.tolist() == [0, 1, 2, 3]


def test_pair_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0], [-1.0, 3.0]])
    found = pair_loss(logits, torch.tensor([1, -100, 0]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(4))) / 2
    assert float(found) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), labels \(2,\)"):
        pair_loss(logits, torch.tensor([1, 0]))


def test_works_on_what_the_contrastive_loss_returns():
    vectors = F.normalize(torch.randn(6, 4), dim=1)
    _, found = itc_loss(vectors, vectors, torch.tensor(0.07), torch.arange(6) // 2)
    negatives = hard_negatives(found, seed=0, step=0)
    assert (negatives.text_index // 2 != torch.arange(6) // 2).all()


@pytest.mark.parametrize("name", ["micro", "tiny", "tinyhot"])
def test_loss_equals_the_original(name):
    tensors = load_file(COARSE / f"{name}.safetensors")
    scalars = json.loads((COARSE / f"{name}.json").read_text())["scalars"]
    logits = tensors["itm_hardneg.logits"]
    assert matching_labels(len(logits) // 3).tolist() == tensors["itm_hardneg.labels"].tolist()
    found = float(itm_loss(logits, len(logits) // 3))
    assert found == pytest.approx(scalars["loss.itm_hardneg"], rel=1e-6)
