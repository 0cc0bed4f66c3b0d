"""Memory accesses of the kernels, counted in Triton's interpreter.

A kernel that computes everything twice still has the right outputs. These tests check that every
output element is stored once and never loaded, and inputs are loaded as often as tiles require.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from fiber.kernels.cross_attention import triton_launch as cross_launch
from fiber.kernels.cross_attention.key_mask import KeyMask
from fiber.kernels.window_attention import triton_launch as window_launch
from fiber.kernels.window_attention.window_spec import WindowSpec


class Accesses:
    """Addresses of all elements that kernels load or store."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[np.ndarray]] = {"loads": [], "stores": []}

    def add(self, kind: str, pointers, mask) -> None:
        selected = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        self.addresses[kind].append(pointers.data[selected].astype(np.int64))

    def count(self, kind: str, tensor: Tensor) -> Tensor:
        """Count the accesses of each element of a contiguous tensor."""
        assert tensor.is_contiguous()
        offsets = np.concatenate(self.addresses[kind]) - tensor.data_ptr()
        offsets = offsets[(offsets >= 0) & (offsets < tensor.numel() * tensor.element_size())]
        counts = np.bincount(offsets // tensor.element_size(), minlength=tensor.numel())
        return torch.from_numpy(counts).view(tensor.shape)


@pytest.fixture
def accesses(monkeypatch):
    found = Accesses()
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def counted_load(pointers, mask, *arguments):
        found.add("loads", pointers, mask)
        return load(pointers, mask, *arguments)

    def counted_store(pointers, value, mask, *arguments):
        found.add("stores", pointers, mask)
        return store(pointers, value, mask, *arguments)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", counted_load)
    monkeypatch.setattr(interpreter_builder, "create_masked_store", counted_store)
    return found


def run(launches) -> None:
    for launch in launches:
        launch.run()


def assert_written_once(accesses: Accesses, *outputs: Tensor) -> None:
    for output in outputs:
        assert (accesses.count("stores", output) == 1).all()
        assert (accesses.count("loads", output) == 0).all()


WINDOWS = {
    "whole windows": ((2, 8, 8), 4, 0, None),
    "shifted": ((1, 8, 12), 4, 2, None),
    "odd map": ((1, 5, 7), 4, 1, None),
    "valid sizes": ((2, 5, 9), 4, 1, [[5, 9], [3, 4]]),
}
BOTH = pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "tiles"])
EACH_WINDOW_CALL = pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS.keys())


def window_inputs(case) -> tuple[Tensor, Tensor, Tensor, WindowSpec, Tensor]:
    """Inputs, and a mask (B, H, W) of the tokens in the valid regions."""
    (batch, height, width), window_size, shift, sizes = case
    inputs = (
        torch.randn(batch, height, width, 3, 2, 16),
        torch.randn((2 * window_size - 1) ** 2, 2),
        torch.randn(3, 2, 16),
    )
    valid = torch.ones(batch, height, width, dtype=torch.bool)
    for sample, (rows, columns) in zip(valid, sizes or [], strict=False):
        sample[rows:] = False
        sample[:, columns:] = False
    valid_sizes = None if sizes is None else torch.tensor(sizes)
    return *inputs, WindowSpec(window_size, shift, valid_sizes), valid


def assert_loads(counts: Tensor, valid: Tensor, times: int) -> None:
    """Check the loads of each element of tokens (B, H, W, ...); none outside valid regions."""
    expected = (times * valid).reshape(*valid.shape, *[1] * (counts.dim() - 3))
    assert torch.equal(counts, expected.expand_as(counts))


@BOTH
@EACH_WINDOW_CALL
def test_window_attention_forward(accesses, case, whole):
    *inputs, valid = window_inputs(case)
    launches, out = window_launch.plan_forward(*inputs, whole=whole)
    run(launches)
    assert_written_once(accesses, out)
    qkv = accesses.count("loads", inputs[0])
    assert_loads(qkv[:, :, :, 0], valid, 1)
    # Keys and values are loaded by every program that handles queries of the window.
    (*_, attend) = launches
    constants = attend.constants
    programs = attend.grid[2] if whole else constants["STORED"] // constants["ROWS"]
    assert_loads(qkv[:, :, :, 1:], valid, programs)


@BOTH
@EACH_WINDOW_CALL
def test_window_attention_backward(accesses, case, whole):
    *inputs, valid = window_inputs(case)
    grad = torch.randn(inputs[0][:, :, :, 0].shape)
    launches, gradients = window_launch.plan_backward(grad, *inputs, whole=whole)
    run(launches)
    assert_written_once(accesses, gradients[0], gradients[1])
    if whole:
        assert_loads(accesses.count("loads", inputs[0]), valid, 1)
        assert_loads(accesses.count("loads", grad), valid, 1)


CROSS = {
    "short keys": (40, 12, KeyMask(lengths=torch.tensor([12, 5]))),
    "short queries": (12, 40, KeyMask(lengths=torch.tensor([40, 7]))),
    "both long": (40, 50, KeyMask()),
    "valid sizes": (20, 20, KeyMask(sizes=torch.tensor([[4, 5], [2, 3]]), map_size=(4, 5))),
}


@pytest.mark.parametrize("case", CROSS.values(), ids=CROSS.keys())
def test_cross_attention(accesses, monkeypatch, case):
    tile = {"block_queries": 16, "block_keys": 16, "num_warps": 1, "num_stages": 1}
    monkeypatch.setattr(cross_launch, "tile", lambda *_, **__: dict(tile))
    # Loops are not split, so no kernel reads the outputs of another.
    monkeypatch.setattr(cross_launch, "PROGRAMS", 1)
    queries, num_keys, keys = case
    q, grad = (torch.randn(2, queries, 2, 16) for _ in range(2))
    k, v = (torch.randn(2, num_keys, 2, 16) for _ in range(2))
    launches, (out, logsumexp) = cross_launch.plan_forward(q, k, v, keys)
    run(launches)
    assert_written_once(accesses, out, logsumexp)
    assert (accesses.count("loads", q) == 1).all()
    mask = keys.as_bool(num_keys)
    read = torch.ones(2, num_keys, dtype=torch.bool) if mask is None else mask
    query_tiles = -(-queries // 16)
    for tensor in (k, v):
        expected = (query_tiles * read)[..., None, None].expand_as(tensor)
        assert torch.equal(accesses.count("loads", tensor), expected)
    launches, gradients = cross_launch.plan_backward(grad, q, k, v, out, logsumexp, keys)
    run(launches)
    assert_written_once(accesses, *gradients)
