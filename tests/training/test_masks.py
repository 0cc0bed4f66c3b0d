"""A run that trains masks: its files, what it resumes, and what its model finds."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import fiber
from fiber.tasks.segmentation.fields import SegmentationTask
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import TasksConfig
from tests.models.xdecoder.test_network import TINY
from tests.training.test_trainer import StopError, stop_before, weights_equal

STEPS = 4


def config(small_scenes):
    tokenizer = fiber.data.Tokenizer.from_file(small_scenes / "tokenizer.json")
    text = dataclasses.replace(TINY.clip_text, vocab_size=tokenizer.vocab_size, max_positions=40)
    focalnet = dataclasses.replace(TINY.focalnet, drop_path=0.1)
    model = dataclasses.replace(
        TINY, clip_text=text, focalnet=focalnet, segment_size=64, instance_size=64, heads=("mask",)
    )
    task = SegmentationTask(
        share=1, sources=("panoptic", "expression_masks"), num_points=64, phrase_layers=2
    )
    return RunConfig(
        model=model,
        tasks=TasksConfig(segmentation=task),
        data=DataConfig(
            batch_size=4, transform=TransformConfig(kind="scale_jitter", flip_probability=0.5)
        ),
        train=TrainConfig(steps=STEPS, checkpoint_every=2),
    )


@pytest.fixture(scope="module")
def run(small_scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks") / "run"
    # As in all tests here; sums of other numbers of threads are rounded in other ways.
    torch.set_num_threads(1)
    fiber.train(config(small_scenes), data=small_scenes, output=folder)
    return folder


def test_every_loss_is_logged(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["losses"] for line in lines if "losses" in line]
    assert steps
    for losses in steps:
        assert set(losses) == set(SegmentationTask(share=1, sources=("panoptic",)).weights())
        assert all(np.isfinite(value) and value > 0 for value in losses.values())


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("panoptic", {"pq", "sq", "rq"}),
        ("semantic", {"miou", "published_miou"}),
        ("instance", {"ap", "ap50"}),
        ("refseg", {"ciou", "miou", "precision_at_0.5"}),
    ],
)
def test_the_model_is_evaluated(run, small_scenes, task, metrics):
    found = fiber.evaluate(run, task, small_scenes)
    assert metrics <= set(found)
    assert all(0 <= found[name] <= 1 for name in metrics)


def test_the_model_segments(run, scene_picture):
    model = fiber.load(run, device="cpu")
    found = model.segment(scene_picture, classes=["circle", "square"], kind="semantic")
    assert found.ids.shape == (70, 90)
    assert {each.label for each in found.segments} <= {"circle", "square"}
    assert set(np.unique(found.ids)) == {each.id for each in found.segments}
    phrases = model.segment(scene_picture, phrases=["the red circle", "the blue square"])
    assert [each.label for each in phrases.segments] == ["the red circle", "the blue square"]


def test_a_resumed_run_is_bit_identical(run, small_scenes, tmp_path, monkeypatch):
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_before(patch, 3)
        with pytest.raises(StopError):
            fiber.train(config(small_scenes), data=small_scenes, output=stopped)
    fiber.train(config(small_scenes), data=small_scenes, output=stopped, resume=True)
    assert weights_equal(run, stopped)
