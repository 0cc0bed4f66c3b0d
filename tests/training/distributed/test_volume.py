"""Bytes that a rank sends in a step: counted on rank 0 of ranks that do not exist.

A ring sends (W - 1) / W of the elements that it gathers or reduce-scatters over W ranks, and twice
as many in an all-reduce. P is the number of parameters.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils._python_dispatch import TorchDispatchMode

from fiber.config import preset
from fiber.models.meter.config import MeterConfig
from fiber.models.registry import build_model
from fiber.training.distributed.shard import gathered_in_bfloat16, group_size
from fiber.training.trainer import Trainer
from tests.losses.two_ranks import run_as_one_of
from tests.training.distributed.strategy_runs import sharded_on_cpu, trained

#: Widths are multiples of 64, as in the base model, of which few are not.
WIDTHS = {
    "model__swin__embed_dim": 64,
    "model__swin__num_heads": (2, 4, 8, 16),
    "model__roberta__width": 128,
    "model__roberta__num_heads": 4,
    "model__roberta__ffn_width": 512,
}


class Counted(TorchDispatchMode):
    """Counts the bytes that this rank sends, by operation; those of losses apart."""

    def __init__(self):
        super().__init__()
        self.sent = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.partition("::")[2]
            self.sent[f"loss {name}" if in_loss() else name] += ring_bytes(name, args)
        return function(*args, **(kwargs or {}))


def in_loss():
    """Tell whether a collective is called by a loss, in forward or backward."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("losses/distributed.py"):
        frame = frame.f_back
    return frame is not None


def ring_bytes(name, args):
    """Bytes of a collective, by its larger tensor and the size of its group."""
    tensors = [each for arg in args[:2] for each in (arg if isinstance(arg, list) else [arg])]
    size = max((each.nbytes for each in tensors if isinstance(each, torch.Tensor)), default=0)
    groups = [arg for arg in args if isinstance(arg, torch.ScriptObject)]
    ranks = dist.ProcessGroup.unbox(groups[0]).size()
    return (2 if name == "allreduce_" else 1) * (ranks - 1) / ranks * size


def bytes_of_steps(pictures, output, changes):
    """Task and bytes of each step, with the numbers of all parameters and of the padded ones."""
    found, parameters = [], []
    real = Trainer.train_step

    def train_step(trainer, tasks, batches):
        parameters[:] = [sum(p.numel() for p in trainer.model.parameters())]
        with Counted() as counted:
            norm = real(trainer, tasks, batches)
        found.append((*tasks, dict(counted.sent)))
        # What other ranks would send is not numbers.
        trainer.meter._losses = {name: [torch.zeros(())] for name in trainer.meter._losses}
        return torch.zeros_like(norm)

    Trainer.train_step = train_step
    trained(Path(pictures), Path(output), "coarse", **WIDTHS, **changes)
    return found, parameters[0]


#: Strategy, ranks, `train.shard_size`, and bytes of a float32 run in units of P. A rank of a group
#: gathers and scatters in it, and all-reduces its shard, which is no more than over all ranks.
FLOAT32 = {
    "replicate of 64": ("replicate", 64, 0, lambda ring: 2 * ring(64) * 4),
    "replicate of 1024": ("replicate", 1024, 0, lambda ring: 2 * ring(1024) * 4),
    "shard over 64": ("shard", 64, 0, lambda ring: ring(64) * (4 + 4)),
    "shard over 1024": ("shard", 1024, 0, lambda ring: ring(1024) * (4 + 4)),
    "hybrid of 128 times 8": (
        *("hybrid", 1024, 8),
        lambda ring: ring(8) * (4 + 4) + 2 * ring(128) * 4 / 8,
    ),
}


CASES = {
    name: pytest.param(name, marks=() if "replicate" in name else sharded_on_cpu)
    for name in FLOAT32
}
#: Over 64 ranks.
SMALL_CASES = [CASES["replicate of 64"], CASES["shard over 64"]]


def ring(ranks):
    return (ranks - 1) / ranks


def sent(pictures, folder, case, **changes):
    """Bytes of the second step of each task for weights and gradients, and P."""
    strategy, ranks, size, _ = FLOAT32[case]
    # Two samples for each rank, and two steps of each task.
    changes |= {"data__batch_size": 2 * ranks, "train__steps": 9}
    changes |= {"train__strategy": strategy, "train__shard_size": size}
    steps, count = run_as_one_of(
        ranks, bytes_of_steps, folder, str(pictures), str(folder / "run"), changes
    )
    last = dict(steps[-5:])
    assert last.keys() == {"image_text", "question", "reasoning", "caption"}
    return {
        task: sum(size for name, size in sizes.items() if not name.startswith("loss"))
        for task, sizes in last.items()
    }, count


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values())
def test_a_step_sends_no_more_than_the_formula(pictures, tmp_path, case):
    found, count = sent(pictures, tmp_path, case)
    limit = FLOAT32[case][3](ring) * count
    for task, size in found.items():
        assert size <= 1.05 * limit, task
        # Little of the model is not used by a task.
        assert size >= 0.8 * limit, task


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL_CASES)
@pytest.mark.parametrize("way", ["accumulation", "samples_per_pass"])
def test_parts_of_a_step_send_no_more(pictures, tmp_path, case, way):
    # Ranks have two samples each.
    parts = {"accumulation": 2, "samples_per_pass": 1}[way]
    found, count = sent(pictures, tmp_path, case, **{f"train__{way}": parts})
    assert max(found.values()) <= 1.05 * FLOAT32[case][3](ring) * count


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL_CASES)
def test_a_sum_in_bfloat16_sends_half(pictures, tmp_path, case):
    found, count = sent(pictures, tmp_path, case, train__reduce_precision="bfloat16")
    factor = 2 * 2 if case == "replicate of 64" else 4 + 2
    assert max(found.values()) <= 1.05 * ring(64) * factor * count


@pytest.mark.slow
@sharded_on_cpu
def test_weights_are_gathered_in_bfloat16(pictures, tmp_path):
    found, count = sent(pictures, tmp_path, "shard over 64", train__precision="bfloat16")
    if not hasattr(MixedPrecisionPolicy(), "param_dtype_override_fn"):
        pytest.skip("this PyTorch cannot gather norms and matrices in other precisions")
    assert max(found.values()) <= 1.05 * ring(64) * (2 + 4) * count


BASE = {
    "coarse": preset("base"),
    "fine": preset("base", stage="fine"),
    "METER": MeterConfig(),
}


@pytest.mark.parametrize("name", BASE)
def test_padding_and_precision_of_the_base_models(name):
    with torch.device("meta"):
        model = build_model(BASE[name])
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    in_bfloat16 = {id(p) for p in gathered_in_bfloat16(model)}

    def padded(ranks, bytes_of=lambda p: 1):
        rows = [p.shape[0] if p.ndim else 1 for p in parameters]
        return sum(
            -(-row // ranks) * ranks * (p.numel() // row) * bytes_of(p)
            for row, p in zip(rows, parameters, strict=True)
        )

    # Those of a group of 1,024 ranks, too, are 64.
    for ranks in (8, 64):
        assert padded(ranks) <= 1.05 * count
        gathered = padded(ranks, lambda p: 2 if id(p) in in_bfloat16 else 4)
        assert gathered + 4 * padded(ranks) <= 1.05 * (2 + 4) * count
    # As the docstring of `group_size` says.
    assert padded(group_size(1024)) <= 1.05 * count < 1.15 * count < padded(1024)
