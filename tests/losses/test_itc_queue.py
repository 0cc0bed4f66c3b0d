import math

import pytest
import torch
import torch.nn.functional as F

from fiber.losses.itc import itc_loss, queue_itc_loss
from fiber.losses.itc_queue import PairQueue
from fiber.losses.itm import hard_negatives
from tests.losses.toy_objectives import queue_after
from tests.losses.two_ranks import run_on_two_ranks

pytestmark = pytest.mark.oldest

WIDTH, TOKENS = 5, 4


def negative_rows(queue, batch, negatives):
    return queue.candidate_rows(
        *batch[2:5], image_index=negatives.image_index, text_index=negatives.text_index
    )


def pairs(rows, seed=0):
    """Vectors, pictures, texts and numbers of `rows` pairs, as `enqueue` takes them."""
    random = torch.Generator().manual_seed(seed)
    vectors = [F.normalize(torch.randn(rows, WIDTH, generator=random), dim=1) for _ in range(2)]
    numbers = torch.arange(rows) + 100 * seed
    ids = numbers[:, None].expand(rows, TOKENS) + 5
    mask = torch.ones(rows, TOKENS, dtype=torch.bool)
    images = numbers[:, None, None, None].expand(rows, 3, 2, 2).float()
    return (*vectors, images, ids, mask, numbers, numbers)


def queue_of(length, *batches):
    queue = PairQueue(length, width=WIDTH, image_size=(2, 2), max_tokens=TOKENS)
    for batch in batches:
        queue.enqueue(*batch)
    return queue


def loss_of(batch, queue, temperature=0.3, **options):
    images, texts, *_, image_ids, text_ids = batch
    return queue_itc_loss(
        images, texts, torch.tensor(temperature), image_ids, text_ids, queue, **options
    )


def test_an_empty_queue_and_a_single_pair_have_no_negative():
    with pytest.raises(ValueError, match=r"got 1 in .*batch.*empty"):
        loss_of(pairs(1), queue_of(4))
    with pytest.raises(ValueError, match=r"got 0 in .*batch"):
        loss_of(pairs(0), queue_of(4))
    # A single pair is enough once the queue holds another.
    loss, found = loss_of(pairs(1), queue_of(4, pairs(2, seed=1)))
    assert loss > 0 and found.is_negative.tolist() == [[False, True, True]]


def test_a_rank_without_pairs_has_a_loss_of_zero_with_a_graph():
    images, *rest = pairs(0)
    images.requires_grad_()
    loss, found = loss_of((images, *rest), queue_of(4, pairs(2, seed=1)))
    loss.backward()
    assert loss.item() == 0.0 and images.grad is not None
    negatives = hard_negatives(found, seed=0, step=0)
    wrong = negative_rows(queue_of(4, pairs(2, seed=1)), pairs(0), negatives)
    assert [part.shape[0] for part in wrong] == [0, 0, 0]


def test_an_empty_queue_gives_the_loss_of_the_batch_but_other_gradients():
    batch = pairs(4)
    queued, _ = loss_of(batch, queue_of(6))
    gathered, _ = itc_loss(batch[0], batch[1], torch.tensor(0.3), batch[5], batch[6])
    assert torch.allclose(queued, gathered)


def test_loss_by_hand():
    batch, old = pairs(3), pairs(2, seed=1)
    loss, found = loss_of(batch, queue_of(6, old))
    total = 0.0
    for own, other, kept in ((0, 1, old[1]), (1, 0, old[0])):
        keys = torch.cat([batch[other], kept]).double()
        for i in range(3):
            logits = (keys @ batch[own][i].double() / 0.3).tolist()
            total += math.log(sum(map(math.exp, logits))) - logits[i]
    # float32 logits of size 3: 1e-6 is four of their rounding errors.
    assert float(loss) == pytest.approx(total / 6, abs=1e-6)
    assert found.image_to_text.shape == (3, 5)
    assert found.is_negative.tolist() == [[i != j for j in range(5)] for i in range(3)]


def test_places_without_a_pair_count_only_where_they_are_asked_for():
    batch, queue = pairs(3), queue_of(6, pairs(2, seed=1))
    # Vectors of length 0 have a similarity of 0, and add exp(0) each.
    published, found = loss_of(batch, queue, only_written=False)
    correct, _ = loss_of(batch, queue)
    assert published > correct
    assert found.image_to_text.shape == (3, 5)


def test_the_same_picture_or_text_in_the_queue_is_no_negative():
    batch = pairs(3)
    queue = queue_of(8, batch, pairs(2, seed=1))
    loss, found = loss_of(batch, queue)
    assert torch.equal(found.is_negative[:, 3:6], ~torch.eye(3, dtype=torch.bool))
    # What stands twice as a negative weighs twice, its own copy does not.
    logits = batch[0] @ torch.cat([batch[1], batch[1], pairs(2, seed=1)[1]]).T / 0.3
    left_out = torch.zeros(3, 8, dtype=torch.bool)
    left_out[:, 3:6] = torch.eye(3, dtype=torch.bool)
    expected = F.cross_entropy(logits.masked_fill(left_out, -torch.inf), torch.arange(3))
    logits = batch[1] @ torch.cat([batch[0], batch[0], pairs(2, seed=1)[0]]).T / 0.3
    expected += F.cross_entropy(logits.masked_fill(left_out, -torch.inf), torch.arange(3))
    assert torch.allclose(loss, expected / 2)


