"""Training on masks, with a small network on generated images."""

import dataclasses
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from fiber.config import preset
from fiber.losses.masks.segmentation import CLASS_NAME_WEIGHT, EXPRESSION_WEIGHT
from fiber.models.abilities import MissingHeadError
from fiber.tasks import find_task
from fiber.tasks.segmentation.fields import SegmentationTask
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ForwardPasses
from tests.losses.two_ranks import run_on_two_ranks
from tests.tasks.mask_stand_ins import NAMES, SMALL, TOKENIZER, batch, segmenter

OPTIONS = SegmentationTask(share=1, sources=("detection",), num_points=64)
#: Rounding of sums in another order; matching may not change.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def training(network, **changes):
    found = find_task("segmentation").trained(dataclasses.replace(OPTIONS, **changes))
    found.read_classes(network, NAMES, TOKENIZER)
    return found


def losses_of(network, task, own, draw=None):
    (losses,) = task.branches(network, own, draw or Draw(seed=3, number=5))
    return losses


@pytest.fixture(scope="module")
def network():
    return segmenter().train()


def test_a_branch_has_all_losses_and_learns(network):
    network, own = segmenter(1).train(), batch(3, (1, 2, 1))
    task = training(network)
    assert task.num_branches(ForwardPasses(1)) == 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    totals = []
    for step in range(8):
        losses = losses_of(network, task, own, Draw(seed=0, number=step))
        assert set(losses) == set(OPTIONS.weights())
        total = sum(OPTIONS.weights()[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        # Heads of captions and search are not trained.
        idle = {n for n, p in network.named_parameters() if p.grad is None}
        assert idle == {
            "image_projection",
            "decoder.caption_positions.weight",
            "decoder.caption_projection",
        }
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-2:]) < 0.95 * sum(totals[:2])


def test_random_numbers_are_those_of_the_step(network):
    own, task = batch(2, (1, 1)), training(network)
    one, again = losses_of(network, task, own), losses_of(network, task, own)
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = losses_of(network, task, own, Draw(seed=3, number=6))
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_class_names_stand_in_for_phrases(network):
    own, task = batch(3, (2, 0, 0)), training(network, max_class_names=2)
    texts = task._step_texts(torch.Generator().manual_seed(0))
    assert len(texts.token_ids) == len(NAMES) + 1
    found = task.phrases_of(own, texts, Draw(seed=0, number=0), torch.arange(3))
    assert found.weights == [EXPRESSION_WEIGHT, CLASS_NAME_WEIGHT, CLASS_NAME_WEIGHT]
    assert found.per_image.tolist() == [len(each) for each in found.masks]
    counts = found.per_image.tolist()
    labels = own.mask_labels.split(own.masks_per_image.tolist())
    at = counts[0]
    assert 1 <= at <= int(own.phrases_per_image[0])
    for row in (1, 2):
        assert counts[row] == min(2, len(labels[row]))
        for number in range(counts[row]):
            mask = found.masks[row][number]
            (label,) = [
                int(each)
                for each, real in zip(labels[row], own.masks_of(row), strict=True)
                if torch.equal(real, mask)
            ]
            ids = found.texts.token_ids[at][found.texts.text_mask[at]]
            wanted = texts.token_ids[label][texts.text_mask[label]]
            assert torch.equal(ids, wanted)
            at += 1
    assert at == len(found.texts.token_ids)


def test_phrases_of_an_image_are_drawn_with_their_masks(network):
    own, task = batch(3, (3, 3, 3)), training(network, max_phrases=2)
    texts = task._step_texts(torch.Generator().manual_seed(0))
    counts = own.phrases_per_image.tolist()
    given = [ids[mask].tolist() for ids, mask in zip(own.phrase_ids, own.phrase_mask, strict=True)]
    seen = set()
    for number in range(30):
        found = task.phrases_of(own, texts, Draw(seed=0, number=number), torch.arange(3))
        drawn = [ids[mask].tolist() for ids, mask in zip(*found.texts, strict=True)]
        for row, count in enumerate(found.per_image.tolist()):
            known = given[sum(counts[:row]) : sum(counts[: row + 1])]
            chosen = [known.index(text) for text in drawn[:count]]
            assert torch.equal(found.masks[row], own.phrase_masks_of(row)[chosen])
            seen.add((row, *chosen))
            drawn = drawn[count:]
        assert not drawn
    # One or two of them, each with and without the others.
    wanted = [
        (row, *chosen)
        for row, count in enumerate(counts)
        for size in (1, 2)
        for chosen in combinations(range(count), size)
    ]
    assert seen == set(wanted) and max(counts) == 3


