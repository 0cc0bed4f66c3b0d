"""How much of the gradients of a training step is sent before its backward passes end."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fiber.training.distributed import replicate
from fiber.training.distributed.replicate import Replicate
from tests.losses.two_ranks import run_on_two_ranks
from tests.training.distributed.strategy_runs import config_of, trained

#: Buckets of FIBER's base model, 281 million parameters in buckets of 32 MiB.
BUCKETS = 33


def parts_in_flight(pictures, output, stage, steps, changes):
    """Part of each step's bytes whose all-reduce starts before the last backward pass has ended."""
    torch.set_num_threads(1)
    sent, parts = [], []
    real_reduce, real_finish, real_prepare = (
        dist.all_reduce,
        Replicate.reduce_gradients,
        Replicate.prepare,
    )

    def prepare(strategy, step):
        real_prepare(strategy, step)
        replicate.BUCKET_ELEMENTS = sum(p.numel() for p in strategy.parameters) // BUCKETS

    def all_reduce(tensor, *args, async_op=False, **options):
        if async_op:
            sent.append(tensor.nbytes)
        return real_reduce(tensor, *args, async_op=async_op, **options)

    def reduce_gradients(strategy):
        before = sum(sent)
        real_finish(strategy)
        parts.append(before / sum(sent))
        sent.clear()

    dist.all_reduce, Replicate.prepare = all_reduce, prepare
    Replicate.reduce_gradients = reduce_gradients
    trained(Path(pictures), Path(output), stage, train__steps=steps, **changes)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["coarse", "fine", "meter"])
@pytest.mark.parametrize("changes", [{}, {"train__accumulation": 2}], ids=["", "accumulation"])
def test_half_of_the_bytes_are_in_flight_before_backward_ends(pictures, tmp_path, stage, changes):
    rotation = config_of(stage).tasks.rotation()
    steps = 2 * len(rotation)
    arguments = (str(pictures), str(tmp_path / "run"), stage, steps, changes)
    parts = run_on_two_ranks(parts_in_flight, tmp_path, *arguments)[0]
    assert len(parts) == steps
    first = {task: rotation.index(task) for task in rotation}
    for step, part in enumerate(parts):
        task = rotation[step % len(rotation)]
        # The order is learned from the first step of a task.
        assert (part == 0) if step == first[task] else (part >= 0.5), (task, step, parts)
