"""The first line that a run logs."""

from __future__ import annotations

from torch import nn

from fiber.models.registry import architecture_of
from fiber.training.config.run import RunConfig
from fiber.training.distributed.processes import Processes, restart_count
from fiber.training.training_data import TrainingData


def describe_run(
    config: RunConfig,
    model: nn.Module,
    data: TrainingData,
    processes: Processes,
    origin: str,
    steps_done: int,
) -> str:
    """Summarize the model, hardware, length and data in one line.

    Args:
        config: configuration of the run.
        model: its model; weights may be sharded.
        data: records of every task.
        processes: ranks of the run.
        origin: name of the initial weights.
        steps_done: steps of earlier starts.
    """
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    records = ", ".join(f"{name} {count}" for name, count in data.counts().items())
    where = f"{processes.world_size} x {processes.device.type}"
    begin = f"resuming after step {steps_done}" if steps_done else f"starting from {origin}"
    if restarts := restart_count():
        begin = f"restart {restarts}: {begin}"
    entry = architecture_of(config.model)
    name = f"{entry.stage}-stage model" if entry.stage else f"{entry.title} model"
    return (
        f"{begin}: {name} with {millions:.1f} million parameters on {where},"
        f" {config.train.steps} steps of {config.data.batch_size} samples; records: {records}"
    )
