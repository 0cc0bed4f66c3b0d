import dataclasses

import pytest
import torch
import torch.distributed as dist

from fiber.data.batch import ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.losses.itc import itc_loss, text_fingerprints
from fiber.losses.itm import half_of_negatives, hard_negatives, itm_loss
from fiber.losses.mlm import mlm_loss
from fiber.models.registry import build_model
from fiber.tasks.image_text import train as image_text_train
from fiber.training.config.tasks import ImageTextTask, TasksConfig
from fiber.training.data import open_data
from fiber.training.distributed.processes import joined
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.state import ObjectiveState
from fiber.training.objectives.step import TrainStep
from fiber.training.task_loaders import TaskLoaders
from tests.losses.two_ranks import run_on_two_ranks
from tests.training.micro_runs import all_records, coarse_config, fine_config

pytestmark = pytest.mark.oldest


def model_and_batches(config, pictures, records=None):
    """A new model and the first batch of every task of a configuration."""
    records = records or all_records(pictures)
    data = {name: records[name] for name in config.tasks.active()}
    source = open_data(config, data, tokenizer=pictures / "tokenizer.json")
    config = source.fit_model(config)
    torch.manual_seed(0)
    model = build_model(config.model)
    with joined("cpu") as processes:
        streams = TaskLoaders(config, source, processes, consumed={}, threads=1)
        return config, model, {name: streams.next_batch(name) for name in data}


def image_text_losses(model, batch, task, draw, queue=None):
    """Losses of the image-text task with one graph."""
    step = TrainStep(model, TasksConfig(image_text=task))
    step.state.trainings["image_text"].queue = queue
    return step("image_text", batch, draw)


@pytest.fixture(scope="module")
def coarse(pictures):
    return model_and_batches(coarse_config(data__batch_size=6), pictures)


def test_a_loss_that_the_options_do_not_have_is_named(coarse, monkeypatch):
    config, model, batches = coarse
    step = TrainStep(model, config.tasks)
    question = step.state.trainings["question"]
    monkeypatch.setattr(question, "branches", lambda *_: iter([{"vqa": 0.0}, {"color": 0.0}]))
    with pytest.raises(ValueError, match=r"task 'question' .* 'color'.* QuestionTask .*vqa"):
        step("question", batches["question"], Draw(0, 0))


@pytest.mark.parametrize(("start", "kept"), [(1.5, 1.0), (0.2, 0.2), (-1.0, 0.001)])
def test_the_temperature_is_clamped_after_a_step(coarse, start, kept):
    config, model, _ = coarse
    before = model.temperature.item()
    with torch.no_grad():
        model.temperature.fill_(start)
    TrainStep(model, config.tasks).clamp_parameters()
    assert model.temperature.item() == pytest.approx(kept)
    with torch.no_grad():
        model.temperature.fill_(before)


def test_a_model_without_contrast_has_nothing_to_clamp(pictures):
    config, model, _ = model_and_batches(fine_config(), pictures)
    TrainStep(model, config.tasks).clamp_parameters()


def test_shared_prefixes_give_the_losses_of_plain_passes(coarse):
    _, model, batches = coarse
    batch, draw = batches["image_text"], Draw(3, 5)
    shared = image_text_losses(model, batch, ImageTextTask(share=1), draw)

    masked = model.backbone.encode_pair(batch.images, batch.masked_ids, batch.text_mask)
    mlm = mlm_loss(model.mlm_logits(masked.text), batch.mlm_labels)
    itc, similarities = itc_loss(
        model.embed_images(batch.images),
        model.embed_texts(batch.token_ids, batch.text_mask),
        model.temperature,
        batch.image_ids,
        text_fingerprints(batch.token_ids, batch.text_mask),
    )
    chosen = hard_negatives(similarities, seed=3, step=5)
    own = torch.arange(6)
    images = batch.images[torch.cat([own, own, chosen.image_index])]
    texts = torch.cat([own, chosen.text_index, own])
    pairs = model.backbone.encode_pair(images, batch.token_ids[texts], batch.text_mask[texts])
    itm = itm_loss(model.itm_logits(model.pooled(pairs)), 6, chosen)

    assert shared.keys() == {"itc", "itm", "mlm"}
    for name, plain in {"itc": itc, "itm": itm, "mlm": mlm}.items():
        assert shared[name].item() == pytest.approx(plain.item(), rel=1e-5), name


def test_negatives_are_resampled_for_every_micro_batch(coarse):
    _, model, batches = coarse
    task = ImageTextTask(share=1, mlm=0.0)
    first, again, later = (
        image_text_losses(model, batches["image_text"], task, Draw(0, number))["itm"].item()
        for number in (0, 0, 1)
    )
    assert first == again != later


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"itm": 0.0, "mlm": 0.0}, {"itc"}),
        ({"itc": 0.0, "itm": 0.0}, {"mlm"}),
        ({"itc": 0.0, "mlm": 0.0}, {"itm"}),
    ],
    ids=["ITC alone", "MLM alone", "ITM alone"],
)
def test_loss_without_weight_is_not_computed(coarse, weights, expected):
    _, model, batches = coarse
    losses = image_text_losses(
        model, batches["image_text"], ImageTextTask(share=1, **weights), Draw(0, 0)
    )
    assert losses.keys() == expected
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    assert (model.itc_text_transform.weight.grad is not None) == ("itc" in expected)


def test_half_of_the_negatives_by_hand():
    # Pairs: 0-2 true, 3-5 wrong texts, 6-8 wrong pictures.
    assert half_of_negatives(3, 0).tolist() == [0, 1, 2, 3, 7, 5]
    # The same rows as one process with the whole batch chooses for its rows 3 to 5.
    assert half_of_negatives(3, 3).tolist() == [0, 1, 2, 6, 4, 8]
    assert half_of_negatives(0, 0).tolist() == []


