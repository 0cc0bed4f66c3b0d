"""METER models train with the tasks that their heads have, and runs are read back."""

import dataclasses
import json

import pytest
import torch

import fiber
from fiber.config import ClipConfig, RobertaConfig
from fiber.config_io import from_dict, replace_fields, to_dict
from fiber.data import sources
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.synthetic.scenes import generate
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import (
    CaptionTask,
    EntailmentTask,
    ImageTextTask,
    QuestionTask,
    ReasoningTask,
    TasksConfig,
)
from fiber.training.train import train
from tests.training.test_task_loaders import streams

TINY = MeterConfig(
    image_size=48,
    max_tokens=24,
    weight_start="fan_in",
    clip=ClipConfig(patch_size=16, width=32, num_blocks=1, num_heads=2),
    roberta=RobertaConfig(
        vocab_size=512,
        width=32,
        num_layers=1,
        num_heads=2,
        ffn_width=64,
        max_positions=40,
        dropout=0.0,
    ),
    cross=CrossConfig(width=24, num_layers=2, num_heads=2, ffn_width=48, dropout=0.0),
    image_text=MeterHeadsConfig(heads=("itm", "mlm", "vqa", "nlvr2"), num_answers=32),
)
TASKS = TasksConfig(
    image_text=ImageTextTask(share=1, itc=0.0, itm_negatives="random"),
    question=QuestionTask(share=1),
    reasoning=ReasoningTask(share=1),
)


def config(model=TINY, tasks=TASKS, **changes):
    run = RunConfig(
        tasks=tasks,
        model=model,
        data=DataConfig(batch_size=4, transform=TransformConfig(kind="center_crop")),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(steps=6, checkpoint_every=3),
    )
    return replace_fields(run, changes)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("meter") / "scenes", train=24, val=8, novel=8)


def test_a_run_is_read_back():
    run = config()
    assert from_dict(RunConfig, to_dict(run)) == run
    changed = replace_fields(run, {"model.cross.kind": "merged_attention"})
    assert changed.model.cross.kind == "merged_attention"


def test_an_unknown_family_is_named():
    values = to_dict(config())
    values["model"]["family"] = "oscar"
    with pytest.raises(ValueError, match=r"model\.family: .*'oscar'.*'meter'"):
        from_dict(RunConfig, values)
    values["model"]["family"] = "meter"
    values["model"]["cros"] = {}
    with pytest.raises(ValueError, match=r"unknown field 'model\.cros'.*cross"):
        from_dict(RunConfig, values)


@pytest.mark.parametrize("kind", ["co_attention", "merged_attention"])
def test_every_task_trains_and_resumes_exactly(scenes, tmp_path, kind):
    run = config(**{"model.cross.kind": kind})
    whole = train(run, data=scenes, output=tmp_path / "whole", quiet=True, device="cpu")
    stopped = replace_fields(run, {"train.steps": 6})
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        _stop_after(monkeypatch, 5)
        train(stopped, data=scenes, output=tmp_path / "part", quiet=True, device="cpu")
    train(stopped, data=scenes, output=tmp_path / "part", resume=True, quiet=True, device="cpu")
    states = [fiber.load(tmp_path / name).network.state_dict() for name in ("whole", "part")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert whole is not None
    assert fiber.load(tmp_path / "whole").heads == ("itm", "mlm", "vqa", "nlvr2")


def _stop_after(monkeypatch, steps):
    from fiber.training.objectives.step import TrainStep

    original, calls = TrainStep.branches, []

    def branches(self, *arguments, **options):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(TrainStep, "branches", branches)


def test_answers_start_at_their_frequencies(scenes, tmp_path):
    tasks = TasksConfig(question=QuestionTask(share=1))
    run = config(tasks=tasks, **{"train.steps": 1, "optim.lr": 1e-9})
    train(run, data=scenes, output=tmp_path / "run", quiet=True, device="cpu")
    bias = fiber.load(tmp_path / "run").network.vqa_head.output.bias
    assert bias.max() > -3
    assert bias.min() < -4


def test_tasks_without_a_head_are_refused():
    with pytest.raises(ValueError, match="lacks itc"):
        config(tasks=dataclasses.replace(TASKS, image_text=ImageTextTask(share=1)))
    with pytest.raises(ValueError, match="lacks caption"):
        config(tasks=TasksConfig(caption=CaptionTask(share=1)))


def entailments(scenes):
    read = {record.image_id: record for record in sources.captions(scenes, "train")}
    return [
        dataclasses.replace(record, answers={ENTAILMENT[n % 3]: 1.0}, group=ENTAILMENT[n % 3])
        for n, record in enumerate(list(read.values())[:12])
    ]


@pytest.mark.slow
def test_entailment_learns_and_is_evaluated(scenes, tmp_path):
    heads = dataclasses.replace(TINY.image_text, heads=("snli",))
    run = config(
        dataclasses.replace(TINY, image_text=heads),
        TasksConfig(entailment=EntailmentTask(share=1)),
        **{"train.steps": 150, "data.batch_size": 12, "optim.lr": 3e-3},
    )
    records = entailments(scenes)
    train(run, data=records, tokenizer=scenes, output=tmp_path / "run", quiet=True, device="cpu")
    model = fiber.load(tmp_path / "run")
    metrics = fiber.evaluate(model, "snli", records, output=tmp_path / "found.json")
    assert metrics["accuracy"] == 1.0
    assert metrics["neutral/accuracy"] == 1.0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line["label"] for line in found] == [record.group for record in records]
    assert model.entail(records[1].images[0], records[1].text).label == "neutral"
    # Another image and text of the same class would do; another class is an error of the data.
    with pytest.raises(ValueError, match=r"expected one of contradiction.*got \{'maybe'"):
        fiber.evaluate(model, "snli", [dataclasses.replace(records[0], answers={"maybe": 1.0})])


def test_masked_positions_do_not_depend_on_ranks(pictures):
    """At most `round(0.5 * max_tokens)` positions, the same for every world size."""
    changes = {"data__mlm_unit": "position", "data__mlm_probability": 0.5}
    whole = streams(pictures, **changes)
    halves = [streams(pictures, rank=rank, world_size=2, **changes) for rank in (0, 1)]
    rows = []
    for _ in range(4):
        batch = whole.next_batch("image_text")
        parts = [half.next_batch("image_text") for half in halves]
        for name in ("masked_ids", "mlm_labels"):
            joined = [row for part in parts for row in getattr(part, name)]
            for row, own in zip(getattr(batch, name), joined, strict=True):
                length = min(len(row), len(own))
                assert torch.equal(row[:length], own[:length])
        rows += [(key, labels[labels != -100].tolist()) for key, labels in _labels(batch)]
    assert all(len(labels) <= 8 for _, labels in rows) and any(labels for _, labels in rows)
    tokens = streams(pictures, data__mlm_probability=0.5).next_batch("image_text")
    assert [labels[labels != -100].tolist() for _, labels in _labels(tokens)] != [
        labels for _, labels in rows[: len(tokens)]
    ]


def _labels(batch):
    return list(zip(batch.keys, batch.mlm_labels, strict=True))
