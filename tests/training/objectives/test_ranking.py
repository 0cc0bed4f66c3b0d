"""METER's fine-tuning for retrieval: each image ranks its caption among false ones."""

import dataclasses
import json
import math
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import fiber
from fiber.checkpoints.convert import convert
from fiber.cli import main
from fiber.config_io import replace_fields
from fiber.data import RankingBatch, sources
from fiber.losses.itm import half_pairs
from fiber.models.registry import build_model
from fiber.synthetic.scenes import generate
from fiber.training.config.tasks import ImageTextTask, RankingTask, TasksConfig
from fiber.training.data import open_data
from fiber.training.distributed.processes import Processes
from fiber.training.meters import prior_losses
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.step import TrainStep
from fiber.training.task_loaders import TaskLoaders
from fiber.training.train import train
from tests.losses.two_ranks import run_on_two_ranks
from tests.training.test_meter import TINY, config
from tests.training.test_trainer import StopError, numbers, stop_before, weights_equal

pytestmark = pytest.mark.oldest

MODEL = replace_fields(TINY, {"image_text.heads": ("itm", "rank")})
TASK = RankingTask(share=1, false_texts=3)


def ranking(**changes):
    """Configuration of a run with the frozen ITM head of the published runs."""
    tasks = TasksConfig(ranking=TASK)
    return config(MODEL, tasks, **{"optim.frozen": ("itm_head",)} | changes)


def new_model(run, seed=0):
    torch.manual_seed(seed)
    return build_model(run.model)


def loaders_of(run, data, *, rank=0, world_size=1, consumed=0, **options):
    source = open_data(run, data, **options)
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    fitted = source.fit_model(run)
    consumed = {"ranking": consumed}
    return fitted, TaskLoaders(fitted, source, processes, consumed=consumed, threads=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("ranking") / "scenes", train=24, val=8, novel=8)


@pytest.fixture(scope="module")
def model_and_batch(scenes):
    run, loaders = loaders_of(ranking(), scenes)
    return new_model(run), loaders.next_batch("ranking")


# Data


def test_no_records():
    with pytest.raises(ValueError, match=r"'ranking'.*at least one record"):
        open_data(ranking(), [])


