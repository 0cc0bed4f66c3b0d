"""Losses that run backward one by one: the same gradients, less memory."""

import copy
import dataclasses

import pytest
import torch

from fiber.training.config.tasks import ImageTextTask
from fiber.training.objective_state import Memory
from fiber.training.objectives import Draw, image_text_task, task_losses
from fiber.training.split_backward import Branches
from tests.training.micro_runs import coarse_config
from tests.training.test_objectives import model_and_batches

#: Other weights than 1, so that a loss that runs backward unweighted shows.
WEIGHTS = {"itc": 0.5, "itm": 2.0, "mlm": 3.0}


def weighted(losses):
    return torch.stack([WEIGHTS.get(name, 1.5) * loss for name, loss in losses.items()]).sum()


def backward(losses):
    weighted(losses).backward()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Kept:
    """Counts the bytes that autograd keeps for backward passes: now, and at most so far."""

    def __init__(self):
        self.now = self.most = 0

    def hooks(self):
        counter = self

        class Held:
            def __init__(self, tensor):
                self.tensor = tensor
                counter.now += tensor.nbytes
                counter.most = max(counter.most, counter.now)

            def __del__(self):
                counter.now -= self.tensor.nbytes

        return torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)


def test_by_hand():
    weight = torch.tensor(3.0, requires_grad=True)
    ran = []

    def run(losses):
        ran.extend(losses)
        backward(losses)

    branches = Branches(run)
    shared = branches.share(weight * weight)
    branches.add("itm", 5 * shared)
    branches.add("mlm", shared * shared)
    # Nothing below the cut has run yet.
    assert ran == ["itm", "mlm"] and weight.grad is None
    losses = branches.close()
    assert {name: loss.item() for name, loss in losses.items()} == {"itm": 45.0, "mlm": 81.0}
    assert not any(loss.requires_grad for loss in losses.values())
    # d/dw (2 * 5 w^2 + 3 w^4) = 20 w + 12 w^3
    assert weight.grad.item() == 20 * 3 + 12 * 27


def test_nothing_is_cut_without_a_backward():
    weight = torch.tensor(3.0, requires_grad=True)
    branches = Branches(None)
    tensor = weight * weight
    assert branches.share(tensor) is tensor
    branches.add("itm", 5 * tensor)
    losses = branches.close()
    assert losses["itm"].requires_grad and weight.grad is None


def test_what_no_loss_reads_gets_no_gradient():
    weight = torch.tensor(3.0, requires_grad=True)
    other = torch.tensor(1.0, requires_grad=True)
    branches = Branches(backward)
    branches.share(weight * weight)
    branches.add("mlm", 2 * other)
    branches.close()
    assert weight.grad is None and other.grad.item() == 6


@pytest.fixture(scope="module")
def coarse(pictures):
    config, model, batches = model_and_batches(coarse_config(data__batch_size=6), pictures)
    model = model.double()
    doubled = {
        name: dataclasses.replace(batch, images=batch.images.double())
        for name, batch in batches.items()
    }
    return config, model, doubled


def both_ways(model, batch, task, memories):
    """Losses and gradients of a pass with one backward pass, and with one for each loss."""
    found = []
    for run, memory in zip((None, backward), memories, strict=True):
        model.zero_grad(set_to_none=True)
        losses = image_text_task(model, batch, task, Draw(0, 1), memory.queue, run)
        if run is None:
            backward(losses)
        found.append((losses, gradients(model)))
    return found


def assert_same(found, *, relative):
    """Compare losses and, in parts of the largest one, gradients."""
    (plain, expected), (split, got) = found
    assert plain.keys() == split.keys() and expected.keys() == got.keys()
    for name in plain:
        assert split[name].item() == pytest.approx(plain[name].item(), rel=relative), name
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=relative * largest, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"itm_negatives": "half"},
        {"itm_negatives": "random"},
        {"mlm": 0.0},
        {"itc": 0.0},
        {"itm": 0.0},
        {"itc": 0.0, "mlm": 0.0},
        {"itc": 0.0, "itm": 0.0},
    ],
    ids=str,
)
def test_gradients_are_those_of_one_backward_pass(coarse, changes):
    _, model, batches = coarse
    task = ImageTextTask(share=1, **changes)
    # Float64: sums in another order, and no more.
    assert_same(both_ways(model, batches["image_text"], task, [Memory()] * 2), relative=1e-12)


def test_gradients_beside_a_queue(pictures):
    config, model, batches = model_and_batches(
        coarse_config(
            data__batch_size=6,
            tasks__image_text__itc_form="queue",
            tasks__image_text__queue_length=12,
        ),
        pictures,
    )
    batch, task = batches["image_text"], config.tasks.image_text
    memories = [Memory.of(config, torch.device("cpu"), None) for _ in range(2)]
    for memory in memories:
        # Older pairs, so that negatives are not those of the batch.
        image_text_task(model, batch, task, Draw(0, 0), memory.queue)
    # The queue is float32; a sum of some hundred numbers is exact to some eps = 1.2e-7.
    assert_same(both_ways(model, batch, task, memories), relative=1e-5)


def test_less_is_kept_at_a_time(coarse):
    _, model, batches = coarse
    model, task = copy.deepcopy(model), ImageTextTask(share=1)
    most = []
    for run in (None, backward):
        kept = Kept()
        with kept.hooks():
            losses = image_text_task(model, batches["image_text"], task, Draw(0, 0), None, run)
            if run is None:
                backward(losses)
        del losses
        assert kept.now == 0
        most.append(kept.most)
    # 2B + 3B rows of the fused blocks against 3B of them.
    assert most[1] < 0.75 * most[0]


@pytest.mark.parametrize("name", ["question", "reasoning", "caption", "image_text"])
def test_every_task_runs_backward_when_asked(coarse, name):
    config, model, batches = coarse
    model.zero_grad(set_to_none=True)
    losses = task_losses(name, model, batches[name], config.tasks, Draw(0, 0), backward=backward)
    assert losses.keys() == config.tasks.active()[name].weights().keys()
    assert not any(loss.requires_grad for loss in losses.values())
    got = gradients(model)
    model.zero_grad(set_to_none=True)
    backward(task_losses(name, model, batches[name], config.tasks, Draw(0, 0)))
    assert got.keys() == gradients(model).keys()


def test_bfloat16_passes_run_backward_too(pictures):
    _, model, batches = model_and_batches(coarse_config(data__batch_size=6), pictures)
    found = []
    for run in (None, backward):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = image_text_task(
                model, batches["image_text"], ImageTextTask(share=1), Draw(0, 0), None, run
            )
        if run is None:
            backward(losses)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    norms = [
        torch.cat([gradient.flatten() for gradient in one.values()]).norm().item() for one in found
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
