"""Registration with `torch.library`: schemas, tracing, compilation, checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fiber import kernels
from fiber.kernels.cross_attention import naive as naive_cross
from fiber.kernels.cross_attention import registered as registered_cross
from fiber.kernels.cross_attention import torch_path as torch_cross
from fiber.kernels.cross_attention.key_mask import Dropout
from fiber.kernels.window_attention import naive as naive_windows
from fiber.kernels.window_attention import registered as registered_windows
from fiber.kernels.window_attention import torch_path as torch_windows

pytestmark = pytest.mark.oldest

SIZES = torch.tensor([[5, 6], [2, 5]])
LENGTHS = torch.tensor([5, 2])
MASK = torch.tensor([[True, False, True, True, False], [False] * 5])
SEED = torch.tensor([7])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def window_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    # The table and the bias are parameters, which stay in float32 under autocast.
    return random(2, 5, 6, 3, 2, 4, dtype=dtype), random(25, 2), random(3, 2, 4)


def cross_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(random(2, tokens, 2, 4, dtype=dtype) for tokens in (6, 5, 5))


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole maps", "valid sizes"])
def test_window_attention_passes_opcheck(sizes):
    torch.library.opcheck(registered_windows.window_attention, (*window_inputs(), 3, 1, sizes))


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole maps", "valid sizes"])
def test_window_attention_backward_passes_opcheck(sizes):
    inputs = [tensor.detach() for tensor in window_inputs()]
    out = registered_windows.window_attention(*inputs, 3, 1, sizes)
    torch.library.opcheck(
        registered_windows.window_attention_backward, (torch.ones_like(out), *inputs, 3, 1, sizes)
    )


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole maps", "valid sizes"])
@pytest.mark.parametrize("windows_of_strip", [1, 3, 100])
@pytest.mark.parametrize("windows_of_piece", [1, 3])
def test_results_do_not_depend_on_strips_and_pieces(
    monkeypatch, windows_of_strip, windows_of_piece, sizes
):
    """Strips and pieces may start and end at any window, with or without seams."""
    found = []
    # Bytes of one window's outputs and weights, for 9 tokens and 2 heads of dim 4.
    limits = {"STRIP_BYTES": 9 * 2 * 4 * 4, "PIECE_BYTES": 9 * 9 * 2 * 4}
    for counts in ((100, 100), (windows_of_strip, windows_of_piece)):
        for (name, size), count in zip(limits.items(), counts, strict=True):
            monkeypatch.setattr(torch_windows, name, size * count)
        inputs = window_inputs()
        out = kernels.window_attention(*inputs, window_size=3, shift=1, valid_sizes=sizes)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("operation", ["windows", "cross"])
def test_double_backward_raises(operation):
    if operation == "windows":
        inputs = window_inputs()
        out = kernels.window_attention(*inputs, window_size=3, shift=1)
    else:
        inputs = cross_inputs()
        out = kernels.text_to_image_attention(*inputs)
    (first,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


CROSS = {
    "every key": (None, None, None, None, 0.0, None),
    "lengths": (LENGTHS, None, None, None, 0.0, None),
    "a mask": (None, MASK, None, None, 0.0, None),
    "valid sizes": (None, None, torch.tensor([[1, 5], [1, 2]]), [1, 5], 0.0, None),
    "dropout": (LENGTHS, None, None, None, 0.5, SEED),
}


@pytest.mark.parametrize("arguments", CROSS.values(), ids=CROSS.keys())
def test_cross_attention_passes_opcheck(arguments):
    torch.library.opcheck(registered_cross.cross_attention, (*cross_inputs(), *arguments))
    inputs = [tensor.detach() for tensor in cross_inputs()]
    saved = registered_cross.cross_attention(*inputs, *arguments)
    torch.library.opcheck(
        registered_cross.cross_attention_backward,
        (torch.ones_like(saved[0]), *inputs, *saved, *arguments),
    )


def test_dispatch_modes_see_operations():
    """FLOP counters, memory trackers and tracing use torch's dispatch modes."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Watch():
        everything(*window_inputs(), random(2, 5, 2, 4)).sum().backward()
    for name in ("window_attention", "cross_attention"):
        assert f"fiber.{name}.default" in seen
        assert f"fiber.{name}_backward.default" in seen


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_missing_output_gradient_gives_no_gradients(backend):
    class Ends(torch.autograd.Function):
        @staticmethod
        def forward(ctx, read):
            return read.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    inputs = [random(1, tokens, 2, 16) for tokens in (3, 4, 4)]
    with kernels.use_backend(backend):
        Ends.apply(kernels.image_to_text_attention(*inputs)).sum().backward()
    assert all(tensor.grad is None for tensor in inputs)


