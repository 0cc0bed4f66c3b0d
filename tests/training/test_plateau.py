"""The learning rate that falls where a run no longer improves, and the run that ends there."""

import json
import math
import random

import pytest
import torch

from fiber.config_io import replace_fields
from fiber.training.config.run import OptimConfig
from fiber.training.optim import count_falls, has_stalled, lr_factor, set_learning_rate
from fiber.training.validation import Validation

from . import micro_runs


def test_no_scores():
    assert count_falls([], 0) == 0
    assert not has_stalled([], 1)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_falls_are_those_of_pytorch(patience):
    draws = random.Random(patience)
    for _ in range(50):
        # Scores that often come again, and some that are a little better than the best.
        scores = [draws.choice([0.0, 0.1, 0.3, 0.3 + 1e-5, 0.3 + 1e-4, 0.5]) for _ in range(30)]
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.1, patience=patience, eps=0.0
        )
        for count, score in enumerate(scores, start=1):
            scheduler.step(score)
            falls = count_falls(scores[:count], patience)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1**falls)


def test_a_run_has_stalled_after_scores_below_the_best():
    assert has_stalled([0.5, 0.4, 0.3], 2)
    assert not has_stalled([0.5, 0.4, 0.3], 3)
    assert not has_stalled([0.5, 0.4, 0.5], 1)
    assert not has_stalled([0.5, 0.4, 0.6], 1)
    assert not has_stalled([0.5, 0.4, 0.3], 0)
    # A set without a box has no score.
    assert not has_stalled([math.nan] * 9, 1)


def test_the_rate_does_not_fall_below_its_bound():
    config = OptimConfig(lr=1e-4, schedule="plateau", plateau_patience=0, warmup_fraction=0.1)
    assert lr_factor(50, 100, config) == 1.0
    assert lr_factor(5, 100, config) == 0.5
    assert lr_factor(50, 100, config, [0.3, 0.2, 0.2]) == pytest.approx(0.01)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["lr_factor"] = 0.1
    set_learning_rate(optimizer, 1e-6, least=1e-6)
    assert optimizer.param_groups[0]["lr"] == 1e-6


@pytest.fixture
def scored(monkeypatch):
    """Runs whose measurements give the scores of a list."""

    def use(scores):
        left = iter(scores)
        monkeypatch.setattr(Validation, "evaluate", lambda *_: {"score": next(left)})

    return use


def measured_config(**changes):
    return micro_runs.fine_config(
        **{
            "train__steps": 12,
            "train__checkpoint_every": 2,
            "validation__task": "refcoco",
            "optim__schedule": "plateau",
            "optim__warmup_fraction": 0.0,
            "optim__plateau_patience": 0,
            "optim__plateau_least_lr": 5e-6,
            **changes,
        }
    )


def run(config, pictures, output, **options):
    held_out = micro_runs.all_records(pictures)["grounding"][:2]
    return micro_runs.run(config, pictures, output, validation=held_out, **options)


def rates(run):
    return [entry["learning_rates"]["x1"] for entry in run.metrics]


def test_a_run_slows_down_and_ends(pictures, tmp_path, scored):
    scored([0.2, 0.5, 0.4, 0.3, 0.9])
    config = measured_config(validation__stop_after=2)
    done = run(config, pictures, tmp_path / "run")
    # It is measured after steps 2, 4, 6 and 8, and not a fifth time.
    assert [entry["step"] for entry in done.metrics] == list(range(1, 9))
    assert rates(done) == pytest.approx([1e-3] * 6 + [1e-4] * 2)
    assert (tmp_path / "run" / "model.safetensors").exists()
    position = json.loads((tmp_path / "run/checkpoints/step-00000008/data.json").read_text())
    assert position["scores"] == [0.2, 0.5, 0.4, 0.3] and position["best_step"] == 4


@pytest.mark.slow
def test_a_resumed_run_slows_down_as_one_that_was_not_stopped(
    pictures, tmp_path, scored, monkeypatch
):
    scores = [0.5, 0.4, 0.6, 0.5, 0.4, 0.7]
    scored(scores)
    whole = run(measured_config(), pictures, tmp_path / "whole")
    assert rates(whole) == pytest.approx([1e-3] * 4 + [1e-4] * 4 + [1e-5] * 2 + [5e-6] * 2)

    scored(scores[:3])
    # It ends where no score is left.
    with pytest.raises(StopIteration):
        run(measured_config(), pictures, tmp_path / "cut")
    scored(scores[3:])
    resumed = run(measured_config(), pictures, tmp_path / "cut", resume=True)
    assert rates(resumed) == rates(whole)
    losses = [[entry["losses"] for entry in each.metrics] for each in (resumed, whole)]
    assert losses[0] == losses[1]


def test_passes_over_the_records_become_steps():
    config = micro_runs.fine_config(train__steps=100, train__epochs=2.5)
    assert config.with_length(12).train.steps == 8
    assert config.with_length(1).train.steps == 1
    assert config.with_length(12).train.checkpoint_every == 3
    # The limit in steps holds too.
    assert config.with_length(10**6).train.steps == 100
    assert config.with_length(12).with_length(12) == config.with_length(12)
    each = replace_fields(config, {"train.checkpoint_epochs": 1.0})
    assert each.with_length(12).train.checkpoint_every == 3
    assert each.with_length(22).train.checkpoint_every == 6
    assert each.with_length(1).train.checkpoint_every == 1
    assert micro_runs.fine_config().with_length(10**6) == micro_runs.fine_config()


def test_a_run_counts_its_passes(pictures, tmp_path):
    config = micro_runs.fine_config(
        train__steps=100, train__epochs=1.5, train__checkpoint_epochs=1.0
    )
    done = micro_runs.run(config, pictures, tmp_path / "run")
    # Twelve records in batches of four.
    assert len(done.metrics) == done.config.train.steps == 5
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()
    again = micro_runs.run(config, pictures, tmp_path / "run", resume=True)
    assert again.metrics == done.metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation__task": None}, r"optim.schedule 'plateau'"),
        ({"train__checkpoint_every": 0}, r"set validation.task.*train.checkpoint_every"),
        (
            {"optim__schedule": "linear", "validation__task": None, "validation__stop_after": 3},
            "validation.stop_after needs validation",
        ),
        ({"optim__plateau_patience": -1}, r"optim.plateau_patience.*0"),
        ({"validation__stop_after": -1}, r"validation.stop_after.*0"),
        ({"train__epochs": -0.5}, r"train.epochs.*0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        measured_config(**changes)


def test_passes_of_several_tasks_are_not_counted():
    with pytest.raises(ValueError, match="exactly one task, got"):
        micro_runs.coarse_config(train__epochs=1.0)
