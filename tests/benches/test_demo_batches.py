"""The worker of the bench of the demo's batches times every task of both stages."""

import pytest

from fiber.config_io import replace_fields
from fiber.demo.plan import STAGES, find_plan
from fiber.synthetic.scenes import generate


@pytest.mark.parametrize("stage", STAGES)
def test_every_task_has_a_time(bench, tmp_path, stage):
    scenes = generate(tmp_path / "scenes", train=40, val=1, novel=1)
    config = find_plan("scenes", "default").config(stage, 0)
    config = replace_fields(config, {"data.batch_size": 8})
    times = bench.task_times(config, str(scenes), 8)
    assert set(times) == set(config.tasks.active())
    assert min(times.values()) > 0
