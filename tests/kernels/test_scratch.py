"""Scratch memory: one block per thread, reused between calls, never read uninitialized."""

from __future__ import annotations

from threading import Thread

import torch

from fiber import kernels
from fiber.kernels.runtime import scratch
from fiber.kernels.runtime.scratch import Scratch

CPU = torch.device("cpu")


def test_tensors_are_consecutive_and_aligned():
    scratch._block(1024)  # large enough for both tensors
    space = Scratch(CPU)
    first = space.empty(3, 5, dtype=torch.float32)
    second = space.empty(7, dtype=torch.float64)
    assert (first.shape, second.shape) == ((3, 5), (7,))
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()
    assert second.data_ptr() - first.data_ptr() == 64


def test_borrowed_memory_is_freed():
    space = Scratch(CPU)
    kept = space.empty(4, dtype=torch.float32)
    with space.borrow():
        borrowed = space.empty(4, dtype=torch.float32)
    again = space.empty(4, dtype=torch.float32)
    assert borrowed.data_ptr() == again.data_ptr() != kept.data_ptr()


def test_growing_the_block_keeps_earlier_tensors():
    space = Scratch(CPU)
    size = 1 + len(scratch._block(0)) // 4
    first = space.empty(1, dtype=torch.float32).fill_(3)
    space.empty(size, dtype=torch.float32).fill_(4)
    assert first.item() == 3


def test_tensors_beyond_the_limit_are_newly_allocated():
    space = Scratch(CPU)
    before = len(scratch._block(0))
    large = space.empty(scratch.KEPT_BYTES + 1, dtype=torch.uint8)
    assert len(large) == scratch.KEPT_BYTES + 1
    assert len(scratch._block(0)) == before


def test_each_thread_has_its_own_block():
    found = [Scratch(CPU).empty(4, dtype=torch.float32)]
    thread = Thread(target=lambda: found.append(Scratch(CPU).empty(4, dtype=torch.float32)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != found[1].data_ptr()


def test_cast_to_the_same_dtype_does_not_copy():
    tensor = torch.arange(3.0)
    space = Scratch(CPU)
    assert space.cast(tensor, torch.float32) is tensor
    assert space.cast(tensor, torch.float64).tolist() == [0, 1, 2]


def test_attention_never_reads_stale_scratch_memory():
    found = []
    for left in (0.0, float("nan")):
        scratch._block(scratch.KEPT_BYTES).view(torch.float32).fill_(left)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(shape, generator=generator).requires_grad_()
            for shape in ((2, 5, 7, 3, 2, 4), (25, 2), (3, 2, 4))
        ]
        sizes = torch.tensor([[5, 7], [2, 4]])
        out = kernels.window_attention(*inputs, window_size=3, shift=1, valid_sizes=sizes)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for zeros, nans in zip(*found, strict=True):
        assert torch.equal(zeros, nans)
