"""CPU time of the demo's training batches: one process of `bench_demo_data.py`.

Command: python benches/demo_batches.py FOLDER SAMPLES
Runs with the first package on the path, which may be that of an earlier commit, and prints
milliseconds per sample by stage and task as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from fiber.demo.plan import PLANS, STAGES
from fiber.training.config.run import RunConfig
from fiber.training.data import open_data
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders

#: Warmup samples: caches, and memory of the first batches.
WARM_UP = 256


def task_times(config: RunConfig, folder: str, samples: int) -> dict[str, float]:
    """Milliseconds of CPU time a sample, by task."""
    processes = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    streams = TaskLoaders(config, open_data(config, folder), processes, consumed={}, threads=0)
    found = {}
    for name in config.tasks.active():
        for _ in range(-(-WARM_UP // streams.micro_batch_sizes[name])):
            streams.next_batch(name)
        batches = -(-samples // streams.micro_batch_sizes[name])
        began = time.process_time()
        for _ in range(batches):
            streams.next_batch(name)
        found[name] = (
            1000 * (time.process_time() - began) / (batches * streams.micro_batch_sizes[name])
        )
    return found


def main() -> None:
    """Print the times of both stages."""
    folder, samples = sys.argv[1], int(sys.argv[2])
    plan = PLANS["scenes", "default"]
    stages = {stage: plan.config(stage, 0) for stage in STAGES}
    found = {
        f"{stage}, {task}": value
        for stage, config in stages.items()
        for task, value in task_times(config, folder, samples).items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
