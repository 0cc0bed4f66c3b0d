"""Rust attention is as accurate as float32 PyTorch, relative to `naive.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fiber import kernels
from fiber.kernels.cross_attention import naive as naive_cross
from fiber.kernels.cross_attention import native as native_cross
from fiber.kernels.cross_attention import registered as registered_cross
from fiber.kernels.cross_attention import torch_path as torch_cross
from fiber.kernels.runtime import dispatch, native_arrays
from fiber.kernels.window_attention import naive as naive_windows
from fiber.kernels.window_attention import native as native_windows
from fiber.kernels.window_attention import registered as registered_windows
from fiber.kernels.window_attention import torch_path as torch_windows

# Errors below this fraction of the largest element, a few units in the last place, are ignored.
FLOOR = 1e-6

WINDOWS = {
    "one token": (1, 1, 1, 1, 0, 1, 16, None),
    "one token in a shifted window of 3": (1, 1, 1, 3, 1, 1, 16, None),
    "odd map": (1, 5, 7, 3, 0, 2, 16, None),
    "odd map, shifted": (2, 5, 7, 3, 1, 3, 48, None),
    "map smaller than the window": (1, 2, 3, 4, 2, 1, 16, None),
    "valid sizes": (4, 5, 9, 4, 1, 2, 32, [[5, 9], [3, 4], [0, 7], [2, 0]]),
    "a head dim of one": (1, 4, 5, 3, 1, 2, 1, None),
    "a head dim of 20": (3, 5, 7, 3, 2, 2, 20, [[5, 7], [2, 4], [0, 1]]),
    "a head dim of 31": (1, 6, 6, 6, 0, 3, 31, None),
}
# The reference loops would take minutes, so these are compared with double-precision PyTorch.
LARGE_WINDOWS = {
    "windows of 7": (1, 14, 14, 7, 3, 17, 16, None),
    "windows of 12": (3, 13, 24, 12, 6, 2, 32, [[13, 24], [12, 12], [1, 13]]),
    "windows of 18": (1, 18, 19, 18, 9, 1, 32, None),
}
CROSS = {
    "one query, one key": (1, 1, 1, 1, 16, None, None),
    "every key": (2, 11, 37, 3, 64, None, None),
    "one key more than a register": (2, 9, 17, 2, 32, None, None),
    "many queries": (1, 300, 5, 2, 16, None, None),
    "many keys": (2, 19, 300, 2, 64, None, None),
    "many keys, lengths": (3, 10, 400, 2, 32, [400, 97, 300], None),
    "lengths": (4, 11, 20, 2, 32, [20, 1, 0, 16], None),
    "a head dim of 20": (3, 36, 19, 4, 20, [19, 0, 7], None),
    "a head dim of 20, more keys": (2, 17, 36, 4, 20, None, None),
    "a head dim of 19, many keys": (2, 5, 700, 2, 19, None, None),
    "a mask": (3, 7, 6, 2, 32, None, [[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
}


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).requires_grad_()


def found(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients, converted to double precision."""
    out = run(*inputs)
    # Always drawn in float32: other dtypes would draw different numbers.
    direction = torch.randn(out.shape, generator=torch.manual_seed(5)).to(out.dtype)
    gradients = torch.autograd.grad(out, inputs, direction, allow_unused=True)
    return [
        torch.zeros_like(like, dtype=torch.float64) if value is None else value.detach().double()
        for value, like in zip((out, *gradients), (out, *inputs), strict=True)
    ]


