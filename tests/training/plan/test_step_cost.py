"""Counts on fake tensors against real training steps of the same shapes."""

import dataclasses
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fiber import kernels
from fiber.kernels.cross_attention import naive as naive_cross
from fiber.kernels.window_attention import torch_path
from fiber.kernels.window_attention.window_spec import WindowSpec
from fiber.training.config.run import load_recipe
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from fiber.training.plan import step_cost
from fiber.training.plan.step_cost import (
    SavedTensors,
    StepFlops,
    TextShape,
    count_step,
    is_counted,
    kernel_flops,
    largest_image,
)
from tests.training.micro_runs import coarse_config, fine_config, with_dropout
from tests.training.objectives.test_ranking import model_and_batch, ranking, scenes  # noqa: F401  (fixtures)
from tests.training.objectives.test_step import model_and_batches

#: Losses compute similarities and targets, which are not counted: the real steps of these micro
#: models, whose encoders are small, take at most this much more.
LOSSES = 0.02
#: The same of the tensors that losses save.
SAVED = 0.12


def measure(model, config, task, batch):
    """Run a real step; return its FLOPs and the peak of the tensors that it saved."""
    model.train()
    model.backbone.gradient_checkpointing = config.train.gradient_checkpointing
    state = ObjectiveState.of(config, torch.device("cpu"))
    step = TrainStep(model, config.tasks, state)
    saved, split = SavedTensors(model), SplitGraph()
    counter = FlopCounterMode(display=False, custom_mapping=kernel_flops())
    with saved.hooks(), counter:
        for losses in step.branches(task, batch, Draw(0, 0), split):
            torch.stack(list(losses.values())).sum().backward()
        split.backward()
    return counter.get_total_flops(), saved.peak_bytes


def with_masked(batch, probability):
    """Select as many tokens for MLM as are counted, which are a random number otherwise."""
    labels = torch.full_like(batch.token_ids, -100).flatten()
    labels[: round(probability * labels.numel())] = 7
    return dataclasses.replace(batch, mlm_labels=labels.view_as(batch.token_ids))


def check(config, task, model, batch):
    """Compare a real step with its count."""
    if task == "image_text":
        batch = with_masked(batch, config.data.mlm_probability)
    flops, saved = measure(model, config, task, batch)
    shape = TextShape(len(batch), batch.token_ids.shape[1])
    counted = count_step(config, task, shape, tuple(batch.images.shape[-2:]))
    assert counted.flops <= flops <= counted.flops * (1 + LOSSES), flops / counted.flops
    assert counted.activation_bytes <= saved <= counted.activation_bytes * (1 + SAVED), (
        saved / counted.activation_bytes
    )


@pytest.mark.parametrize(
    "task",
    [
        *("image_text", "question"),
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("reasoning", "caption")),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_coarse_tasks(pictures, task, checkpointing):
    config = coarse_config(data__batch_size=4, train__gradient_checkpointing=checkpointing)
    config, model, batches = model_and_batches(config, pictures)
    check(config, task, model, batches[task])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"itm_negatives": "half"},
        {"itm_negatives": "random"},
        {"itm": 0.0},
        {"itc": 0.0},
        {"mlm": 0.0},
        {"mlm": 0.0, "itc": 0.0, "itm_negatives": "random"},
        {"itc": 0.0, "itm": 0.0},
    ],
    ids=str,
)
def test_parts_of_the_image_text_task(pictures, changes):
    changes = {f"tasks__image_text__{name}": value for name, value in changes.items()}
    config, model, batches = model_and_batches(coarse_config(**changes), pictures)
    check(config, "image_text", model, batches["image_text"])


@pytest.mark.slow
def test_grounding(pictures):
    config, model, batches = model_and_batches(fine_config(), pictures)
    check(config, "grounding", model, batches["grounding"])


def test_frozen_parts_have_no_backward_pass(pictures):
    config = coarse_config(optim__frozen=("backbone.image",))
    full = count_step(coarse_config(), "question", TextShape(2, 8), (64, 64))
    frozen = count_step(config, "question", TextShape(2, 8), (64, 64))
    assert frozen.flops < 0.8 * full.flops
    assert frozen.activation_bytes < full.activation_bytes


@pytest.mark.slow
def test_bfloat16_saves_less():
    """Of each sample; casts of the weights, which do not depend on samples, come on top."""

    def of_sample(precision):
        config = coarse_config(train__precision=precision)
        two, six = (count_step(config, "question", TextShape(n, 8), (64, 64)) for n in (2, 6))
        assert six.flops == 3 * two.flops
        return six.flops, (six.activation_bytes - two.activation_bytes) / 4

    single, half = of_sample("float32"), of_sample("bfloat16")
    assert half[0] == single[0]
    assert 0.5 < half[1] / single[1] < 0.9