def test_too_few_captions_are_an_error(scenes, tmp_path):
    records = list(sources.captions(scenes, "train"))[:3]
    with pytest.raises(ValueError, match=r"tasks\.ranking\.false_texts 3: record .*expected 3"):
        open_data(ranking(), records, tokenizer=scenes)
    # Before anything is written.
    with pytest.raises(ValueError, match=r"false_texts 3"):
        train(ranking(), data=records, tokenizer=scenes, output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    one_image = [dataclasses.replace(record, image_id="a") for record in records]
    with pytest.raises(ValueError, match=r"'ranking'.*same image.*itm has no negatives"):
        open_data(ranking(), one_image, tokenizer=scenes)


#: Number of batches of four that are more than an epoch of the scenes.
BATCHES = 30


def texts_of(batches):
    """Own and false texts of every sample, without padding."""
    return [
        (key, *(row[mask].tolist() for row, mask in zip(ids, masks, strict=True)))
        for batch in batches
        for key, ids, masks in zip(batch.keys, batch.false_ids, batch.false_mask, strict=True)
    ]


def test_false_texts_do_not_depend_on_ranks_or_on_the_start(scenes):
    _, alone = loaders_of(ranking(), scenes)
    batches = [alone.next_batch("ranking") for _ in range(BATCHES)]
    assert all(isinstance(batch, RankingBatch) for batch in batches)
    assert batches[0].false_ids.shape[:2] == (4, 3)
    expected = texts_of(batches)
    ranks = [loaders_of(ranking(), scenes, rank=rank, world_size=2)[1] for rank in (0, 1)]
    found = [texts_of([ranks[number % 2].next_batch("ranking")]) for number in range(2 * BATCHES)]
    assert [row for rows in found for row in rows] == expected
    _, resumed = loaders_of(ranking(), scenes, consumed=20)
    assert texts_of([resumed.next_batch("ranking")]) == expected[20:24]
    # Every epoch has its own, and so has every seed.
    by_key = {}
    for key, *texts in expected:
        by_key.setdefault(key, []).append(texts)
    assert any(len(drawn) > 1 and drawn[0] != drawn[1] for drawn in by_key.values())
    _, other = loaders_of(ranking(**{"train.seed": 1}), scenes)
    rows = {key: texts for key, *texts in texts_of([other.next_batch("ranking")])}
    assert all(texts not in by_key.get(key, []) for key, texts in rows.items())


def test_broken_records_keep_the_draws_of_others(scenes):
    records = list(sources.captions(scenes, "train"))
    broken = [*records]
    broken[::5] = [dataclasses.replace(record, images=(b"no",)) for record in records[::5]]
    run = ranking(**{"data.on_error": "skip"})
    rows = []
    for data in (records, broken):
        _, loaders = loaders_of(run, data, tokenizer=scenes)
        with pytest.warns(RuntimeWarning) if data is broken else nullcontext():
            rows.append(texts_of([loaders.next_batch("ranking") for _ in range(6)]))
    whole, partial = rows
    assert len(partial) < len(whole)
    assert partial == [row for row in whole if row[0] in {key for key, *_ in partial}]


# Objective


def test_losses_are_those_of_plain_passes(model_and_batch):
    model, batch = model_and_batch
    draw = Draw(3, 5)
    losses = TrainStep(model, TasksConfig(ranking=TASK))("ranking", batch, draw)
    scores = []
    for number in range(4):
        ids = batch.token_ids if number == 0 else batch.false_ids[:, number - 1]
        mask = batch.text_mask if number == 0 else batch.false_mask[:, number - 1]
        scores.append(model(batch.images, ids, mask, "rank"))
    labels = torch.zeros(len(batch), dtype=torch.int64)
    plain = F.cross_entropy(torch.stack(scores, 1), labels)
    assert losses["rank"].item() == pytest.approx(plain.item(), rel=1e-5)
    half = half_pairs(batch.image_ids, seed=3, step=5)
    logits = model(batch.images[half.image_index], batch.token_ids, batch.text_mask, "itm")
    assert losses["itm"].item() == pytest.approx(F.cross_entropy(logits, half.labels).item(), 1e-5)


def test_the_image_encoder_runs_once_per_image(model_and_batch):
    model, batch = model_and_batch
    rows = []
    hook = model.backbone.image.register_forward_pre_hook(
        lambda module, inputs: rows.append(len(inputs[0]))
    )
    TrainStep(model, TasksConfig(ranking=TASK))("ranking", batch, Draw(0, 0))
    hook.remove()
    assert rows == [4]


def test_a_loss_without_weight_is_not_computed(model_and_batch):
    model, batch = model_and_batch
    task = dataclasses.replace(TASK, itm=0.0)
    losses = TrainStep(model, TasksConfig(ranking=task))("ranking", batch, Draw(0, 0))
    assert losses.keys() == {"rank"}


def gradients_of(model, run_backward):
    model.zero_grad(set_to_none=True)
    run_backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_branches_have_the_gradients_of_one_graph(model_and_batch):
    model, batch = model_and_batch
    step, draw = TrainStep(model, TasksConfig(ranking=TASK)), Draw(0, 0)

    def by_branches():
        split = SplitGraph()
        for losses in step.branches("ranking", batch, draw, split):
            sum(losses.values()).backward()
        split.backward()

    whole = gradients_of(model, lambda: sum(step("ranking", batch, draw).values()).backward())
    split = gradients_of(model, by_branches)
    assert whole.keys() == split.keys() == dict(model.named_parameters()).keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def small_batch(rows):
    """The first rows of a batch of three."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 500, (3, 4, 6), generator=draws)
    ids[..., 0], ids[..., -1] = 0, 2
    own, false = ids[:rows, 0], ids[:rows, 1:]
    return RankingBatch(
        keys=("a", "b", "c")[:rows],
        images=torch.randn(3, 3, 48, 48, generator=draws)[:rows],
        image_sizes=torch.full((rows, 2), 48),
        original_sizes=torch.full((rows, 2), 48),
        token_ids=own,
        text_mask=torch.ones_like(own, dtype=torch.bool),
        image_ids=torch.arange(3)[:rows],
        masked_ids=own,
        mlm_labels=torch.full_like(own, -100),
        false_ids=false,
        false_mask=torch.ones_like(false, dtype=torch.bool),
    )


def losses_and_gradients(rows_of_rank):
    """Losses and gradients on this rank's rows of the batch of three."""
    model = new_model(ranking())
    rank = dist.get_rank() if dist.is_initialized() else 0
    first = sum(rows_of_rank[:rank])
    whole, last = small_batch(3), first + rows_of_rank[rank]
    tensors = {n: value[first:last] for n, value in vars(whole).items() if torch.is_tensor(value)}
    batch = dataclasses.replace(whole, keys=whole.keys[first:last], **tensors)
    losses = TrainStep(model, TasksConfig(ranking=TASK))("ranking", batch, Draw(0, 0))
    sum(losses.values()).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    found = {name: loss.detach() for name, loss in losses.items()}
    return found | {"gradient": torch.cat([grad.flatten() for grad in grads])}


@pytest.mark.parametrize("rows", [(2, 1), (3, 0)], ids=["uneven", "empty"])
def test_two_ranks_have_the_losses_of_one(rows, tmp_path):
    ranks = run_on_two_ranks(losses_and_gradients, tmp_path, rows)
    alone = losses_and_gradients((3,))
    for name, expected in alone.items():
        mean = (ranks[0][name] + ranks[1][name]) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6, msg=name)


