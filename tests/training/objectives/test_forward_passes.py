"""Losses and gradients of several passes are those of one, with less memory."""

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch

from fiber.data.batch import GroundingBatch
from fiber.losses.itc_queue import PairQueue
from fiber.training.micro_batch import MicroBatches
from fiber.training.objectives import draw
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.objectives.step import TrainStep
from fiber.training.optim import freeze
from tests.training.distributed.strategy_runs import config_of, records_of
from tests.training.micro_runs import coarse_config, fine_config
from tests.training.objectives.test_split_backward import Kept
from tests.training.objectives.test_step import model_and_batches

pytestmark = pytest.mark.oldest

BATCH = 7
#: Relative differences of float64 runs, and of those of the detector, whose anchors, boxes and
#: targets are float32.
LIMIT, GROUNDING_LIMIT = 1e-9, 1e-6


class NoStrategy:
    """A strategy of one process that notes which passes were announced as the last one."""

    def __init__(self):
        self.announced = []

    def begin_backward(self, *, is_last):
        self.announced.append(is_last)


def double(model):
    """In float64, so that a difference is no rounding."""
    return copy.deepcopy(model).double()


def trained(model, config, batch, task, passes, kept=None, *, by_row=False):
    """Losses, gradients and announcements of one micro-batch; `kept` is state of the task."""
    strategy, step = NoStrategy(), TrainStep(model, config.tasks)
    for name, value in (kept or {}).items():
        setattr(step.state.trainings[task], name, value)
    micro = MicroBatches(
        step,
        strategy,
        accumulation=1,
        passes=passes,
        autocast=lambda enabled=True: torch.autocast("cpu", enabled=False),
    )
    torch.manual_seed(0)
    losses = micro.backward(task, batch, Draw(3, 5, by_row), is_last=True)
    named = model.named_parameters()
    return losses, {name: p.grad for name, p in named if p.grad is not None}, strategy.announced