def test_an_image_without_masks_and_phrases_leaves_out_the_phrases_of_all(network):
    own = batch(2, (1, 1))
    empty = dataclasses.replace(
        own,
        **{name: getattr(own.rows(slice(1)), name) for name in own.ragged},
        masks_per_image=own.masks_per_image * torch.tensor([1, 0]),
        phrases_per_image=own.phrases_per_image * torch.tensor([1, 0]),
    )
    losses = losses_of(network, training(network), empty)
    assert all((losses[name] == 0) == name.startswith("phrase") for name in losses)
    sum(losses.values()).backward()


def test_without_weights_phrases_are_not_read(network):
    weights = dict.fromkeys(("phrase_bce", "phrase_dice", "phrase_alignment"), 0.0)
    losses = losses_of(network, training(network, **weights), batch(2, (0, 0)))
    assert set(losses) == {"mask_class", "mask_bce", "mask_dice"}


def of_a_rank():
    rank = torch.distributed.get_rank()
    network = segmenter()
    own = batch(2, (1, 2, 0, 1), first=2 * rank)
    losses = losses_of(network, training(network), own, Draw(seed=3, number=5, by_row=True))
    sum(losses.values()).backward()
    gradient = network.decoder.queries.weight.grad
    return {name: loss.detach() for name, loss in losses.items()}, gradient


def test_two_ranks_have_the_losses_of_one(tmp_path):
    ranks = run_on_two_ranks(of_a_rank, tmp_path)
    network, own = segmenter(), batch(4, (1, 2, 0, 1))
    losses = losses_of(network, training(network), own, Draw(seed=3, number=5, by_row=True))
    for name, loss in losses.items():
        mean = (ranks[0][0][name] + ranks[1][0][name]) / 2
        torch.testing.assert_close(mean, loss.detach(), **ROUNDING, msg=name)
    sum(losses.values()).backward()
    gradient = (ranks[0][1] + ranks[1][1]) / 2
    torch.testing.assert_close(gradient, network.decoder.queries.weight.grad, rtol=1e-3, atol=1e-4)


def test_the_cost_has_a_gradient(network):
    ids = torch.randint(0, 100, (2, 7))
    (total,) = training(network).cost_passes(
        network, SimpleNamespace(), batch(2, (1, 1)).images, ids, torch.ones_like(ids).bool(), None
    )
    total.backward()


def test_what_cannot_be_trained_is_named():
    task = find_task("segmentation").trained(OPTIONS)
    with pytest.raises(MissingHeadError, match=r"tasks\.segmentation.*'mask'"):
        task.check_model(SimpleNamespace(config=preset("micro")))
    record = SimpleNamespace(key="a", labels=("x",))
    other = SimpleNamespace(key="b", labels=("y",))
    with pytest.raises(ValueError, match=r"'a' and 'b' have different labels"):
        task.check_records("segmentation", [record, other])
    with pytest.raises(ValueError, match=r"the first one, 'c', has none"):
        task.check_records("segmentation", [SimpleNamespace(key="c", labels=())])
    with pytest.raises(ValueError, match=r"the text .* has \d+ tokens; expected at most 30"):
        task.read_classes(segmenter(), ("x" * 90,), TOKENIZER)
    with pytest.raises(RuntimeError, match="read_classes"):
        next(task.branches(segmenter(), batch(1, (1,)), Draw(seed=0, number=0)))


@pytest.mark.parametrize("name", ["num_points", "phrase_layers", "max_phrases", "max_class_names"])
def test_options_out_of_range(name):
    with pytest.raises(ValueError, match=rf"tasks\.segmentation\.{name} .* got 0"):
        dataclasses.replace(OPTIONS, **{name: 0}).check("tasks.segmentation")


def test_the_config_of_the_small_network():
    assert SMALL.heads == ("mask", "caption", "retrieval")