# Configuration


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match=r"tasks\.ranking\.false_texts must be 1 or more, got 0"):
        ranking(**{"tasks.ranking.false_texts": 0})
    with pytest.raises(ValueError, match="lacks itm, rank"):
        ranking(**{"model.image_text.heads": ("vqa",)})
    with pytest.raises(ValueError, match=r"one pair per micro-batch; tasks\.ranking\.itm"):
        ranking(**{"train.accumulation": 4})
    alone = {"tasks.ranking.itm": 0.0, "model.image_text.heads": ("rank",), "optim.frozen": ()}
    assert ranking(**alone, **{"train.accumulation": 4}).needed_heads() == ("rank",)
    both = TasksConfig(
        image_text=ImageTextTask(share=1, itc=0.0, mlm=0.0, itm_negatives="random"), ranking=TASK
    )
    assert config(MODEL, both).needed_heads() == ("itm", "rank")


def test_losses_of_a_model_that_ignores_inputs(scenes):
    run = ranking()
    assert prior_losses(run, open_data(run, scenes)) == pytest.approx(
        {"rank": math.log(4), "itm": math.log(2)}
    )


# Runs


def test_the_itm_head_is_frozen_and_everything_else_trains(scenes, tmp_path):
    runs = {}
    for steps in (1, 3):
        output = tmp_path / str(steps)
        # The learning rate of the first step is 0.
        changes = {"train.steps": steps, "optim.warmup_fraction": 0.9}
        train(ranking(**changes), data=scenes, output=output, quiet=True, device="cpu")
        runs[steps] = fiber.load(output).network.state_dict()
    same = {name for name, tensor in runs[1].items() if torch.equal(tensor, runs[3][name])}
    assert same == {"itm_head.weight", "itm_head.bias"} | (same & {"rank_head.bias"})


def test_a_resumed_run_ends_like_an_undisturbed_one(scenes, tmp_path, monkeypatch):
    def run(name, **options):
        options = {"quiet": True, "device": "cpu"} | options
        return train(ranking(), data=scenes, output=tmp_path / name, **options)

    run("whole")
    stop_before(monkeypatch, 5)
    with pytest.raises(StopError):
        run("part")
    run("part", resume=True)
    assert weights_equal(tmp_path / "whole", tmp_path / "part")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "part")