def test_gradients_reach_the_asking_side_alone():
    images, texts, *rest = pairs(3)
    images.requires_grad_()
    loss, _ = loss_of((images, texts, *rest), queue_of(6, pairs(2, seed=1)))
    (found,) = torch.autograd.grad(loss, images)
    kept = pairs(2, seed=1)[1]
    again = images.detach().clone().requires_grad_()
    plain = F.cross_entropy(again @ torch.cat([texts, kept]).T / 0.3, torch.arange(3)) / 2
    assert torch.allclose(found, torch.autograd.grad(plain, again)[0])


def test_temperature_is_clamped():
    temperature = torch.nn.Parameter(torch.tensor(7.0))
    batch = pairs(2)
    queue_itc_loss(batch[0], batch[1], temperature, batch[5], batch[6], queue_of(3))
    assert temperature.item() == 1.0


def test_the_newest_pairs_overwrite_the_oldest():
    queue = queue_of(5)
    places = []
    for seed in range(4):
        queue.enqueue(*pairs(2, seed=seed))
        places.append((queue.pointer, queue.total, queue.written, queue.image_ids.tolist()))
    assert places[0] == (2, 2, 2, [0, 1, 0, 0, 0])
    assert places[1] == (4, 4, 4, [0, 1, 100, 101, 0])
    assert places[2] == (1, 6, 5, [201, 1, 100, 101, 200])
    assert places[3] == (3, 8, 5, [201, 300, 301, 101, 200])
    for name in ("token_ids", "images"):
        assert (getattr(queue, name).flatten(1)[:, 0] - queue.image_ids).unique().numel() == 1
    assert torch.equal(queue.image_vectors[1:3], pairs(2, seed=3)[0])
    assert torch.equal(queue.text_vectors[1:3], pairs(2, seed=3)[1])


def test_shorter_texts_are_padded_and_longer_ones_refused():
    queue = queue_of(3)
    batch = list(pairs(2))
    batch[3], batch[4] = batch[3][:, :2], batch[4][:, :2]
    queue.enqueue(*batch)
    assert queue.token_ids[:2].tolist() == [[5, 5, 1, 1], [6, 6, 1, 1]]
    assert queue.text_mask[:2].tolist() == [[True, True, False, False]] * 2
    batch[3], batch[4] = torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9).bool()
    with pytest.raises(ValueError, match=r"9 tokens.*queue.*4"):
        queue.enqueue(*batch)
    with pytest.raises(ValueError, match=r"batch.*4.*queue.*3"):
        queue.enqueue(*pairs(4))
    with pytest.raises(ValueError, match=r"queue.*0"):
        queue_of(0)


def test_negatives_come_from_the_batch_and_from_the_queue():
    batch, queue = pairs(3), queue_of(6, pairs(4, seed=1))
    seen = set()
    for step in range(40):
        _, similarities = loss_of(batch, queue)
        negatives = hard_negatives(similarities, seed=0, step=step)
        images, ids, mask = negative_rows(queue, batch, negatives)
        numbers = torch.cat([batch[5], queue.image_ids[:4]])
        assert torch.equal(images[:, 0, 0, 0].long(), numbers[negatives.image_index])
        assert torch.equal(ids[:, 0] - 5, numbers[negatives.text_index])
        assert mask.all()
        for index in (negatives.image_index, negatives.text_index):
            assert (index != torch.arange(3)).all()
            seen |= set(index.tolist())
    # Never one of the two places that hold nothing.
    assert seen == set(range(7))


def test_state_brings_a_queue_back():
    queue = queue_of(5, pairs(3), pairs(3, seed=1))
    copy = queue_of(5)
    copy.load_state_dict({name: value.clone() for name, value in queue.state_dict().items()})
    assert (copy.pointer, copy.total) == (queue.pointer, queue.total)
    for each in (queue, copy):
        each.enqueue(*pairs(2, seed=2))
    assert all(torch.equal(copy.state_dict()[n], v) for n, v in queue.state_dict().items())


def test_two_ranks_write_what_one_process_writes(tmp_path):
    # One rank has nothing; then the queue wraps around.
    splits = [(3, 0), (2, 4), (5, 2)]
    expected = queue_after([(sum(split),) for split in splits], 7)
    ranks = run_on_two_ranks(queue_after, tmp_path, splits, 7)
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, value in found.items():
            if name not in ("images", "some"):
                assert torch.equal(value, expected[name]), name
    # Each holds a part of the images, and fetches any.
    assert [len(found["images"]) for found in ranks] == [4, 3]
    assert torch.equal(torch.cat([found["images"] for found in ranks]), expected["images"])
    for found, slots in zip(ranks, ([4, 0, 4, 3], [4]), strict=True):
        assert torch.equal(found["some"], expected["images"][slots])