def compare(model, config, batch, task, count, state_of=lambda: None, **options):
    batch = in_double(batch)
    one = trained(double(model), config, batch, task, ForwardPasses(1), state_of(), **options)
    many = trained(double(model), config, batch, task, ForwardPasses(count), state_of(), **options)
    limit = GROUNDING_LIMIT if task == "grounding" else LIMIT
    assert one[0].keys() == many[0].keys()
    for name, loss in one[0].items():
        assert many[0][name].item() == pytest.approx(loss.item(), rel=limit), name
    assert one[1].keys() == many[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    for name, gradient in one[1].items():
        assert (many[1][name] - gradient).abs().max() <= limit * largest, name
    assert many[2][-1], "the last pass is announced"
    assert not any(many[2][:-1])


def in_double(batch):
    changed = {
        name: value.double()
        for name, value in vars(batch).items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    return dataclasses.replace(batch, **changed)


@pytest.fixture(scope="module")
def coarse(pictures):
    return model_and_batches(coarse_config(data__batch_size=BATCH), pictures)


@pytest.fixture(scope="module")
def fine(pictures):
    return model_and_batches(fine_config(data__batch_size=BATCH), pictures)


@pytest.mark.parametrize("count", [2, 3, BATCH])
@pytest.mark.parametrize("task", ["image_text", "question", "reasoning", "caption"])
def test_coarse_tasks(coarse, task, count):
    config, model, batches = coarse
    compare(model, config, batches[task], task, count)


@pytest.mark.parametrize(
    "changes",
    [
        {"itm_negatives": "half"},
        {"itm_negatives": "random"},
        {"itc": 0.0},
        {"itc": 0.0, "itm_negatives": "random"},
        {"mlm": 0.0},
        {"itm": 0.0, "mlm": 0.0},
    ],
)
def test_image_text_losses(coarse, changes):
    config, model, batches = coarse
    changed = {f"tasks__image_text__{name}": value for name, value in changes.items()}
    config = dataclasses.replace(config, tasks=coarse_config(**changed).tasks)
    # Parts of 3 and 4 pairs start at an even and at an odd one.
    for count in (2, 3):
        compare(model, config, batches["image_text"], "image_text", count)


@pytest.mark.parametrize(
    "frozen", ["backbone.image.*", "backbone.text.*", "backbone.*", "backbone.image.patch*"]
)
def test_frozen_parts(coarse, frozen):
    config, model, batches = coarse
    model = copy.deepcopy(model)
    freeze(model, (frozen,))
    compare(model, config, batches["image_text"], "image_text", 3)


def test_images_and_texts_that_are_equal(coarse):
    """Pairs without a negative are not counted."""
    config, model, batches = coarse
    batch = batches["image_text"]
    batch = dataclasses.replace(batch, image_ids=torch.zeros_like(batch.image_ids))
    batch.image_ids[0] = 1
    for negatives in ("both", "half", "random"):
        tasks = coarse_config(tasks__image_text__itm_negatives=negatives).tasks
        compare(model, dataclasses.replace(config, tasks=tasks), batch, "image_text", 3)


def test_a_queue(coarse):
    config, model, batches = coarse
    tasks = coarse_config(tasks__image_text__itc_form="queue").tasks
    config, batch = dataclasses.replace(config, tasks=tasks), in_double(batches["image_text"])
    queue = PairQueue(
        16,
        width=config.model.roberta.width,
        image_size=batch.images.shape[-2:],
        max_tokens=config.model.max_tokens,
    )
    for name in ("image_vectors", "text_vectors", "images"):
        setattr(queue, name, getattr(queue, name).double())
    trained(double(model), config, batch, "image_text", ForwardPasses(1), {"queue": queue})
    assert queue.written == BATCH
    queues = []

    def copied():
        queues.append(copy.deepcopy(queue))
        return {"queue": queues[-1]}

    compare(model, config, batch, "image_text", 3, copied)
    one, many = queues
    assert many.written == 2 * BATCH
    assert torch.allclose(one.image_vectors, many.image_vectors, rtol=LIMIT, atol=LIMIT)
    assert torch.equal(one.token_ids, many.token_ids)


def test_gold(coarse):
    config, model, batches = coarse
    for divisor in ("tokens", "padding"):
        tasks = coarse_config(
            tasks__caption__objective="gold", tasks__caption__gold_divisor=divisor
        ).tasks
        compare(
            model,
            dataclasses.replace(config, tasks=tasks),
            batches["caption"],
            "caption",
            3,
            lambda: {"reference": double(model).eval()},
        )


@pytest.mark.parametrize("count", [2, BATCH])
def test_grounding(fine, count):
    config, model, batches = fine
    assert batches["grounding"].boxes_per_image.tolist() == [1] * BATCH
    compare(model, config, batches["grounding"], "grounding", count)


def test_grounding_of_images_of_other_sizes_and_without_boxes(fine):
    config, model, batches = fine
    batch = batches["grounding"]
    sizes, counts = batch.image_sizes.clone(), batch.boxes_per_image.clone()
    sizes[2], counts[1] = torch.tensor([32, 64]), 0
    counts[5] = 2
    batch = dataclasses.replace(batch, image_sizes=sizes, boxes_per_image=counts)
    compare(model, config, batch, "grounding", 3)
    with torch.no_grad():
        output = model(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
    anchors, inside = model.locations(batch.images, batch.image_sizes)
    assert all(map(torch.equal, anchors, output.anchors))
    assert torch.equal(inside, output.inside)


@pytest.mark.parametrize("task", ["image_text", "question", "reasoning", "entailment", "ranking"])
def test_meter(pictures, task):
    config = config_of("meter", data__batch_size=BATCH)
    config, model, batches = model_and_batches(config, pictures, records_of("meter", pictures))
    compare(model, config, batches[task], task, 3)


#: Every random layer.
DROPOUT = {"model__roberta__dropout": 0.1, "model__swin__drop_path": 0.3}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", ["image_text", "question", "reasoning", "caption"])
def test_dropout_by_row(pictures, task, checkpointing):
    config = coarse_config(
        data__batch_size=BATCH, **DROPOUT, tasks__image_text__itm_negatives="half"
    )
    config, model, batches = model_and_batches(config, pictures)
    model.backbone.gradient_checkpointing = checkpointing
    compare(model, config, batches[task], task, 3, by_row=True)
    # There is dropout, and it is not that of another step.
    batch = batches[task]
    losses = [
        TrainStep(model, config.tasks)(task, batch, Draw(3, number, True)) for number in (5, 6)
    ]
    assert all(losses[0][name] != losses[1][name] for name in losses[0])


@pytest.mark.parametrize("negatives", ["both", "half", "random"])
def test_no_two_pairs_share_random_numbers(coarse, monkeypatch, negatives):
    _, model, batches = coarse
    seen = []

    @contextmanager
    def by_row(key, rows, *, is_repeated=False):
        seen.extend((*key, row) for row in rows.tolist())
        yield

    monkeypatch.setattr(draw, "by_row", by_row)
    tasks = coarse_config(tasks__image_text__itm_negatives=negatives).tasks
    TrainStep(model, tasks)("image_text", batches["image_text"], Draw(3, 5, True))
    assert len(set(seen)) == len(seen)
    # Image, text, both alone, MLM, and the pairs of ITM.
    pairs = {"both": 3, "half": 2, "random": 1}[negatives]
    assert len(seen) == (5 + pairs) * BATCH


def test_dropout_by_row_of_the_detector(pictures):
    changes = {"model__detector__drop_block": True}
    config = fine_config(data__batch_size=BATCH, **DROPOUT, **changes)
    config, model, batches = model_and_batches(config, pictures)
    batch = batches["grounding"]
    sizes = batch.image_sizes.clone()
    for mixed in (False, True):
        if mixed:
            sizes[2:4] = torch.tensor([32, 64])
        batch = dataclasses.replace(batch, image_sizes=sizes)
        compare(model, config, batch, "grounding", 3, by_row=True)


@pytest.mark.parametrize("task", ["image_text", "reasoning", "ranking"])
def test_dropout_by_row_of_meter(pictures, task):
    changes = {"model__cross__dropout": 0.1, "model__roberta__dropout": 0.1}
    config = config_of("meter", data__batch_size=BATCH, **changes)
    config, model, batches = model_and_batches(config, pictures, records_of("meter", pictures))
    compare(model, config, batches[task], task, 3, by_row=True)


def test_less_is_kept_at_a_time(coarse):
    config, model, batches = coarse
    kept = {}
    for count in (1, BATCH):
        counter = Kept()
        with counter.hooks():
            trained(
                copy.deepcopy(model),
                config,
                batches["image_text"],
                "image_text",
                ForwardPasses(count),
            )
        kept[count] = counter.most
    # Parameters and images are kept in any case.
    assert kept[BATCH] < kept[1] / 2


def test_parts():
    assert [ForwardPasses.of(7, limit).count for limit in (0, 1, 2, 3, 4, 7, 8)] == [
        1,
        7,
        4,
        3,
        2,
        1,
        1,
    ]
    assert [(rows.start, rows.stop) for rows in ForwardPasses(3).slices(7)] == [
        (0, 2),
        (2, 4),
        (4, 7),
    ]
    # A rank whose samples were skipped may have less of them than parts.
    assert [rows.stop - rows.start for rows in ForwardPasses(3).slices(2)] == [0, 1, 1]


def test_rows_of_a_batch(fine):
    batch = fine[2]["grounding"]
    counts = torch.tensor([1, 0, 2, 0, 1, 2, 1])
    batch = dataclasses.replace(batch, boxes_per_image=counts)
    parts = list(ForwardPasses(3).batches(batch))
    assert [len(part) for part in parts] == [2, 2, 3]
    assert [part.boxes_per_image.tolist() for part in parts] == [[1, 0], [2, 0], [1, 2, 1]]
    assert torch.equal(torch.cat([part.boxes_xyxy for part in parts]), batch.boxes_xyxy)
    assert torch.equal(torch.cat([part.positive_map for part in parts]), batch.positive_map)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert sum((part.keys for part in parts), ()) == batch.keys
    assert isinstance(parts[0], GroundingBatch)
    assert len(batch.rows(slice(3, 3)).boxes_xyxy) == 0
