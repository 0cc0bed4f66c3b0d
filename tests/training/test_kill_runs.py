"""A few of the interruptions of `python -m tests.kill_runs`."""

import pytest

from tests.kill_runs import run_all


@pytest.mark.slow
def test_interrupted_runs_end_like_undisturbed_ones(tmp_path):
    assert run_all(tmp_path, kills=3, terms=3, flips=0, pairs=1) == []


@pytest.mark.slow
def test_flipped_bits_of_a_checkpoint(tmp_path):
    assert run_all(tmp_path, kills=0, terms=0, flips=3, pairs=0) == []


@pytest.mark.slow
def test_a_check_that_fails_is_reported(tmp_path, monkeypatch):
    """Checksums that are not looked at let a flipped bit of the weights through."""
    from fiber.training.checkpoint.folder import RunCheckpoint

    monkeypatch.setattr(RunCheckpoint, "damage", lambda checkpoint: None)
    failures = run_all(tmp_path, kills=0, terms=0, flips=2, pairs=0)
    assert sum("not noticed" in failure for failure in failures) == 2
