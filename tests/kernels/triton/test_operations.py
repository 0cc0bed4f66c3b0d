"""Public operations with the Triton backend match plain PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fiber import kernels
from fiber.kernels.cross_attention import triton_launch as cross_launch
from fiber.kernels.runtime import dispatch
from fiber.kernels.window_attention import triton_launch as window_launch

SIZES = torch.tensor([[5, 6], [2, 5]])
LENGTHS = torch.tensor([5, 2])
#: Products of at most 30 float64 terms of size 1, one after another through three operations.
TOLERANCE = 1e-12


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def everything(qkv: Tensor, table: Tensor, bias: Tensor, text: Tensor, gate: Tensor) -> Tensor:
    read = kernels.window_attention(qkv, table, bias, window_size=3, shift=1, valid_sizes=SIZES)
    tokens = read.flatten(1, 2)
    of_text = kernels.image_to_text_attention(tokens, text, text, LENGTHS)
    of_image = kernels.text_to_image_attention(
        text, of_text, tokens, valid_sizes=SIZES, map_size=(5, 6)
    )
    weight = torch.arange(64, dtype=torch.float64).view(8, 8) / 64
    return kernels.gated_residual(
        text.flatten(2), of_image.flatten(2), weight, torch.ones(8, dtype=torch.float64), gate
    )


def test_kernels_match_plain_pytorch():
    inputs = (
        random(2, 5, 6, 3, 2, 4), random(25, 2), random(3, 2, 4), random(2, 5, 2, 4),
        torch.tensor([0.5], dtype=torch.float64, requires_grad=True),
    )  # fmt: skip
    results = []
    for backend in ("reference", "triton"):
        with kernels.use_backend(backend), warnings.catch_warnings():
            # A refused call would compare plain PyTorch with itself.
            warnings.simplefilter("error")
            # Raised in the interpreter of Triton before 3.7, by NumPy 1.25 to 2.3.
            warnings.filterwarnings("ignore", message="Conversion of an array with ndim > 0")
            out = everything(*inputs)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for plain, triton in zip(*results, strict=True):
        assert (plain - triton).abs().max() <= TOLERANCE * plain.abs().max().clamp(min=1)
    assert not torch.equal(results[0][1], results[1][1]), "the two never agree to the last bit"


def test_unsupported_calls_fall_back_to_pytorch():
    dispatch._warn_once.cache_clear()
    q, k, v = (torch.randn(1, tokens, 1, 160) for tokens in (3, 4, 4))
    with kernels.use_backend("reference"):
        expected = kernels.image_to_text_attention(q, k, v)
    with kernels.use_backend("triton"), pytest.warns(UserWarning, match="head dim 160"):
        assert torch.equal(kernels.image_to_text_attention(q, k, v), expected)


def test_atomics_are_used_only_if_allowed(monkeypatch):
    inputs = random(1, 4, 4, 3, 1, 4), random(9, 1), random(3, 1, 4)
    given = []
    plan_backward = window_launch.plan_backward

    def recorded(*arguments: Any, atomic_bias: bool) -> Any:
        given.append(atomic_bias)
        return plan_backward(*arguments, atomic_bias=atomic_bias)

    monkeypatch.setattr(window_launch, "plan_backward", recorded)

    def gradients() -> tuple[Tensor, ...]:
        out = kernels.window_attention(*inputs, window_size=2, shift=1)
        return torch.autograd.grad(out.square().sum(), inputs)

    with kernels.use_backend("triton"):
        exact = gradients()
        with kernels.use_atomics(True):
            allowed = gradients()
        gradients()
    assert given == [False, True, False]
    for one, other in zip(exact, allowed, strict=True):
        torch.testing.assert_close(other, one)


MASKS = {
    "with holes": [[True, False, True, True, False], [False, True, False, False, False]],
    "fully masked sample": [[False] * 5, [True] * 5],
    "only the last": [[False, False, False, False, True], [True, False, False, False, True]],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("queries", [3, 40], ids=["few queries", "many queries"])
def test_arbitrary_masks(mask, queries):
    """Masked keys are NaN, which must not propagate."""
    mask = torch.tensor(mask)
    q, k, v = (random(2, tokens, 2, 4) for tokens in (queries, 5, 5))
    with torch.no_grad():
        k[~mask] = v[~mask] = torch.nan
    results = []
    for backend in ("reference", "triton"):
        with kernels.use_backend(backend):
            out = kernels.image_to_text_attention(q, k, v, key_mask=mask)
            results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for plain, triton in zip(*results, strict=True):
        assert (plain - triton).abs().max() <= TOLERANCE * plain.abs().max().clamp(min=1)


def test_masks_that_span_several_key_tiles(monkeypatch):
    """Fully masked tiles come before, between and after the others."""
    sizes = {"block_queries": 16, "block_keys": 16, "num_warps": 1, "num_stages": 1}
    monkeypatch.setattr(cross_launch, "tile", lambda *_, **__: dict(sizes))
    mask = torch.zeros(2, 70, dtype=torch.bool)
    mask[0, 18:22] = mask[0, 50] = mask[1, 64] = True
    q, k, v = random(2, 20, 1, 4), random(2, 70, 1, 4), random(2, 70, 1, 4)
    results = []
    for backend in ("reference", "triton"):
        with kernels.use_backend(backend):
            out = kernels.image_to_text_attention(q, k, v, key_mask=mask)
            results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for plain, triton in zip(*results, strict=True):
        assert (plain - triton).abs().max() <= TOLERANCE * plain.abs().max().clamp(min=1)
