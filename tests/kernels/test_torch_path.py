"""`torch_path.py` matches the reference, `naive.py`: outputs and all gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fiber import kernels
from fiber.kernels.cross_attention import naive as naive_cross
from fiber.kernels.cross_attention import torch_path as torch_cross
from fiber.kernels.cross_attention.key_mask import NO_DROPOUT, KeyMask
from fiber.kernels.gated_residual import naive as naive_residual
from fiber.kernels.window_attention import naive as naive_windows
from fiber.kernels.window_attention import torch_path as torch_windows
from fiber.kernels.window_attention.window_spec import WindowSpec

pytestmark = pytest.mark.oldest

# Sums of at most 400 float64 terms of size 1, in a different order.
TOLERANCE = 1e-12


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def assert_equal_with_gradients(ours: Tensor, oracles: Tensor, inputs: list[Tensor]) -> None:
    assert ours.shape == oracles.shape
    assert (ours - oracles).abs().max() <= TOLERANCE
    direction = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.manual_seed(5))
    for tensor, got, expected in zip(
        inputs,
        torch.autograd.grad(ours, inputs, direction, allow_unused=True),
        torch.autograd.grad(oracles, inputs, direction, allow_unused=True),
        strict=True,
    ):
        # Unused inputs may have no gradient or a zero gradient.
        got = torch.zeros_like(tensor) if got is None else got
        expected = torch.zeros_like(tensor) if expected is None else expected
        assert (got - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item())


WINDOW_CASES = {
    "one token": (1, 1, 1, 1, 0, 1, 2),
    "one token in a window of 3": (1, 1, 1, 3, 0, 1, 2),
    "one token, shifted": (1, 1, 1, 3, 1, 1, 2),
    "no padding": (2, 4, 4, 2, 0, 2, 3),
    "no padding, shifted": (2, 4, 4, 2, 1, 2, 3),
    "odd map": (1, 5, 7, 3, 0, 2, 2),
    "odd map, shifted": (1, 5, 7, 3, 1, 2, 2),
    "map smaller than the window, shifted": (1, 2, 3, 4, 2, 1, 2),
    "one window, shifted": (1, 4, 4, 4, 2, 1, 2),
    "one row of windows": (1, 2, 8, 2, 1, 1, 1),
    "one column of windows": (2, 9, 3, 3, 1, 2, 1),
}


@pytest.mark.parametrize("case", WINDOW_CASES.values(), ids=WINDOW_CASES.keys())
def test_window_attention_matches_the_reference(case):
    batch, height, width, window_size, shift, heads, head_width = case
    qkv = random(batch, height, width, 3, heads, head_width)
    table = random((2 * window_size - 1) ** 2, heads)
    qkv_bias = random(3, heads, head_width)
    arguments = {"window_size": window_size, "shift": shift}
    ours = kernels.window_attention(qkv, table, qkv_bias, **arguments)
    expected = naive_windows.window_attention(qkv, table, qkv_bias, **arguments)
    assert_equal_with_gradients(ours, expected, [qkv, table, qkv_bias])


@pytest.mark.parametrize("case", WINDOW_CASES.values(), ids=WINDOW_CASES.keys())
def test_window_attention_is_the_same_without_gradients(case):
    batch, height, width, window_size, shift, heads, head_width = case
    qkv = random(batch, height, width, 3, heads, head_width)
    table, qkv_bias = random((2 * window_size - 1) ** 2, heads), random(3, heads, head_width)
    arguments = {"window_size": window_size, "shift": shift}
    with_gradients = kernels.window_attention(qkv, table, qkv_bias, **arguments)
    with torch.no_grad():
        without = kernels.window_attention(qkv, table, qkv_bias, **arguments)
    assert (with_gradients - without).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shift", [0, 1])
def test_per_sample_valid_sizes(shift):
    qkv, table, qkv_bias = random(3, 5, 6, 3, 1, 2), random(25, 1), random(3, 1, 2)
    sizes = torch.tensor([[5, 6], [2, 5], [0, 0]])
    arguments = {"window_size": 3, "shift": shift, "valid_sizes": sizes}
    ours = kernels.window_attention(qkv, table, qkv_bias, **arguments)
    expected = naive_windows.window_attention(qkv, table, qkv_bias, **arguments)
    assert_equal_with_gradients(ours, expected, [qkv, table, qkv_bias])


def test_padding_does_not_leak():
    qkv, table, qkv_bias = random(1, 4, 4, 3, 1, 2), random(9, 1), random(3, 1, 2)
    corrupted = qkv.detach().clone()
    corrupted[:, :, 3:] = float("nan")
    arguments = {"window_size": 2, "shift": 1, "valid_sizes": torch.tensor([[4, 3]])}
    ours = kernels.window_attention(corrupted, table, qkv_bias, **arguments)
    clean = kernels.window_attention(qkv, table, qkv_bias, **arguments)
    assert torch.equal(ours, clean)


def test_window_attention_with_an_empty_batch():
    out = kernels.window_attention(
        random(0, 4, 4, 3, 2, 3), random(9, 2), random(3, 2, 3), window_size=2, shift=1
    )
    assert out.shape == (0, 4, 4, 2, 3)


def test_window_attention_gradcheck():
    qkv, table, qkv_bias = random(1, 3, 2, 3, 1, 2), random(9, 1), random(3, 1, 2)
    assert torch.autograd.gradcheck(
        lambda *tensors: kernels.window_attention(*tensors, window_size=2, shift=1),
        (qkv, table, qkv_bias),
    )


def test_window_attention_accepts_views():
    """A transposed map gives the same result as a contiguous one."""
    qkv, table, qkv_bias = random(2, 6, 4, 3, 2, 3), random(9, 2), random(3, 2, 3)
    view = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    arguments = {"window_size": 2, "shift": 0}
    assert torch.equal(
        kernels.window_attention(view, table, qkv_bias, **arguments),
        kernels.window_attention(qkv, table, qkv_bias, **arguments),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_window_attention_in_half_precision(dtype):
    """The error is within that of rounding the inputs and the output."""
    qkv, table, qkv_bias = random(1, 4, 4, 3, 2, 16), random(9, 2), random(3, 2, 16)
    exact = kernels.window_attention(qkv, table, qkv_bias, window_size=2, shift=1)
    half = [tensor.detach().to(dtype).requires_grad_() for tensor in (qkv, table, qkv_bias)]
    ours = kernels.window_attention(*half, window_size=2, shift=1)
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()


LENGTH_CASES = {"one key": [1, 1], "all keys": [5, 5], "ragged": [5, 2], "none": [0, 3]}


@pytest.mark.parametrize("lengths", LENGTH_CASES.values(), ids=LENGTH_CASES.keys())
def test_image_to_text_matches_the_reference(lengths):
    q, k, v = random(2, 7, 2, 3), random(2, 5, 2, 3, seed=1), random(2, 5, 2, 3, seed=2)
    key_lengths = torch.tensor(lengths)
    mask = torch.arange(5) < key_lengths[:, None]
    expected = naive_cross.attention(q, k, v, mask)
    by_length = kernels.image_to_text_attention(q, k, v, key_lengths)
    assert_equal_with_gradients(by_length, expected, [q, k, v])
    by_mask = kernels.image_to_text_attention(q, k, v, key_mask=mask)
    assert_equal_with_gradients(by_mask, naive_cross.attention(q, k, v, mask), [q, k, v])


def test_image_to_text_with_gaps_in_the_mask():
    q, k, v = random(2, 3, 1, 2), random(2, 4, 1, 2, seed=1), random(2, 4, 1, 2, seed=2)
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    ours = kernels.image_to_text_attention(q, k, v, key_mask=mask)
    assert_equal_with_gradients(ours, naive_cross.attention(q, k, v, mask), [q, k, v])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masked_keys_do_not_leak(dtype):
    q, k, v = (random(2, 5, 2, 4, seed=s).detach().to(dtype) for s in range(3))
    lengths = torch.tensor([3, 0])
    clean = kernels.image_to_text_attention(q, k, v, lengths)
    corrupted_k, corrupted_v = k.clone(), v.clone()
    for corrupted in (corrupted_k, corrupted_v):
        corrupted[0, 3:] = float("nan")
        corrupted[1] = float("inf")
    assert torch.equal(kernels.image_to_text_attention(q, corrupted_k, corrupted_v, lengths), clean)
    assert (clean[1] == 0).all()


def test_text_to_image_matches_the_reference():
    q, k, v = random(2, 5, 2, 3), random(2, 12, 2, 3, seed=1), random(2, 12, 2, 3, seed=2)
    everything = torch.ones(2, 12, dtype=torch.bool)
    ours = kernels.text_to_image_attention(q, k, v)
    assert_equal_with_gradients(ours, naive_cross.attention(q, k, v, everything), [q, k, v])
    sizes = torch.tensor([[2, 3], [3, 4]])
    inside = torch.zeros(2, 3, 4, dtype=torch.bool)
    inside[0, :2, :3] = True
    inside[1] = True
    ours = kernels.text_to_image_attention(q, k, v, valid_sizes=sizes, map_size=(3, 4))
    expected = naive_cross.attention(q, k, v, inside.flatten(1))
    assert_equal_with_gradients(ours, expected, [q, k, v])


def test_text_to_image_dropout_preserves_the_mean():
    torch.manual_seed(0)
    q, k = random(1, 1, 1, 2).detach(), random(1, 8, 1, 2, seed=1).detach()
    v = torch.ones(1, 8, 1, 2, dtype=torch.float64)
    draws = torch.stack(
        [kernels.text_to_image_attention(q, k, v, dropout_p=0.5) for _ in range(2000)]
    )
    assert draws.std() > 0.1
    # Standard error of the mean of 2000 draws with a standard deviation below 1.
    assert abs(draws.mean() - 1.0) < 4 / 2000**0.5


@pytest.mark.parametrize("gate", [0.0, 0.7])
def test_gated_residual_matches_the_reference(gate):
    x, y = random(2, 3, 4), random(2, 3, 5)
    weight, bias = random(4, 5), random(4)
    scale = torch.tensor([gate], dtype=torch.float64, requires_grad=True)
    inputs = [x, y, weight, bias, scale]
    ours = kernels.gated_residual(*inputs)
    assert_equal_with_gradients(ours, naive_residual.gated_residual(*inputs), inputs)


def test_caches_survive_inference_mode():
    """Indices cached in inference mode must not break a later training step."""
    # No other test caches the indices of this window size.
    qkv, table, qkv_bias = random(1, 14, 14, 3, 1, 2), random(169, 1), random(3, 1, 2)
    with torch.inference_mode():
        kernels.window_attention(qkv, table, qkv_bias, window_size=7, shift=3)
    kernels.window_attention(qkv, table, qkv_bias, window_size=7, shift=3).sum().backward()
    assert table.grad is not None


def test_pytorch_backend_stays_on_the_input_device():
    """On the meta device, an intermediate CPU tensor is an error, as on a GPU."""

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    windows = meta(2, 5, 6, 3, 2, 4), meta(25, 2), meta(3, 2, 4)
    spec = WindowSpec(3, 1)
    read = torch_windows.forward(*windows, spec)
    found = torch_windows.backward(read, *windows, spec)
    assert {each.device.type for each in (read, *found)} == {"meta"}
    assert [each.shape for each in found] == [each.shape for each in windows]
    q, k, v = meta(2, 6, 2, 4), meta(2, 5, 2, 4), meta(2, 5, 2, 4)
    mask = torch.empty(2, 5, dtype=torch.bool, device="meta")
    keys = KeyMask(mask=mask)
    out, logsumexp = torch_cross.forward(q, k, v, keys, NO_DROPOUT)
    found = torch_cross.backward(out, q, k, v, out, logsumexp, keys, NO_DROPOUT)
    assert {each.device.type for each in (out, logsumexp, *found)} == {"meta"}
    assert [each.shape for each in found] == [q.shape, k.shape, v.shape]
