"""ray_train.py, where Ray is installed (pip install 'ray[train]')."""

import os
import re
import signal
import sys
import time

import pytest

from fiber.training.checkpoint.folder import checkpoints_in
from tests.examples.cluster.local_cluster import EXAMPLES, check_finished, end_of, small_run

SCRIPT = EXAMPLES / "ray_train.py"


@pytest.mark.slow
def test_ray_starts_the_workers_again_and_the_run_goes_on(cluster, data, tmp_path):
    pytest.importorskip("ray.train", reason="Ray is not installed")
    output, steps = tmp_path / "run", 24
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(SCRIPT), *small_run(data, output, steps=steps)]
    job = cluster.start([*command, "--workers", "2", "--cpu"], output, environment)
    while not (saved := [each.step for each in checkpoints_in(output / "checkpoints")]):
        assert job.process.poll() is None, job.text()
        time.sleep(0.05)
    # The lock of the folder names rank 0.
    holder = re.search(r"\d+", (output / ".lock").read_text())
    assert holder is not None
    os.kill(int(holder[0]), signal.SIGKILL)
    printed = end_of(job)
    resumed = re.findall(r"resuming after step (\d+)", printed)
    assert len(resumed) == 1 and saved[-1] <= int(resumed[0]) < steps, printed
    check_finished(output, steps, printed)
