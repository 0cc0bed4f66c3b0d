"""Gradients that are averaged while backward runs: the mean over ranks, whatever a step reaches."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fiber.training.distributed import replicate
from fiber.training.distributed.processes import Processes
from fiber.training.distributed.replicate import Replicate
from tests.losses.two_ranks import run_on_two_ranks

pytestmark = pytest.mark.oldest

CPU = torch.device("cpu")
#: Steps of a task: the parameters that each backward pass of each rank reaches.
STEPS = {
    "the same in all steps": [[["ab", "bc"], ["ab", "bc"]]] * 3,
    "none": [[[], []]] * 2,
    "unused on one rank": [[["ab"], ["b"]]] * 3,
    "unused on every rank": [[["a"], ["a"]], [["a"], ["a"]], [["b"], ["b"]], [["a"], ["a"]]],
    "one more pass on one rank": [[["ab"], ["ab"]], [["ab"], ["ab"]], [["ab", "b"], ["ab"]]] * 2,
    "one pass less on one rank": [[["ab", "b"], ["ab", "b"]], [["ab"], ["ab", "b"]]] * 2,
    "another parameter on one rank": [[["a"], ["a"]], [["a"], ["ac"]], [["a"], ["ac"]]],
    "other orders": [[["a", "b", "c"], ["a", "b", "c"]], [["c", "b", "a"], ["a", "c", "b"]]] * 2,
    "nothing on one rank": [[["abc"], ["abc"]], [[], ["abc"]], [["abc"], []]],
}


class Toy(torch.nn.Module):
    """Three parameters of other sizes."""

    def __init__(self):
        super().__init__()
        for name, size in (("a", 3), ("b", 4), ("c", 5)):
            self.register_parameter(name, torch.nn.Parameter(torch.ones(size)))


def backward(model, names, scale):
    """Add `scale` * (1, 2, ...) to the gradient of each named parameter."""
    if names:
        parameters = [getattr(model, name) for name in names]
        sum((p * scale * torch.arange(1.0, len(p) + 1)).sum() for p in parameters).backward()


def timeout_of(group):
    return group._get_backend(CPU).options._timeout


def reduced(steps, bucket_elements):
    """Gradients of each step on a rank, None as an empty tensor."""
    replicate.BUCKET_ELEMENTS = bucket_elements
    rank, model = dist.get_rank(), Toy()
    processes = Processes(rank=rank, world_size=2, device=CPU, timeout_seconds=77)
    strategy = Replicate(processes)
    strategy.prepare(SimpleNamespace(model=model))
    assert timeout_of(strategy._group) == timedelta(seconds=77)
    found = []
    for passes in steps:
        model.zero_grad(set_to_none=True)
        strategy.begin_step("toy")
        for number, names in enumerate(passes[rank]):
            strategy.begin_backward(is_last=number == len(passes[rank]) - 1)
            backward(model, names, scale=1.0 + rank)
        strategy.reduce_gradients()
        found.append(
            [p.grad.clone() if p.grad is not None else torch.empty(0) for p in model.parameters()]
        )
    return found


def all_reduced(bucket_elements):
    return {name: reduced(steps, bucket_elements) for name, steps in STEPS.items()}


def expected(steps):
    """The same by adding up on one process."""
    found = []
    for passes in steps:
        model = Toy()
        for rank, own in enumerate(passes):
            for names in own:
                backward(model, names, scale=(1.0 + rank) / 2)
        found.append([p.grad if p.grad is not None else torch.empty(0) for p in model.parameters()])
    return found


@pytest.mark.parametrize("bucket_elements", [1, 8, 100], ids=lambda count: f"buckets of {count}")
def test_gradients_are_the_mean_over_ranks(tmp_path, bucket_elements):
    ranks = run_on_two_ranks(all_reduced, tmp_path, bucket_elements)
    for name, steps in STEPS.items():
        for number, gradients in enumerate(expected(steps)):
            for found in ranks:
                for got, want in zip(found[name][number], gradients, strict=True):
                    assert torch.equal(got, want), (name, number)


def summed_in_bfloat16(scales):
    model, rank = Toy(), dist.get_rank()
    strategy = Replicate(Processes(rank=rank, world_size=2, device=CPU), "bfloat16")
    strategy.prepare(SimpleNamespace(model=model))
    found = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        strategy.begin_step("toy")
        backward(model, "abc", scales[rank])
        strategy.reduce_gradients()
        found.append(torch.cat([p.grad for p in model.parameters()]))
    return found


def test_a_sum_in_bfloat16(tmp_path):
    scales = [1 / 3, 1 / 7]
    numbers = torch.cat([torch.arange(1.0, size + 1) for size in (3, 4, 5)])
    summed = sum((scale * numbers).bfloat16() for scale in scales)
    for found in run_on_two_ranks(summed_in_bfloat16, tmp_path, scales):
        for gradient in found:
            assert gradient.dtype == torch.float32
            assert torch.equal(gradient, summed.float() / 2)


def calls_of_steps(passes, steps):
    """Order of all-reduces (elements) and of ends of backward passes ("-")."""
    replicate.BUCKET_ELEMENTS = 1
    calls, real = [], dist.all_reduce

    def all_reduce(tensor, *args, **options):
        calls.append("flags" if tensor.dtype == torch.int32 else str(tensor.numel()))
        return real(tensor, *args, **options)

    dist.all_reduce = all_reduce
    model = Toy()
    strategy = Replicate(Processes(rank=dist.get_rank(), world_size=2, device=CPU))
    strategy.prepare(SimpleNamespace(model=model))
    for _ in range(steps):
        calls.append("step")
        model.zero_grad(set_to_none=True)
        strategy.begin_step("toy")
        for names in passes:
            backward(model, names, 1.0)
            calls.append("-")
        strategy.reduce_gradients()
    dist.all_reduce = real
    return calls


def test_buckets_are_sent_as_soon_as_no_pass_adds_to_them(tmp_path):
    calls = run_on_two_ranks(calls_of_steps, tmp_path, ["ab", "bc"], 3)
    assert calls[0] == calls[1]
    steps = " ".join(calls[0]).split("step")[1:]
    # First everything at the end, in the order in which gradients became complete; then `a` during
    # the first pass, and nothing twice.
    assert steps[0].split() in (
        ["-", "-", "flags", "3", *rest] for rest in (["4", "5"], ["5", "4"])
    )
    for step in steps[1:]:
        assert step.split() in (
            ["3", "-", *rest, "-", "flags"] for rest in (["4", "5"], ["5", "4"])
        )


def test_one_process_reduces_nothing():
    model = Toy()
    strategy = Replicate(Processes(rank=0, world_size=1, device=CPU))
    strategy.prepare(SimpleNamespace(model=model))
    strategy.begin_step("toy")
    backward(model, "a", 3.0)
    strategy.reduce_gradients()
    assert model.a.grad.tolist() == [3.0, 6.0, 9.0] and model.b.grad is None


def test_buckets_hold_everything_once_and_in_order(monkeypatch):
    monkeypatch.setattr(replicate, "BUCKET_ELEMENTS", 10)
    strategy = Replicate(Processes(rank=0, world_size=2, device=CPU))
    sizes = (4, 5, 3, 25, 1, 9, 10)
    strategy.parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    found = [bucket.members for bucket in strategy._buckets(range(7))]
    assert found == [[0, 1], [2], [3], [4, 5], [6]]
    assert list(strategy._buckets([])) == []