def assert_as_near_as_plain_pytorch(
    ours: Callable[..., Tensor], oracles: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    # For large windows, `oracles` is PyTorch in double precision.
    exact = found(oracles, [tensor.detach().double().requires_grad_() for tensor in inputs])
    with kernels.use_backend("native"):
        native_values = found(ours, inputs)
    with kernels.use_backend("reference"):
        plain_values = found(ours, inputs)
    for value, plain, expected in zip(native_values, plain_values, exact, strict=True):
        floor = FLOOR * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        error = (value - expected).abs().max().item() if expected.numel() else 0.0
        of_plain = (plain - expected).abs().max().item() if expected.numel() else 0.0
        assert error <= max(2 * of_plain, floor)


@pytest.fixture
def no_reference(monkeypatch):
    """Fail if plain PyTorch runs."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("plain PyTorch runs")

    for module in (torch_windows, torch_cross):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows_match_the_reference(case):
    compare_windows(case, naive_windows.window_attention)


@pytest.mark.parametrize("case", LARGE_WINDOWS.values(), ids=LARGE_WINDOWS.keys())
def test_large_windows_match_double_precision(case):
    compare_windows(case, kernels.window_attention)


def compare_windows(case: tuple, exact: Callable[..., Tensor]) -> None:
    batch, height, width, window_size, shift, heads, head_width, sizes = case
    inputs = [
        random(batch, height, width, 3, heads, head_width),
        random((2 * window_size - 1) ** 2, heads),
        random(3, heads, head_width),
    ]
    options = {
        "window_size": window_size,
        "shift": shift,
        "valid_sizes": None if sizes is None else torch.tensor(sizes),
    }
    assert_as_near_as_plain_pytorch(
        lambda *tensors: kernels.window_attention(*tensors, **options),
        lambda *tensors: exact(*tensors, **options),
        inputs,
    )


@pytest.mark.parametrize("case", CROSS.values(), ids=CROSS.keys())
def test_cross_attention_matches_the_reference(case):
    batch, queries, keys, heads, width, lengths, mask = case
    inputs = [random(batch, tokens, heads, width) for tokens in (queries, keys, keys)]
    lengths = None if lengths is None else torch.tensor(lengths)
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    real = torch.ones(batch, keys, dtype=torch.bool)
    if lengths is not None:
        real = torch.arange(keys) < lengths[:, None]
    if mask is not None:
        real = mask
    assert_as_near_as_plain_pytorch(
        lambda *tensors: kernels.image_to_text_attention(*tensors, lengths, key_mask=mask),
        lambda *tensors: naive_cross.attention(*tensors, real),
        inputs,
    )


@pytest.mark.parametrize(("queries", "keys"), [(20, 7), (7, 20), (7, 400)])
def test_scores_with_a_wide_range(queries, keys):
    """Nearly all of the weight lies on one key, and logsumexps are large.

    Their last bit matters, so the mean error over several seeds is compared with PyTorch's.
    """
    real = torch.ones(2, keys, dtype=torch.bool)
    sums = {"native": [0.0] * 4, "reference": [0.0] * 4}
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            (size * torch.randn(2, tokens, 2, 32, generator=generator)).requires_grad_()
            for size, tokens in ((30.0, queries), (1.0, keys), (1.0, keys))
        ]
        doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
        exact = found(lambda *tensors: naive_cross.attention(*tensors, real), doubles)
        for backend, errors in sums.items():
            with kernels.use_backend(backend):
                values = found(kernels.text_to_image_attention, inputs)
            for i, (value, expected) in enumerate(zip(values, exact, strict=True)):
                errors[i] += ((value - expected).abs().max() / expected.abs().max()).item()
    for ours, plain in zip(*sums.values(), strict=True):
        assert ours <= 2 * plain


def test_text_to_image_with_valid_sizes():
    inputs = [random(2, tokens, 2, 64) for tokens in (3, 12, 12)]
    sizes = torch.tensor([[3, 4], [2, 3]])
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    real = (rows < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])
    assert_as_near_as_plain_pytorch(
        lambda *tensors: kernels.text_to_image_attention(
            *tensors, valid_sizes=sizes, map_size=(3, 4)
        ),
        lambda *tensors: naive_cross.attention(*tensors, real.flatten(1)),
        inputs,
    )


def test_native_backend_is_the_cpu_default(no_reference):
    qkv, table, bias = random(1, 5, 6, 3, 2, 16), random(25, 2), random(3, 2, 16)
    out = kernels.window_attention(qkv, table, bias, window_size=3, shift=1)
    text = random(1, 4, 2, 16)
    read = kernels.image_to_text_attention(out.flatten(1, 2), text, text)
    read.sum().backward()
    assert qkv.grad is not None and text.grad is not None


def test_dropout_falls_back_to_pytorch():
    inputs = [random(2, tokens, 2, 16) for tokens in (3, 5, 5)]
    values = []
    for backend in ("native", "reference"):
        torch.manual_seed(3)
        with kernels.use_backend(backend):
            values.append(
                found(lambda *each: kernels.text_to_image_attention(*each, dropout_p=0.5), inputs)
            )
    for ours, plain in zip(*values, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("forward", "backward"), [("native", "reference"), ("reference", "native")]
)
def test_logsumexp_is_interchangeable_between_backends(forward, backward):
    """The backward pass may use a different backend than the forward pass."""
    inputs = [random(2, tokens, 2, 32) for tokens in (9, 21, 21)]
    with kernels.use_backend(forward):
        out = kernels.image_to_text_attention(*inputs, torch.tensor([21, 4]))
    with kernels.use_backend(backward):
        got = torch.autograd.grad(out.square().sum(), inputs)
        plain = kernels.image_to_text_attention(*inputs, torch.tensor([21, 4]))
        expected = torch.autograd.grad(plain.square().sum(), inputs)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unread_elements_may_be_nan():
    qkv, table, bias = random(1, 4, 4, 3, 1, 16), random(9, 1), random(3, 1, 16)
    corrupted = qkv.detach().clone()
    corrupted[:, :, 3:] = float("nan")
    options = {"window_size": 2, "shift": 1, "valid_sizes": torch.tensor([[4, 3]])}
    clean = kernels.window_attention(qkv, table, bias, **options)
    assert torch.equal(kernels.window_attention(corrupted, table, bias, **options), clean)
    key = random(1, 5, 1, 16).detach()
    key[:, 2:] = float("nan")
    read = kernels.image_to_text_attention(qkv.flatten(1, 2)[:, :, 0], key, key, torch.tensor([2]))
    assert read.isfinite().all()


def test_nan_keys_propagate_to_the_output():
    key = random(1, 5, 1, 16).detach()
    key[:, 2] = float("nan")
    query = random(1, 3, 1, 16)
    assert kernels.image_to_text_attention(query, key, key).isnan().all()


def test_views_and_parameters_of_different_dtypes():
    qkv = random(2, 6, 4, 3, 2, 16).transpose(1, 2)
    table, bias = random(9, 2).double().detach().requires_grad_(), random(3, 2, 16)
    arguments = {"window_size": 2, "shift": 0}
    out = kernels.window_attention(qkv, table, bias, **arguments)
    plain = kernels.window_attention(qkv.contiguous(), table.float(), bias, **arguments)
    assert torch.equal(out, plain)
    (of_table,) = torch.autograd.grad(out.sum(), [table])
    assert of_table.dtype == torch.float64


def test_parameters_keep_a_storage_that_can_be_resized():
    # FSDP2 frees the storage of a gathered parameter and allocates it again.
    qkv, table, bias = random(2, 4, 4, 3, 2, 16), random(9, 2), random(3, 2, 16)
    query, key = random(2, 6, 2, 16), random(2, 5, 2, 16)
    parameters = [torch.nn.Parameter(tensor.detach()) for tensor in (qkv, table, bias, query, key)]
    out = kernels.window_attention(*parameters[:3], window_size=2, shift=0)
    out = out.sum() + kernels.text_to_image_attention(*parameters[3:], parameters[4]).sum()
    torch.autograd.grad(out, parameters)
    for parameter in parameters:
        parameter.data.untyped_storage().resize_(0)
        assert parameter.data.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("shape", [(0, 4, 4, 3, 2, 16), (2, 4, 4, 3, 0, 16)])
def test_empty_tensors(shape):
    qkv, table, bias = random(*shape), random(9, shape[4]), random(3, *shape[4:])
    out = kernels.window_attention(qkv, table, bias, window_size=2, shift=1)
    assert out.shape == (*shape[:3], *shape[4:])
    assert [each.shape for each in torch.autograd.grad(out.sum(), [qkv, table])] == [
        qkv.shape,
        table.shape,
    ]


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
def test_empty_queries_or_keys(queries, keys):
    inputs = [random(2, tokens, 2, 16) for tokens in (queries, keys, keys)]
    out = kernels.text_to_image_attention(*inputs)
    assert torch.equal(out, torch.zeros(2, queries, 2, 16))
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_operations_pass_opcheck():
    windows = (random(2, 5, 6, 3, 2, 16), random(25, 2), random(3, 2, 16), 3, 1, None)
    torch.library.opcheck(registered_windows.window_attention, windows)
    cross = [random(2, tokens, 2, 16) for tokens in (6, 5, 5)]
    arguments = (torch.tensor([5, 2]), None, None, None, 0.0, None)
    torch.library.opcheck(registered_cross.cross_attention, (*cross, *arguments))


def test_unsupported_inputs_are_refused():
    assert native_windows.refusal(random(1, 2, 2, 3, 1, 16), 2) is None
    assert native_windows.refusal(random(1, 2, 2, 3, 1, 5), 2) is None
    assert "float64" in native_cross.refusal(random(1, 2, 1, 16).double(), None)
    assert "meta" in native_arrays.refusal(torch.empty(1, device="meta"))


def test_unsupported_dtype_falls_back_and_warns_only_on_request():
    inputs = [random(1, tokens, 1, 24).double() for tokens in (3, 5, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = kernels.text_to_image_attention(*inputs)
    dispatch._warn_once.cache_clear()
    with kernels.use_backend("native"), pytest.warns(UserWarning, match="float64"):
        assert torch.equal(kernels.text_to_image_attention(*inputs), plain)
