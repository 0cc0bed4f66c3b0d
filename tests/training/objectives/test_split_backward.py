"""Branches that run backward one by one: the same gradients, less memory."""

import copy
import dataclasses

import pytest
import torch

from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from tests.training.micro_runs import coarse_config
from tests.training.objectives.test_step import model_and_batches

pytestmark = pytest.mark.oldest

#: Other weights than 1, so that a loss that runs backward unweighted shows.
WEIGHTS = {"itc": 0.5, "itm": 2.0, "mlm": 3.0}


def weighted(losses):
    return torch.stack([WEIGHTS.get(name, 1.5) * loss for name, loss in losses.items()]).sum()


def split_backward(step, task, batch, draw):
    """Run every branch backward before the next one is computed, as the trainer does."""
    split, found = SplitGraph(), {}
    for losses in step.branches(task, batch, draw, split):
        weighted(losses).backward()
        found |= {name: loss.detach() for name, loss in losses.items()}
    split.backward()
    return found


def one_backward(step, task, batch, draw):
    """Run all losses backward together."""
    losses = step(task, batch, draw)
    weighted(losses).backward()
    return {name: loss.detach() for name, loss in losses.items()}


WAYS = (one_backward, split_backward)


def step_of(model, task, queue=None):
    step = TrainStep(model, TasksConfig(image_text=task))
    step.state.trainings["image_text"].queue = queue
    return step


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
    split = SplitGraph()
    shared = split.cut(weight * weight)
    assert shared.is_leaf and shared.item() == 9.0
    (2.0 * 5 * shared).backward()
    (3.0 * shared * shared).backward()
    # Nothing below the cut has run yet.
    assert weight.grad is None
    split.backward()
    # d/dw (2 * 5 w^2 + 3 w^4) = 20 w + 12 w^3
    assert weight.grad.item() == 20 * 3 + 12 * 27
    # Once and no more.
    split.backward()
    assert weight.grad.item() == 20 * 3 + 12 * 27


def test_a_tensor_without_gradient_is_not_cut():
    tensor = torch.tensor(3.0)
    split = SplitGraph()
    assert split.cut(tensor) is tensor
    with torch.no_grad():
        tensor = torch.tensor(3.0, requires_grad=True) * 2
    assert split.cut(tensor) is tensor
    split.backward()


def test_a_cut_that_no_loss_reads_gets_no_gradient():
    weight = torch.tensor(3.0, requires_grad=True)
    other = torch.tensor(1.0, requires_grad=True)
    split = SplitGraph()
    split.cut(weight * weight)
    (6 * other).backward()
    split.backward()
    assert weight.grad is None and other.grad.item() == 6


def test_forward_leaves_one_graph(coarse):
    _, model, batches = coarse
    model.zero_grad(set_to_none=True)
    losses = step_of(model, ImageTextTask(share=1))("image_text", batches["image_text"], Draw(0, 1))
    assert all(loss.requires_grad for loss in losses.values())
    assert gradients(model) == {}
    weighted(losses).backward()
    assert gradients(model)


def test_parameters_are_those_of_the_model(pictures):
    config, model, _ = model_and_batches(
        coarse_config(
            data__batch_size=6,
            tasks__image_text__itc_form="queue",
            tasks__caption__objective="gold",
        ),
        pictures,
    )
    state = ObjectiveState.of(config, torch.device("cpu"))
    step = TrainStep(model, config.tasks, state)
    assert state.trainings["image_text"].queue is not None
    assert state.trainings["caption"].reference is not None
    assert [f"model.{name}" for name in model.state_dict()] == list(step.state_dict())
    assert list(step.parameters()) == list(model.parameters())


@pytest.fixture(scope="module")
def coarse(pictures):
    config, model, batches = model_and_batches(coarse_config(data__batch_size=6), pictures)
    model = model.double()
    doubled = {
        name: dataclasses.replace(batch, images=batch.images.double())
        for name, batch in batches.items()
    }
    return config, model, doubled


def both_ways(model, batch, task, queues):
    """Losses and gradients with one backward pass, and with one for each branch."""
    found = []
    for run, queue in zip(WAYS, queues, strict=True):
        model.zero_grad(set_to_none=True)
        losses = run(step_of(model, task, queue), "image_text", batch, Draw(0, 1))
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
    assert_same(both_ways(model, batches["image_text"], task, [None] * 2), relative=1e-12)


def test_gradients_with_a_queue(pictures):
    config, model, batches = model_and_batches(
        coarse_config(
            data__batch_size=6,
            tasks__image_text__itc_form="queue",
            tasks__image_text__queue_length=12,
        ),
        pictures,
    )
    batch, task = batches["image_text"], config.tasks.image_text
    states = [ObjectiveState.of(config, torch.device("cpu")) for _ in range(2)]
    queues = [state.trainings["image_text"].queue for state in states]
    for queue in queues:
        # Older pairs, so that negatives are not those of the batch.
        step_of(model, task, queue)("image_text", batch, Draw(0, 0))
    # The queue is float32; a sum of some hundred numbers is exact to some eps = 1.2e-7.
    assert_same(both_ways(model, batch, task, queues), relative=1e-5)
    assert [queue.total for queue in queues] == [12, 12]


def test_less_is_kept_at_a_time(coarse):
    _, model, batches = coarse
    model, task = copy.deepcopy(model), ImageTextTask(share=1)
    most = []
    for run in WAYS:
        kept = Kept()
        with kept.hooks():
            run(step_of(model, task), "image_text", batches["image_text"], Draw(0, 0))
        assert kept.now == 0
        most.append(kept.most)
    # 2B + 3B rows of the fused blocks against 3B of them.
    assert most[1] < 0.75 * most[0]


@pytest.mark.parametrize("name", ["question", "reasoning", "caption", "image_text"])
def test_every_task_has_branches(coarse, name):
    config, model, batches = coarse
    step, got = TrainStep(model, config.tasks), []
    for run in WAYS:
        model.zero_grad(set_to_none=True)
        losses = run(step, name, batches[name], Draw(0, 0))
        assert losses.keys() == config.tasks.active()[name].weights().keys()
        got.append(gradients(model))
    assert got[0].keys() == got[1].keys()


def test_bfloat16(pictures):
    _, model, batches = model_and_batches(coarse_config(data__batch_size=6), pictures)
    found = []
    step = step_of(model, ImageTextTask(share=1))
    for run in WAYS:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            run(step, "image_text", batches["image_text"], Draw(0, 0))
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    norms = [
        torch.cat([gradient.flatten() for gradient in one.values()]).norm().item() for one in found
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
