import dataclasses
from pathlib import Path

import pytest
import torch

from fiber.losses.distributed import rank
from fiber.tasks.caption.branches import caption_losses
from fiber.training.checkpoint.files import read_tensors, write_tensors
from fiber.training.config.tasks import CaptionTask, ImageTextTask
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from tests.losses.two_ranks import run_on_ranks
from tests.training.micro_runs import coarse_config, run
from tests.training.objectives.test_step import image_text_losses, model_and_batches
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

pytestmark = pytest.mark.oldest

STATEFUL = {
    "tasks__image_text__itc_form": "queue",
    "tasks__image_text__queue_length": 10,
    "tasks__caption__objective": "gold",
    "tasks__caption__gold_copy_every": 3,
}


@pytest.fixture(scope="module")
def coarse(pictures):
    config, model, batches = model_and_batches(coarse_config(data__batch_size=4), pictures)
    return config, model, batches


def queue_of(state):
    return state.trainings["image_text"].queue


def queue_state(config, length=10):
    task = dataclasses.replace(config.tasks.image_text, itc_form="queue", queue_length=length)
    tasks = dataclasses.replace(config.tasks, image_text=task)
    return task, ObjectiveState.of(dataclasses.replace(config, tasks=tasks), torch.device("cpu"))


def test_most_runs_have_no_state(coarse):
    state = ObjectiveState.of(coarse[0], torch.device("cpu"))
    assert state.trainings["image_text"].queue is state.trainings["caption"].reference is None
    assert state.state_dict() == {}


def test_the_queue_is_written_in_training_mode_only(coarse):
    config, model, batches = coarse
    task, state = queue_state(config)
    batch = batches["image_text"]
    model.eval()
    image_text_losses(model, batch, task, Draw(0, 0), queue_of(state))
    assert queue_of(state).total == 0
    model.train()
    losses = image_text_losses(model, batch, task, Draw(0, 0), queue_of(state))
    assert queue_of(state).total == 4
    assert losses.keys() == {"itc", "itm", "mlm"}
    assert torch.equal(queue_of(state).images[:4], batch.images)
    vectors = model.embed_images(batch.images)
    torch.testing.assert_close(queue_of(state).image_vectors[:4], vectors, rtol=1e-4, atol=1e-6)


def test_an_empty_queue_gives_the_losses_of_the_batch(coarse):
    config, model, batches = coarse
    task, state = queue_state(config)
    queued = image_text_losses(model, batches["image_text"], task, Draw(0, 1), queue_of(state))
    plain_task = dataclasses.replace(task, itc_form="gather")
    plain = image_text_losses(model, batches["image_text"], plain_task, Draw(0, 1))
    for name, loss in plain.items():
        assert queued[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_negatives_of_the_queue_run_through_the_model(coarse):
    config, model, batches = coarse
    task, state = queue_state(config)
    batch = batches["image_text"]
    only_matching = dataclasses.replace(task, itc=0.0, mlm=0.0)
    image_text_losses(model, batch, task, Draw(0, 0), queue_of(state))
    # The same pairs again, as if they were others: negatives may come from the queue.
    other = dataclasses.replace(
        batch, image_ids=batch.image_ids + 1000, token_ids=batch.token_ids.roll(1, 0)
    )
    other = dataclasses.replace(other, text_mask=batch.text_mask.roll(1, 0))
    losses = image_text_losses(model, other, only_matching, Draw(0, 1), queue_of(state))
    assert losses.keys() == {"itm"}
    assert torch.isfinite(losses["itm"])


@pytest.mark.parametrize("itc", [0.0, 1.0], ids=["ITM alone", "with ITC"])
def test_itm_with_random_images(coarse, itc):
    _, model, batches = coarse
    task = ImageTextTask(share=1, itc=itc, mlm=0.0, itm_negatives="random")
    losses = image_text_losses(model, batches["image_text"], task, Draw(0, 0))
    assert losses.keys() == ({"itc", "itm"} if itc else {"itm"})
    again = image_text_losses(model, batches["image_text"], task, Draw(0, 1))
    assert losses["itm"].item() != again["itm"].item()


def test_the_frozen_copy_is_renewed_when_it_is_time(coarse):
    config, model, batches = coarse
    task = CaptionTask(share=1, objective="gold", gold_copy_every=3)
    tasks = dataclasses.replace(config.tasks, caption=task)
    state = ObjectiveState.of(dataclasses.replace(config, tasks=tasks), torch.device("cpu"))
    caption = state.trainings["caption"]
    assert caption.reference is not None
    weight = model.itm_head.weight
    before = weight.detach().clone()
    seen = []
    for step in range(5):
        state.begin_step(step, model.state_dict)
        with torch.no_grad():
            weight.add_(1.0)
        seen.append(round((caption.reference.itm_head.weight - before).mean().item()))
    assert seen == [0, 0, 0, 3, 3]
    losses = TrainStep(model, tasks, state)("caption", batches["caption"], Draw(0, 0))
    losses["caption"].backward()
    assert all(p.grad is None for p in caption.reference.parameters())
    likelihood = next(caption_losses(model, batches["caption"], CaptionTask(share=1), Draw(0, 0)))
    # Every weight is at most 1.
    assert losses["caption"] < likelihood["caption"]


@pytest.mark.slow
def test_a_resumed_run_restores_the_state(pictures, tmp_path, monkeypatch):
    config = coarse_config(**STATEFUL, data__mlm_unit="word", optim__published_coarse=True)
    whole = run(config, pictures, tmp_path / "whole")
    stop_before(monkeypatch, 7)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "parts")
    run(config, pictures, tmp_path / "parts", resume=True)
    assert weights_equal(whole.folder, tmp_path / "parts")
    assert numbers(whole.folder) == numbers(tmp_path / "parts")


