"""A small case of `python -m tests.kill_map`."""

import pytest

from tests.kill_map import try_kills


@pytest.mark.slow
def test_killed_runs_have_the_rows_of_others(tmp_path):
    runs = try_kills(tmp_path, kills=2, full_disks=1, seed=3, images=30)
    assert not runs.failures
    assert runs.counts["kills"] == 2
