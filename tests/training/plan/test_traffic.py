"""Bytes of a step against collectives counted with torch's fake process group."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fiber.config_io import replace_fields
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.replicate import Replicate
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from fiber.training.plan.traffic import (
    Traffic,
    gradient_bytes,
    loss_traffic,
    queue_image_bytes,
    queue_pair_bytes,
    shard_bytes,
)
from tests.training.micro_runs import coarse_config
from tests.training.objectives.test_ranking import model_and_batch, ranking, scenes  # noqa: F401  (fixtures)
from tests.training.objectives.test_step import model_and_batches

#: Counts, ids, labels and masks, which the formulas leave out.
SMALL = 0.05
TASKS = {
    "tasks.question.share": 0,
    "tasks.reasoning.share": 0,
    "tasks.caption.share": 0,
    "model.image_text.heads": ("itc", "itm", "mlm"),
}


class Done:
    """The work of a collective that has ended."""

    def wait(self):
        return True


class Counter:
    """Counts the bytes of collectives through rank 0.

    All ranks have its tensors, but rank r asks for rows r batches further on, so that each rank is
    asked for as many rows as it asks for.
    """

    def __init__(self, monkeypatch, ranks):
        self.ranks, self.bytes = ranks, {}
        for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"):
            monkeypatch.setattr(dist, name, getattr(self, name))
        monkeypatch.setattr(dist, "all_to_all_single", self.all_to_all_single)

    def add(self, name, tensor, factor):
        self.bytes[name] = self.bytes.get(name, 0) + factor * tensor.nbytes

    def all_reduce(self, tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
        self.add("all_reduce", tensor, 2 * (self.ranks - 1) / self.ranks)
        if op == dist.ReduceOp.SUM:
            tensor *= self.ranks
        return Done() if async_op else None

    def all_gather_into_tensor(self, gathered, own):
        self.add("all_gather", gathered, (self.ranks - 1) / self.ranks)
        rows = own.reshape(1, -1).expand(self.ranks, -1)
        if own.dtype == torch.int64 and own.numel() > 1:
            total = own.numel() * self.ranks
            moved = rows + own.numel() * torch.arange(self.ranks)[:, None]
            rows = torch.where(rows < total, moved % total, moved)
        gathered.view(self.ranks, -1).copy_(rows)

    def reduce_scatter_tensor(self, own, rows):
        self.add("reduce_scatter", rows, (self.ranks - 1) / self.ranks)
        own.copy_(rows[: len(own)])

    def all_to_all_single(self, received, sent, *sizes):
        self.add("all_to_all", received, 1)
        received.zero_()


@pytest.fixture(params=[2, 64, 1024])
def counter(request, monkeypatch):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield Counter(monkeypatch, request.param)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def image_text(pictures):
    """A model with the heads of the task alone, and a batch of two pairs."""
    config = replace_fields(coarse_config(data__batch_size=2), TASKS)
    config, model, batches = model_and_batches(config, pictures)
    return config, model, batches["image_text"]


def step(config, task, model, batch):
    """Run the passes of one micro-batch."""
    model.zero_grad()
    state = ObjectiveState.of(config, torch.device("cpu"))
    for losses in TrainStep(model, config.tasks, state).branches(task, batch, Draw(0, 0)):
        torch.stack(list(losses.values())).sum().backward(retain_graph=True)


def traffic_of(config, task, batch, ranks):
    whole = replace_fields(config, {"data.batch_size": ranks * len(batch)})
    return loss_traffic(
        whole, task, ranks, batch.token_ids.shape[1], tuple(batch.images.shape[-2:])
    )


def test_a_single_gpu_sends_nothing():
    config = coarse_config()
    assert gradient_bytes(10**6, 1) == 0
    assert shard_bytes(10**6, 10**6, 1, "bfloat16") == 0
    assert loss_traffic(config, "image_text", 1, 16, (64, 64)) == Traffic(0, 0)


def test_replicate_sends_what_its_all_reduce_sends(image_text, counter):
    config, shared, batch = image_text
    # The strategy registers hooks.
    model, ranks = copy.deepcopy(shared), counter.ranks
    strategy = Replicate(Processes(rank=0, world_size=ranks, device=torch.device("cpu")))
    strategy.prepare(TrainStep(model, config.tasks))
    strategy.begin_step("image_text")
    step(config, "image_text", model, batch)
    counter.bytes.clear()
    parameters = list(model.parameters())
    strategy.reduce_gradients()
    trained = sum(p.numel() for p in parameters if p.grad is not None)
    assert trained == sum(p.numel() for p in parameters)
    expected = gradient_bytes(trained, ranks)
    assert expected <= counter.bytes["all_reduce"] <= (1 + SMALL) * expected


def test_shard_gathers_once_and_reduces_once():
    assert shard_bytes(100, 80, 4, "bfloat16") == 0.75 * (2 * 100 + 4 * 80)
    assert shard_bytes(100, 80, 4, "float32") == 0.75 * (4 * 100 + 4 * 80)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"itm_negatives": "half"},
        {"itm_negatives": "random"},
        {"itm": 0.0},
        {"itc": 0.0},
        {"itc": 0.0, "itm": 0.0},
    ],
    ids=str,
)
def test_losses_send_what_is_counted(image_text, counter, changes):
    config, model, batch = image_text
    changes = {f"tasks.image_text.{name}": value for name, value in changes.items()}
    config = replace_fields(config, changes)
    step(config, "image_text", model, batch)
    expected = traffic_of(config, "image_text", batch, counter.ranks)
    counted = counter.bytes
    gathered = counted.get("all_gather", 0) + counted.get("reduce_scatter", 0)
    # Ids of images and texts are gathered once or twice each, for every pair of the batch.
    ids = 8 * 8 * len(batch) * counter.ranks
    assert expected.contrast <= gathered <= expected.contrast + ids
    assert expected.negatives <= counted.get("all_to_all", 0)
    assert counted.get("all_to_all", 0) <= (1 + SMALL) * expected.negatives


def test_a_queue_sends_its_pairs(image_text, counter):
    config, model, batch = image_text
    changes = {
        "tasks.image_text.itc_form": "queue",
        "tasks.image_text.queue_length": 2 * counter.ranks,
    }
    config = replace_fields(config, changes)
    model.train()
    step(config, "image_text", model, batch)
    expected = traffic_of(config, "image_text", batch, counter.ranks)
    images, ring = 2 * queue_image_bytes(config), (counter.ranks - 1) / counter.ranks
    gathered = expected.contrast - ring * images
    assert gathered <= counter.bytes["all_gather"] <= (1 + SMALL) * gathered
    # The images of two pairs, which this rank keeps; all negatives are of the batch.
    assert counter.bytes["all_to_all"] == images
    assert expected.negatives == ring * images
    state = ObjectiveState.of(config, torch.device("cpu"))
    queue = state.trainings["image_text"].queue
    assert queue is not None
    stored = sum(getattr(queue, name).nbytes for name in queue.TENSORS)
    assert queue_pair_bytes(config) * len(queue) - stored == images * counter.ranks
    assert queue.images.nbytes == images


def test_ranking_sends_random_images(model_and_batch, counter):  # noqa: F811
    model, batch = model_and_batch
    step(ranking(), "ranking", model, batch)
    expected = traffic_of(ranking(), "ranking", batch, counter.ranks)
    assert expected.contrast == 0
    assert expected.negatives <= counter.bytes["all_to_all"] <= (1 + SMALL) * expected.negatives