def test_statements_see_left_and_right_as_two_passes_would(coarse):
    _, model, batches = coarse
    batch = batches["reasoning"]
    left, right = (
        model.pooled(
            model.backbone.encode_pair(batch.images[:, side], batch.token_ids, batch.text_mask)
        )
        for side in (0, 1)
    )
    plain = model.nlvr2_logits(left, right)
    torch.testing.assert_close(
        model.statement_logits(batch.images, batch.token_ids, batch.text_mask),
        plain,
        rtol=1e-4,
        atol=1e-6,
    )
    swapped = dataclasses.replace(batch, images=batch.images.flip(1))
    assert not torch.allclose(
        model.statement_logits(swapped.images, swapped.token_ids, swapped.text_mask),
        plain,
        rtol=1e-3,
    )


@pytest.mark.parametrize("build", [coarse_config, fine_config], ids=["coarse", "fine"])
def test_every_parameter_learns_from_some_task(pictures, build):
    config, model, batches = model_and_batches(build(), pictures)
    step = TrainStep(model, config.tasks)
    for number, (name, batch) in enumerate(batches.items()):
        losses = step(name, batch, Draw(0, number))
        weights = config.tasks.active()[name].weights()
        assert losses.keys() == {loss for loss, weight in weights.items() if weight}
        sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize("form", ["gather", "queue"])
@pytest.mark.parametrize(
    "texts",
    [["", "", "", ""], ["", "<pad>", "<s></s>", "<mask>"], ["", "a red square", "<pad>", ""]],
    ids=["all empty", "special tokens", "some empty"],
)
def test_captions_without_words_train_to_finite_losses(pictures, texts, form, monkeypatch):
    """Empty captions are alike, so they are no negatives of one another, and no word is picked."""
    # Records that are all alike are refused, but a batch of others may be.
    monkeypatch.setattr(image_text_train, "check_negatives", lambda *given: None)
    config = coarse_config(tasks__image_text__itc_form=form)
    records = all_records(pictures)
    for name in ("image_text", "caption"):
        named = zip(records[name], texts, strict=False)
        records[name] = [dataclasses.replace(record, text=text) for record, text in named]
    data = {name: records[name] for name in config.tasks.active()}
    source = open_data(config, data, tokenizer=pictures / "tokenizer.json")
    config = source.fit_model(config)
    torch.manual_seed(0)
    model = build_model(config.model)
    step = TrainStep(model, config.tasks, ObjectiveState.of(config, torch.device("cpu")))
    with joined("cpu") as processes:
        streams = TaskLoaders(config, source, processes, consumed={}, threads=1)
        for number in range(2):
            for name in ("image_text", "caption"):
                batch = streams.next_batch(name)
                draw = Draw(0, number)
                losses = step(name, batch, draw)
                sum(losses.values()).backward()
                assert all(torch.isfinite(loss) for loss in losses.values()), losses
                if name == "image_text" and not any(texts):
                    assert losses["itc"] == losses["mlm"] == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def small_batch(name, rows):
    """The first rows of a batch of three for the micro preset, every task's own kind."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (3, 6), generator=draws)
    ids[:, 0], ids[:, -1] = 0, 2
    shared = {
        "keys": ("a", "b", "c")[:rows],
        "image_sizes": torch.full((rows, 2), 64),
        "original_sizes": torch.full((rows, 2), 64),
        "token_ids": ids[:rows],
        "text_mask": torch.ones(rows, 6, dtype=torch.bool),
    }
    pictures = torch.randn(3, 2, 3, 64, 64, generator=draws)[:rows]
    if name == "question":
        targets = torch.rand(3, 16, generator=draws)[:rows]
        return QuestionBatch(images=pictures[:, 0], targets=targets, **shared)
    if name == "reasoning":
        return ReasoningBatch(images=pictures, truths=torch.tensor([1, 0, 1])[:rows], **shared)
    labels = torch.full((3, 6), -100)
    labels[:, 2] = ids[:, 2]
    return ImageTextBatch(
        images=pictures[:, 0],
        image_ids=torch.arange(3)[:rows],
        masked_ids=ids.clone()[:rows],
        mlm_labels=labels[:rows],
        **shared,
    )


def losses_and_gradients(rows_of_rank, form):
    """Losses of every coarse task and the norms of their gradients, on this rank's rows."""
    torch.manual_seed(0)
    config = coarse_config(tasks__image_text__itc_form=form)
    model, found = build_model(config.model), {}
    step = TrainStep(model, config.tasks, ObjectiveState.of(config, torch.device("cpu")))
    rank = dist.get_rank() if dist.is_initialized() else 0
    for name in ("image_text", "question", "reasoning", "caption"):
        batch = small_batch(name, rows_of_rank[rank])
        losses = step(name, batch, Draw(0, 0))
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        found |= {key: loss.detach() for key, loss in losses.items()}
        found[f"{name} gradient"] = torch.cat([grad.flatten() for grad in grads])
    return found


@pytest.mark.parametrize("form", ["gather", "queue"])
def test_a_rank_with_an_empty_batch_adds_nothing(form, tmp_path):
    """Through the whole model: the mean over ranks is what one process with the batch gets."""
    ranks = run_on_two_ranks(losses_and_gradients, tmp_path, (3, 0), form)
    alone = losses_and_gradients((3,), form)
    assert {"itc", "itm", "mlm", "vqa", "nlvr2", "caption"} < alone.keys()
    for name, expected in alone.items():
        assert torch.isfinite(ranks[1][name]).all(), name
        mean = (ranks[0][name] + ranks[1][name]) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5, msg=name)
