"""Runs that train several tasks in each step."""

import pytest
import torch

from fiber.training import trainer
from fiber.training.plan.cluster import Cluster, plan_run
from fiber.training.task_loaders import TaskLoaders
from tests.training.micro_runs import coarse_config, run, with_dropout
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

TASKS = ("image_text", "question")
ALONE = {f"tasks__{name}__share": 0 for name in ("image_text", "question", "reasoning", "caption")}
TOGETHER = {
    **ALONE,
    **{f"tasks__{name}__share": 1 for name in TASKS},
    "tasks__together": True,
    "tasks__question__batch_size": 2,
}


@pytest.fixture
def first_gradients(pictures, tmp_path, monkeypatch):
    """Losses and gradients of the first step of a run."""

    def of(name, **changes):
        caught = {}
        real = trainer.clip_gradients

        def clip(parameters, most):
            gradients = enumerate(p.grad for p in parameters)
            caught.update((number, g.clone()) for number, g in gradients if g is not None)
            return real(parameters, most)

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "clip_gradients", clip)
            # As many answers as the data have, so that all runs start from the same weights.
            changes |= {"model__image_text__num_answers": 4, "train__checkpoint_every": 0}
            changes |= {"train__steps": 1, "train__draws": "row"}
            config = with_dropout(coarse_config(**changes))
            finished = run(config, pictures, tmp_path / name)
        return finished.metrics[0]["losses"], caught

    return of


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_gradients_are_the_sum_of_both(first_gradients, accumulation):
    changes = {"train__accumulation": accumulation, "data__batch_size": 8}
    batch_size = 4
    together = TOGETHER | {"tasks__question__batch_size": batch_size}
    losses, gradients = first_gradients("both", **together, **changes)
    expected, sums = {}, {}
    for name in TASKS:
        own = changes | ALONE | {f"tasks__{name}__share": 1}
        if name == "question":
            own["data__batch_size"] = batch_size
        parts, found = first_gradients(name, **own)
        expected |= parts
        for number, gradient in found.items():
            sums[number] = sums[number] + gradient if number in sums else gradient
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses.keys() == {"itc", "itm", "mlm", "vqa"}
    largest = max(gradient.abs().max() for gradient in sums.values())
    assert gradients.keys() == sums.keys()
    for number, gradient in gradients.items():
        torch.testing.assert_close(gradient, sums[number], rtol=0, atol=1e-6 * largest)


def test_a_resumed_run_ends_like_an_undisturbed_one(pictures, tmp_path, monkeypatch):
    config = with_dropout(coarse_config(**TOGETHER, train__steps=5, train__checkpoint_every=2))
    plain = run(config, pictures, tmp_path / "plain")
    with monkeypatch.context() as patch:
        stop_before(patch, 3)
        with pytest.raises(StopError):
            run(config, pictures, tmp_path / "stopped")
    resumed = run(config, pictures, tmp_path / "stopped", resume=True)
    assert numbers(plain.folder) == numbers(resumed.folder)
    assert weights_equal(plain.folder, resumed.folder)
    # Four pairs of captions and two questions a step.
    assert [line["images"] for line in plain.metrics] == [6, 12, 18, 24, 30]


def test_tasks_have_batches_of_their_own(pictures, tmp_path, monkeypatch):
    seen, real = [], TaskLoaders.next_batch

    def next_batch(loaders, task):
        batch = real(loaders, task)
        seen.append((task, len(batch)))
        return batch

    monkeypatch.setattr(TaskLoaders, "next_batch", next_batch)
    changes = ALONE | {"tasks__image_text__share": 1, "tasks__question__share": 1}
    config = coarse_config(**changes, tasks__question__batch_size=2, train__steps=4)
    finished = run(config, pictures, tmp_path / "r")
    assert sorted(seen) == [("image_text", 4)] * 2 + [("question", 2)] * 2
    assert finished.metrics[-1]["images"] == 12


@pytest.mark.slow
def test_a_plan_counts_all_tasks_of_a_step():
    cluster = Cluster(gpus=1)
    of_step = {}
    for name, changes in {
        "both": TOGETHER,
        "image_text": ALONE | {"tasks__image_text__share": 1},
        "question": ALONE | {"tasks__question__share": 1, "data__batch_size": 2},
    }.items():
        of_step[name] = plan_run(coarse_config(**changes), cluster)
    both = of_step.pop("both")
    seconds = [plan.compute_seconds for plan in of_step.values()]
    assert both.compute_seconds == pytest.approx(sum(seconds))
    assert any("image_text 4, question 2" in note for note in both.notes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks__together": True}, r"tasks\.image_text\.share must be 1 with.*got 2"),
        ({"tasks__question__batch_size": -1}, r"tasks\.question\.batch_size.*-1"),
        (
            {"tasks__question__batch_size": 3, "train__accumulation": 2},
            r"tasks\.question\.batch_size 3 is not a multiple of train\.accumulation 2",
        ),
        (
            {"tasks__image_text__batch_size": 1},
            r"tasks\.image_text\.batch_size 1 in 1 micro-batches.*one pair",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        coarse_config(**changes)