def everything(qkv: Tensor, table: Tensor, bias: Tensor, text: Tensor) -> Tensor:
    """Run all operations in a chain."""
    read = kernels.window_attention(qkv, table, bias, window_size=3, shift=1, valid_sizes=SIZES)
    tokens = read.flatten(1, 2)
    of_text = kernels.image_to_text_attention(tokens, text, text, LENGTHS)
    of_image = kernels.text_to_image_attention(
        text, of_text, tokens, valid_sizes=SIZES, map_size=(5, 6), dropout_p=0.5
    )
    return kernels.gated_residual(
        text.flatten(2), of_image.flatten(2), torch.eye(8), torch.ones(8), torch.tensor([0.5])
    )


def test_full_graph_compilation_matches_eager():
    inputs = (*window_inputs(), random(2, 5, 2, 4))
    results = []
    for run in (everything, torch.compile(everything, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        out = run(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_activation_checkpointing_gives_the_same_gradients():
    inputs = (*window_inputs(), random(2, 5, 2, 4))
    results = []
    for recomputed in (False, True):
        torch.manual_seed(3)
        out = (
            checkpoint(everything, *inputs, use_reentrant=False)
            if recomputed
            else everything(*inputs)
        )
        results.append(torch.autograd.grad(out.square().sum(), inputs))
    # Dropout repeats its mask, because the seed is drawn inside the block.
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_accurate_as_the_reference(dtype):
    """The error is at most twice that of the reference in the same dtype, or one rounding."""
    qkv, table, bias = (each.detach().to(dtype) for each in window_inputs())
    q, k, v = (each.detach() for each in cross_inputs(dtype))
    mask = torch.arange(5) < LENGTHS[:, None]

    def run(window, cross, wanted: torch.dtype) -> list[Tensor]:
        inputs = [each.to(wanted).requires_grad_() for each in (qkv, table, bias, q, k, v)]
        read, crossed = window(*inputs[:3], window_size=3, shift=1), cross(*inputs[3:])
        return [read, crossed, *torch.autograd.grad(read.sum() + crossed.sum(), inputs)]

    loops = naive_windows.window_attention, lambda q, k, v: naive_cross.attention(q, k, v, mask)
    ours = (
        kernels.window_attention,
        lambda q, k, v: kernels.image_to_text_attention(q, k, v, LENGTHS),
    )
    exact, plain, got = (
        run(*each) for each in ((*loops, torch.float64), (*loops, dtype), (*ours, dtype))
    )
    for one, other, wanted in zip(got, plain, exact, strict=True):
        floor = torch.finfo(dtype).eps * wanted.abs().max()
        off = (one.double() - wanted).abs().max()
        assert off <= torch.maximum(2 * (other.double() - wanted).abs().max(), floor)


def test_dropout_is_determined_by_its_seed():
    q, k, v = cross_inputs()
    arguments = (LENGTHS, None, None, None, 0.25)
    first, _ = registered_cross.cross_attention(q, k, v, *arguments, SEED)
    again, _ = registered_cross.cross_attention(q, k, v, *arguments, SEED)
    other, _ = registered_cross.cross_attention(q, k, v, *arguments, SEED + 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    weights = torch.zeros(2, 2, 6, 5)
    kept = torch_cross._draw_kept(weights, Dropout(0.25, SEED))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 2
    scores = scores.masked_fill(torch.arange(5) >= LENGTHS[:, None, None, None], -torch.inf)
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1) * kept, v)
    direction = torch.randn(first.shape, generator=torch.manual_seed(1))
    torch.testing.assert_close(first, expected)
    for got, wanted in zip(
        torch.autograd.grad(first, (q, k, v), direction),
        torch.autograd.grad(expected, (q, k, v), direction),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_dropout_rate_matches_its_probability():
    kept = torch_cross._draw_kept(torch.zeros(64, 4, 50, 50), Dropout(0.1, SEED))
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    dropped, count = (kept == 0).float().mean().item(), kept.numel()
    # Five standard deviations of the mean of that many coin flips.
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / count) ** 0.5