@pytest.mark.slow
def test_it_learns_to_rank_and_is_evaluated_and_selected(scenes, tmp_path):
    """Retrieval of captions that a small model can learn by heart."""
    records = list({r.image_id: r for r in sources.captions(scenes, "train")}.values())[:10]
    changes = {
        "train.steps": 200,
        "train.checkpoint_every": 100,
        "optim.cross_modal_lr_multiplier": 1.0,
        "data.batch_size": 10,
        "optim.lr": 3e-3,
        "validation.task": "retrieval",
    }
    options = {"validation": records, "tokenizer": scenes, "quiet": True, "device": "cpu"}
    run = train(ranking(**changes), data=records, output=tmp_path / "run", **options)
    logged = [entry["validation"] for entry in run.metrics if "validation" in entry]
    recalls = ("text_to_image_recall_at_1", "image_to_text_recall_at_1")
    assert len(logged) == 2
    assert all(entry["score"] == sum(entry[name] for name in recalls) for entry in logged)
    model = fiber.load(tmp_path / "run")
    metrics = fiber.evaluate(model, "retrieval", records)
    best = max(entry["score"] for entry in logged)
    assert sum(metrics[name] for name in recalls) == pytest.approx(best)
    # By chance 0.2; it keeps rising with more steps.
    assert best > 1.0
    # The ranking head decides, not ITM.
    with torch.no_grad():
        model.network.itm_head.weight.zero_()
    assert fiber.evaluate(model, "retrieval", records) == metrics
    with torch.no_grad():
        model.network.rank_head.weight.neg_()
    worst = fiber.evaluate(model, "retrieval", records)
    assert sum(worst[name] for name in recalls) < 0.4


# Initial weights


def first_weights(run, scenes, init, output):
    """Weights that a run starts from: the learning rate of its only step is 0."""
    changes = {"train.steps": 1, "optim.warmup_fraction": 0.9, "optim.lr": 1e-30}
    run = replace_fields(run, changes)
    train(run, data=scenes, init=init, output=output, quiet=True, device="cpu")
    return fiber.load(output).network.state_dict()


def test_a_new_ranking_head_starts_as_the_match_row_of_itm(scenes, tmp_path):
    pretrained = config(
        tasks=TasksConfig(image_text=ImageTextTask(share=1, itc=0.0, itm_negatives="random")),
        **{"model.image_text.heads": ("itm", "mlm"), "train.steps": 2},
    )
    train(pretrained, data=scenes, output=tmp_path / "own", quiet=True, device="cpu")
    own = fiber.load(tmp_path / "own").network.state_dict()
    convert(tmp_path / "own", tmp_path / "published.ckpt", to="published")
    for source in ("own", "published.ckpt"):
        output = tmp_path / f"from {source}"
        found = first_weights(ranking(), scenes, tmp_path / source, output)
        for part in ("weight", "bias"):
            assert torch.equal(found[f"itm_head.{part}"], own[f"itm_head.{part}"])
            assert torch.equal(found[f"rank_head.{part}"], own[f"itm_head.{part}"][1:2])


def test_a_trained_ranking_head_is_kept_and_evaluated(scenes, tmp_path, capsys):
    train(ranking(), data=scenes, output=tmp_path / "coco", quiet=True, device="cpu")
    own = fiber.load(tmp_path / "coco").network.state_dict()
    found = first_weights(ranking(), scenes, tmp_path / "coco", tmp_path / "flickr")
    assert not torch.equal(own["rank_head.weight"], own["itm_head.weight"][1:2])
    assert torch.equal(found["rank_head.weight"], own["rank_head.weight"])
    arguments = ["eval", str(tmp_path / "coco"), "retrieval", "--data", str(scenes)]
    assert main([*arguments, "--split", "novel"]) == 0
    metrics = fiber.evaluate(tmp_path / "coco", "retrieval", scenes, "novel")
    assert json.loads(capsys.readouterr().out) == pytest.approx(metrics, abs=1e-3)