@pytest.mark.slow
def test_options_change_what_is_trained(pictures, tmp_path):
    plain = run(coarse_config(), pictures, tmp_path / "plain")
    for name, change in {
        "queue": {"tasks__image_text__itc_form": "queue"},
        "gold": {"tasks__caption__objective": "gold"},
        "words": {"data__mlm_unit": "word"},
        "optimizer": {"optim__published_coarse": True},
    }.items():
        changed = run(coarse_config(**change), pictures, tmp_path / name)
        assert not weights_equal(plain.folder, changed.folder), name


def new_queue():
    """The state of a run with a queue of ten pairs."""
    changes = {name: value for name, value in STATEFUL.items() if "queue" in name or "form" in name}
    return ObjectiveState.of(coarse_config(**changes), torch.device("cpu"))


def named_tensors(state):
    return {f"queue/{name}": tensor for name, tensor in state.state_dict()["queue"].items()}


def write_queue(folder):
    """Enqueue six pairs of each rank in two batches, more than fit; write a checkpoint."""
    state = new_queue()
    queue = state.trainings["image_text"].queue
    for batch in range(2):
        numbers = torch.arange(3) + 10 * rank() + 100 * batch
        images = numbers[:, None, None, None].expand(3, *queue.images.shape[1:]).float()
        vectors = torch.ones(3, queue.image_vectors.shape[1])
        ids = numbers[:, None].expand(3, 5)
        queue.enqueue(vectors, vectors, images, ids, ids >= 0, numbers, numbers)
    write_tensors(named_tensors(state), Path(folder))
    return queue.image_ids


def read_queue(folder):
    """Images of a rank, their slots, and the ids of all slots."""
    state = new_queue()
    targets = named_tensors(state)
    read_tensors(Path(folder), targets)
    state.load_state_dict(
        {"queue": {name.removeprefix("queue/"): value for name, value in targets.items()}}
    )
    queue = state.trainings["image_text"].queue
    return queue.images[:, 0, 0, 0].clone(), queue.image_ids, torch.tensor(queue.pointer)


@pytest.mark.slow
def test_a_queue_is_read_by_another_number_of_ranks(tmp_path):
    """Each rank of two has half of the images, one of three a third."""
    for writers in (1, 2):
        (folder := tmp_path / str(writers)).mkdir()
        arguments = write_queue, tmp_path, str(folder)
        ids = write_queue(folder) if writers == 1 else run_on_ranks(writers, *arguments)[0]
        # With one writer, four slots are empty; with two, the first pair is overwritten.
        assert (ids == 0).sum() == (0 if writers == 2 else 5)
        for readers in (1, 2, 3):
            arguments = read_queue, tmp_path, str(folder)
            ranks = [read_queue(folder)] if readers == 1 else run_on_ranks(readers, *arguments)
            sizes = {1: [10], 2: [5, 5], 3: [4, 4, 2]}[readers]
            assert [len(images) for images, _, _ in ranks] == sizes
            assert torch.equal(torch.cat([images for images, _, _ in ranks]).long(), ids)
            assert all(torch.equal(found, ids) for _, found, _ in ranks)
            assert {int(pointer) for _, _, pointer in ranks} == {6 * writers % 10}
