"""A few of the interruptions of `python -m tests.kill_ranks`."""

import random

import pytest

from tests import kill_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(made_once):
    return made_once("kill_ranks_data", kill_ranks.make_data)


@pytest.fixture(scope="module")
def whole(data, made_once):
    return (
        made_once("kill_ranks_whole", lambda folder: kill_ranks.whole_run(data, folder / "run"))
        / "run"
    )


@pytest.mark.parametrize("launcher", ["fiber", "static"])
def test_a_killed_rank_restarts_and_the_run_is_bit_identical(data, whole, tmp_path, launcher):
    assert kill_ranks.kill(launcher, data, whole, tmp_path / "run", random.Random(0)) == []


def test_a_rank_killed_while_it_saves_leaves_no_wrong_checkpoint(data, whole, tmp_path):
    wrong, _ = kill_ranks.kill_save("fiber", data, whole, tmp_path / "run", random.Random(0))
    assert wrong == []


def test_a_signal_loses_no_step(data, whole, tmp_path):
    assert kill_ranks.terminate("fiber", data, whole, tmp_path / "run", random.Random(0)) == []


def test_a_stopped_rank_ends_the_job_and_is_named(data, tmp_path):
    assert kill_ranks.stop(data, tmp_path / "run", random.Random(0)) == []


def test_nodes_leave_and_join(data, tmp_path):
    whole = kill_ranks.whole_run(data, tmp_path / "whole", *kill_ranks.WITHOUT_DROPOUT)
    assert kill_ranks.resize(data, whole, tmp_path / "run") == []
