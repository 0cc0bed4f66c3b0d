"""Every strategy trains like one process; `python -m tests.strategies` has all settings."""

import pytest

from tests.strategies import STAGES, Result, compare, differences, root_mean_square
from tests.training.distributed.strategy_runs import sharded_on_cpu

SHARD = pytest.param("shard", marks=sharded_on_cpu)


def assert_ok(results):
    found = list(results)
    assert found and all(result.is_ok for result in found), "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strategy", ["replicate", SHARD])
def test_two_ranks_train_as_one_process(tmp_path, strategy, stage):
    assert_ok(compare(tmp_path, [strategy], ["plain"], [stage]))


@pytest.mark.slow
@sharded_on_cpu
def test_two_groups_of_two_ranks_train_as_one_process(tmp_path):
    assert_ok(compare(tmp_path, ["hybrid"], ["plain", "together"], ["coarse"]))


@pytest.mark.slow
@sharded_on_cpu
@pytest.mark.parametrize(
    ("stage", "case"),
    [
        ("meter", "frozen and accumulated"),
        ("meter", "checkpointing"),
        ("meter", "bfloat16"),
        ("coarse", "no gradient below"),
        ("coarse", "queue"),
        ("coarse", "together"),
        ("coarse", "muon"),
    ],
)
def test_settings_do_not_change_that(tmp_path, stage, case):
    assert_ok(compare(tmp_path, ["shard"], [case], [stage]))


@pytest.mark.slow
def test_whole_gradients_of_frozen_models_and_micro_batches(tmp_path):
    assert_ok(compare(tmp_path, ["replicate"], ["frozen and accumulated"], ["meter"]))


@pytest.mark.slow
def test_ranks_exchange_the_directions_of_muon(tmp_path):
    assert_ok(compare(tmp_path, ["replicate"], ["muon"], ["coarse"]))


@pytest.mark.slow
def test_ranks_train_several_tasks_in_a_step(tmp_path):
    assert_ok(compare(tmp_path, ["replicate"], ["together"], ["coarse"]))


def test_differences_are_found():
    ours = [{"gradient_norm": 2.0, "vqa": 1.0}, {"gradient_norm": 1.0, "vqa": -4.0}]
    theirs = [{"gradient_norm": 2.0, "vqa": 1.5}, {"gradient_norm": 1.5, "vqa": -4.0}]
    assert differences(ours, theirs) == (0.5, 0.5)
    assert differences(ours, theirs, root_mean_square) == pytest.approx((0.5**1.5, 0.5**1.5))
    assert differences(ours, ours) == (0.0, 0.0)
    with pytest.raises(ValueError, match="other losses"):
        differences(ours, [{"gradient_norm": 2.0}, {"gradient_norm": 1.0}])
    assert Result("shard", "fine", "ema", (1e-6, 1e-5), (1e-6, 1e-5)).is_ok
    failed = Result("shard", "fine", "ema", (1.1e-6, 0.0), (1e-6, 1e-5))
    assert not failed.is_ok and "FAILED" in str(failed)
    assert not Result("shard", "fine", "ema", (0.0, float("nan")), (1e-6, 1e-5)).is_ok