@pytest.mark.slow
def test_image_text_with_a_queue(pictures):
    """Also a queue that is not full yet: all negatives are encoded again."""
    config = coarse_config(tasks__image_text__itc_form="queue", tasks__image_text__queue_length=12)
    config, model, batches = model_and_batches(config, pictures)
    check(config, "image_text", model, batches["image_text"])


@pytest.mark.slow
def test_gold(pictures):
    config = coarse_config(tasks__caption__objective="gold")
    config, model, batches = model_and_batches(config, pictures)
    check(config, "caption", model, batches["caption"])


@pytest.mark.slow
def test_ranking(model_and_batch):  # noqa: F811
    model, batch = model_and_batch
    check(ranking(), "ranking", model, batch)


@pytest.mark.slow
def test_flops_of_any_length_lie_on_a_parabola():
    config = coarse_config()
    flops = StepFlops(config)
    for task in config.tasks.active():
        for tokens in (3, 7, 11, config.model.max_tokens):
            exact = (
                count_step(config, task, TextShape(4, tokens), largest_image(config, task)).flops
                / 4
            )
            # The number of masked tokens is rounded.
            assert flops.of_sample(task, tokens) == pytest.approx(exact, rel=2e-3), (task, tokens)


def test_counting_leaves_the_random_state_alone():
    config = with_dropout(coarse_config())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    count_step(config, "question", TextShape(2, 8), (64, 64))
    assert torch.equal(torch.get_rng_state(), before)


def test_all_tasks_can_be_counted_at_once(monkeypatch):
    config = coarse_config(
        tasks__caption__objective="cider",
        tasks__image_text__share=0,
        tasks__reasoning__share=0,
    )
    flops = StepFlops(config)
    flops.count_tasks()
    monkeypatch.setattr(step_cost, "count_step", None)
    assert flops.of_sample("question", 9) > 0
    with pytest.raises(TypeError):
        flops.of_sample("caption", 9)


def test_flops_of_a_batch_are_those_of_its_samples():
    flops = StepFlops(coarse_config())
    batch = types.SimpleNamespace(token_ids=torch.zeros(6, 9))
    assert flops.of_batch("question", batch) == 6 * flops.of_sample("question", 9)


def test_what_depends_on_values_is_not_counted():
    assert is_counted(load_recipe("vqav2"), "question")
    assert not is_counted(load_recipe("coco_detection"), "grounding")
    assert not is_counted(load_recipe("caption_coco_cider"), "caption")
    config = load_recipe("coco_detection")
    batch = types.SimpleNamespace(token_ids=torch.zeros(6, 9))
    assert StepFlops(config).of_batch("grounding", batch) is None


def test_the_largest_image_is_padded():
    assert largest_image(coarse_config(), "image_text") == (64, 64)
    assert largest_image(load_recipe("coco_detection"), "grounding") == (800, 1344)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (3, 9)])
@pytest.mark.parametrize("shift", [0, 1])
def test_flops_of_window_attention_are_those_of_plain_pytorch(size, shift):
    qkv = torch.rand(2, *size, 3, 2, 8, requires_grad=True)
    table, bias = torch.rand(25, 2), torch.rand(3, 2, 8)
    with FlopCounterMode(display=False) as plain, torch.no_grad():
        torch_path.forward(qkv, table, bias, WindowSpec(3, shift, None))
    with FlopCounterMode(display=False, custom_mapping=kernel_flops()) as ours:
        read = kernels.window_attention(qkv, table, bias, window_size=3, shift=shift)
    forward = ours.get_total_flops()
    assert forward == plain.get_total_flops() > 0
    with FlopCounterMode(display=False, custom_mapping=kernel_flops()) as backward:
        read.sum().backward()
    assert backward.get_total_flops() == 2 * forward


def test_flops_of_cross_attention_are_those_of_its_definition():
    query = torch.rand(2, 7, 2, 8, requires_grad=True)
    keys, values = torch.rand(2, 5, 2, 8), torch.rand(2, 5, 2, 8)
    with FlopCounterMode(display=False) as naive:
        naive_cross.attention(query, keys, values, torch.ones(2, 5, dtype=torch.bool))
    with FlopCounterMode(display=False, custom_mapping=kernel_flops()) as ours:
        read = kernels.image_to_text_attention(query, keys, values)
    forward = ours.get_total_flops()
    assert forward == naive.get_total_flops() > 0
    with FlopCounterMode(display=False, custom_mapping=kernel_flops()) as backward:
        read.sum().backward()
    assert backward.get_total_flops() == 2 * forward
