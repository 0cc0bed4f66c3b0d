import math

import pytest
import torch
import torch.nn.functional as F

from fiber.losses.itc import itc_loss, text_fingerprints

pytestmark = pytest.mark.oldest


def unit_vectors(rows, width=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=random, dtype=torch.float64), dim=1)


def plain_itc(images, texts, temperature, image_ids, text_ids):
    """The same loss pair by pair, in Python's own floats."""
    total, rows = 0.0, len(images)
    for queries, keys in ((images, texts), (texts, images)):
        for i in range(rows):
            allowed = [
                j
                for j in range(rows)
                if j == i or (image_ids[j] != image_ids[i] and text_ids[j] != text_ids[i])
            ]
            logits = [float(queries[i] @ keys[j]) / temperature for j in allowed]
            own = float(queries[i] @ keys[i]) / temperature
            total += math.log(sum(math.exp(x) for x in logits)) - own
    return total / (2 * rows)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_without_negatives_is_refused(rows):
    vectors = torch.zeros(rows, 4)
    with pytest.raises(ValueError, match=rf"got {rows} in the global batch"):
        itc_loss(vectors, vectors, torch.tensor(0.07), torch.arange(rows))


@pytest.mark.parametrize(
    ("image_ids", "text_ids"),
    [([0, 1], [0, 1]), ([0, 0, 1], [0, 1, 2]), ([4, 7, 4, 9, 1, 9, 4], [0, 1, 2, 1, 4, 5, 2])],
    ids=["two pairs", "a repeated picture", "repeated pictures and texts"],
)
def test_loss_by_hand(image_ids, text_ids):
    rows = len(image_ids)
    images, texts = unit_vectors(rows), unit_vectors(rows, seed=1)
    expected = plain_itc(images, texts, 0.3, image_ids, text_ids)
    temperature = torch.tensor(0.3, dtype=torch.float64)
    found, similarities = itc_loss(
        images, texts, temperature, torch.tensor(image_ids), torch.tensor(text_ids)
    )
    # float64 logits of size 3 round by 4e-16 each; a loss adds up to 14 of them.
    assert float(found) == pytest.approx(expected, abs=1e-14)
    assert similarities.counts == (rows,)
    assert not similarities.image_to_text.requires_grad
    torch.testing.assert_close(
        similarities.text_to_image, texts @ images.T / 0.3, rtol=1e-14, atol=1e-14
    )
    for i in range(rows):
        for j in range(rows):
            same = image_ids[i] == image_ids[j] or text_ids[i] == text_ids[j]
            assert bool(similarities.is_negative[i, j]) is not same


def test_captions_of_one_picture_do_not_push_each_other():
    images, texts = unit_vectors(3).float(), unit_vectors(3, seed=1).float().requires_grad_()
    one_picture = torch.zeros(3, dtype=torch.int64)
    loss, similarities = itc_loss(images, texts, torch.tensor(0.1), one_picture)
    loss.backward()
    assert loss.item() == 0.0
    assert texts.grad is not None and texts.grad.abs().max() == 0.0
    assert not similarities.is_negative.any()


@pytest.mark.parametrize(
    ("start", "kept"), [(0.0001, 0.001), (-3.0, 0.001), (0.2, 0.2), (7.0, 1.0)]
)
def test_temperature_is_clamped_and_keeps_its_gradient(start, kept):
    temperature = torch.nn.Parameter(torch.tensor(start))
    loss, _ = itc_loss(
        unit_vectors(4).float(), unit_vectors(4, seed=1).float(), temperature, torch.arange(4)
    )
    loss.backward()
    assert temperature.item() == pytest.approx(kept)
    assert temperature.grad is not None and float(temperature.grad.abs()) > 0


def test_half_precision_vectors_give_a_float32_loss():
    images, texts = unit_vectors(4).bfloat16(), unit_vectors(4, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = itc_loss(images, texts, torch.tensor(0.05), torch.arange(4))
    expected, _ = itc_loss(images.float(), texts.float(), torch.tensor(0.05), torch.arange(4))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_wrong_shapes_are_named():
    vectors = unit_vectors(3).float()
    with pytest.raises(ValueError, match=r"text_vectors \(2, 5\)"):
        itc_loss(vectors, vectors[:2], torch.tensor(0.1), torch.arange(3))
    with pytest.raises(ValueError, match=r"image_ids.*shape \(2,\).*\(3,\)"):
        itc_loss(vectors, vectors, torch.tensor(0.1), torch.arange(2))


def test_fingerprints_see_the_text_and_not_the_padding():
    ids = torch.tensor([[0, 5, 6, 2], [0, 6, 5, 2], [0, 5, 6, 2], [0, 5, 2, 1], [0, 5, 6, 6]])
    mask = ids != 1
    found = text_fingerprints(ids, mask)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 4
    padded = F.pad(ids, [0, 3], value=1)
    assert torch.equal(text_fingerprints(padded, padded != 1), found)
    assert text_fingerprints(ids[:0], mask[:0]).shape == (0,)
    # Every text of up to two of 64 words, and no two alike.
    many = torch.cartesian_prod(torch.arange(64), torch.arange(64), torch.arange(4))
    assert len(set(text_fingerprints(many, torch.ones_like(many).bool()).tolist())) == 64 * 64 * 4
