"""Window attention in Triton's interpreter: outputs and all gradients, with both kinds of kernels.

Without bfloat16, for which the interpreter silently gives wrong results.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fiber.kernels.window_attention import naive, triton_bias, triton_launch
from fiber.kernels.window_attention.window_spec import WindowSpec

# Relative to the largest element: sums of a few hundred float64 terms in a different order.
DOUBLE = 1e-12
# Smaller errors, a few units in the last place of the largest element, are ignored.
FLOORS = {torch.float32: 1e-6, torch.float16: 1e-3}


class Case(NamedTuple):
    """One call: batch, map, window, shift, heads, head dim, valid sizes."""

    batch: int
    height: int
    width: int
    window_size: int
    shift: int
    heads: int
    head_width: int
    valid_sizes: list[list[int]] | None = None


CASES = {
    "one token": Case(1, 1, 1, 1, 0, 1, 2),
    "one token in a shifted window of 3": Case(1, 1, 1, 3, 1, 1, 2),
    "four windows": Case(1, 8, 8, 4, 0, 2, 16),
    "four windows, shifted": Case(1, 8, 8, 4, 2, 1, 32),
    "odd map, shifted": Case(2, 7, 10, 4, 1, 2, 8),
    "window larger than the map": Case(2, 3, 5, 7, 3, 1, 20),
    "windows of 7": Case(1, 7, 10, 7, 0, 1, 32),
    "windows of 5, shifted": Case(1, 5, 10, 5, 2, 1, 48),
    "valid sizes": Case(3, 5, 9, 4, 1, 1, 16, [[5, 9], [3, 4], [0, 7]]),
    "valid sizes, not shifted": Case(2, 4, 6, 4, 0, 2, 16, [[1, 6], [4, 3]]),
}
LARGE = {
    "windows of 7, shifted": Case(1, 14, 14, 7, 3, 2, 32),
    "windows of 12, shifted": Case(1, 24, 24, 12, 6, 1, 32),
    "windows of 12, odd map": Case(1, 13, 7, 12, 6, 1, 32),
    "window of 18": Case(1, 18, 18, 18, 9, 1, 32),
    "window of 18, odd map": Case(1, 17, 18, 18, 0, 1, 32),
    "windows of 9, valid sizes": Case(2, 10, 9, 9, 4, 1, 24, [[10, 9], [9, 5]]),
}


def inputs(case: Case, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """qkv, bias_table, qkv_bias, and a gradient of the output."""
    generator = torch.Generator().manual_seed(sum(case[:7]))
    heads, width = case.heads, case.head_width
    shapes = (
        (case.batch, case.height, case.width, 3, heads, width),
        ((2 * case.window_size - 1) ** 2, heads),
        (3, heads, width),
        (case.batch, case.height, case.width, heads, width),
    )
    made = [
        torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes
    ]
    return made[:3], made[3]


def sizes_of(case: Case) -> Tensor | None:
    return None if case.valid_sizes is None else torch.tensor(case.valid_sizes)


def run(
    case: Case, tensors: list[Tensor], grad: Tensor, whole: bool | None, atomic: bool = False
) -> list[Tensor]:
    """Output and gradients from the kernels."""
    arguments = (*tensors, WindowSpec(case.window_size, case.shift, sizes_of(case)))
    launches, out = triton_launch.plan_forward(*arguments, whole=whole)
    for launch in launches:
        launch.run()
    launches, gradients = triton_launch.plan_backward(
        grad, *arguments, atomic_bias=atomic, whole=whole
    )
    for launch in launches:
        launch.run()
    return [out, *gradients]


def with_gradients(function, case: Case, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients of `naive.window_attention` or of `formulation`."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(
        *leaves, window_size=case.window_size, shift=case.shift, valid_sizes=sizes_of(case)
    )
    gradients = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    filled = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return [out.detach(), *filled]


def formulation(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    *,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None = None,
) -> Tensor:
    """A vectorized reference, for windows that are too large for loops."""
    _, height, width, _, heads, head_width = qkv.shape
    w, samples = window_size, []
    ticks = torch.arange(w)
    # (w, w, w, w): table row for a query (y, x) and a key (y, x)
    row = (ticks[:, None, None, None] - ticks[:, None] + w - 1) * (2 * w - 1)
    row = row + ticks[:, None, None] - ticks + w - 1
    bias = bias_table[row.reshape(w * w, w * w)].permute(2, 0, 1)
    for sample in range(len(qkv)):
        rows, columns = (height, width) if valid_sizes is None else valid_sizes[sample].tolist()
        out = qkv.new_zeros(height, width, heads, head_width)
        if rows and columns:
            down, across = -(-rows // w), -(-columns // w)
            y, x = torch.meshgrid(torch.arange(down * w), torch.arange(across * w), indexing="ij")
            own = qkv[sample, y.clamp(max=rows - 1), x.clamp(max=columns - 1)]
            real = ((y < rows) & (x < columns))[..., None, None, None]
            rolled = torch.where(real, own, qkv_bias.to(qkv.dtype)).roll((-shift, -shift), (0, 1))
            # Region of each token, relative to the seams of its window.
            far = torch.stack([y >= down * w - shift, x >= across * w - shift], -1)
            far = far & torch.stack([y >= (down - 1) * w, x >= (across - 1) * w], -1)
            side = _windows(far, w)
            parted = (side[:, :, None] != side[:, None]).any(-1)
            query, key, value = _windows(rolled, w).permute(2, 0, 3, 1, 4)
            scores = (query @ key.transpose(-1, -2)).to(bias.dtype) / head_width**0.5 + bias
            scores = scores - 100.0 * parted[:, None]
            read = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2)
            read = read.reshape(down, across, w, w, heads, head_width).transpose(1, 2)
            read = read.reshape(down * w, across * w, heads, head_width)
            read = read.roll((shift, shift), (0, 1))[:rows, :columns]
            padding = (0, 0, 0, 0, 0, width - columns, 0, height - rows)
            out = torch.nn.functional.pad(read, padding)
        samples.append(out)
    return torch.stack(samples)


def _windows(tokens: Tensor, w: int) -> Tensor:
    """(H, W, ...) -> (nW, N, ...)."""
    down, across = tokens.shape[0] // w, tokens.shape[1] // w
    cut = tokens.reshape(down, w, across, w, *tokens.shape[2:]).transpose(1, 2)
    return cut.reshape(down * across, w * w, *tokens.shape[2:])


def error(got: Tensor, exact: Tensor) -> float:
    """Largest difference relative to the largest exact element."""
    assert got.shape == exact.shape
    assert got.isfinite().all()
    scale = exact.abs().max().item()
    return (got.double() - exact).abs().max().item() / (scale or 1.0)


def assert_equal(got: list[Tensor], exact: list[Tensor]) -> None:
    names = ("out", "grad_qkv", "grad_bias_table", "grad_qkv_bias")
    for name, ours, expected in zip(names, got, exact, strict=True):
        assert error(ours, expected) <= DOUBLE, name


def named(cases: dict[str, Case]) -> dict:
    return {"argvalues": cases.values(), "ids": cases.keys()}


BOTH = pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "tiles"])


@pytest.mark.parametrize("case", **named(CASES))
def test_formulation_matches_the_reference(case):
    tensors, grad = inputs(case)
    assert_equal(
        with_gradients(formulation, case, tensors, grad),
        with_gradients(naive.window_attention, case, tensors, grad),
    )


@BOTH
@pytest.mark.parametrize("case", **named(CASES))
def test_equals_formulation_in_float64(case, whole):
    tensors, grad = inputs(case)
    expected = with_gradients(formulation, case, tensors, grad)
    assert_equal(run(case, tensors, grad, whole), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", **named(LARGE))
def test_large_windows_equal_formulation_in_float64(case):
    tensors, grad = inputs(case)
    expected = with_gradients(formulation, case, tensors, grad)
    assert_equal(run(case, tensors, grad, None), expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_as_accurate_as_plain_pytorch(dtype, whole):
    case = CASES["odd map, shifted"]
    tensors, grad = inputs(case, dtype)
    # The parameters stay in float32, as under autocast.
    tensors[1] = tensors[1].float()
    exact = with_gradients(formulation, case, [t.double() for t in tensors], grad.double())
    plain = with_gradients(formulation, case, tensors, grad)
    for ours, theirs, truth in zip(run(case, tensors, grad, whole), plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) <= max(FLOORS[dtype], 2 * error(theirs, truth))


@pytest.mark.slow
@pytest.mark.parametrize("window_size", [12, 18])
def test_large_windows_are_as_accurate_in_float16(window_size):
    case = Case(1, window_size, window_size, window_size, window_size // 2, 1, 32)
    tensors, grad = inputs(case, torch.float16)
    exact = with_gradients(formulation, case, [t.double() for t in tensors], grad.double())
    plain = with_gradients(formulation, case, tensors, grad)
    for ours, theirs, truth in zip(run(case, tensors, grad, None), plain, exact, strict=True):
        assert error(ours, truth) <= max(FLOORS[torch.float16], 2 * error(theirs, truth))


@BOTH
def test_gradients_equal_finite_differences(whole):
    case = Case(1, 3, 2, 2, 1, 1, 3)
    tensors, _ = inputs(case)

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            ctx.save_for_backward(*given)
            launches, out = triton_launch.plan_forward(
                *given, WindowSpec(case.window_size, case.shift), whole=whole
            )
            for launch in launches:
                launch.run()
            return out

        @staticmethod
        def backward(ctx, *grads):
            return tuple(run(case, list(ctx.saved_tensors), grads[0], whole)[1:])

    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(Attention.apply, leaves, fast_mode=True)


@BOTH
def test_unread_elements_may_be_nan(whole):
    case = CASES["valid sizes"]
    tensors, grad = inputs(case)
    expected = run(case, tensors, grad, whole)
    for sample, (rows, columns) in enumerate(case.valid_sizes or []):
        for tensor in (tensors[0], grad):
            tensor[sample, rows:] = float("nan")
            tensor[sample, :, columns:] = float("nan")
    got = run(case, tensors, grad, whole)
    for ours, before in zip(got, expected, strict=True):
        assert torch.equal(ours, before)
    for sample, (rows, columns) in enumerate(case.valid_sizes or []):
        for tensor in got[:2]:
            assert (tensor[sample, rows:] == 0).all()
            assert (tensor[sample, :, columns:] == 0).all()


@BOTH
def test_unused_padding_may_be_nan(whole):
    case = CASES["four windows, shifted"]
    tensors, grad = inputs(case)
    expected = run(case, tensors, grad, whole)
    tensors[2].fill_(float("nan"))
    for ours, before in zip(run(case, tensors, grad, whole), expected, strict=True):
        assert torch.equal(ours, before)


def test_sizes_are_clamped_to_the_map():
    case = CASES["valid sizes"]
    tensors, grad = inputs(case)
    expected = run(case, tensors, grad, True)
    got = run(case._replace(valid_sizes=[[9, 13], [3, 4], [-2, 7]]), tensors, grad, True)
    for ours, before in zip(got, expected, strict=True):
        assert torch.equal(ours, before)


@BOTH
def test_atomics_give_the_same_sums(whole):
    case = CASES["four windows, shifted"]
    tensors, grad = inputs(case)
    expected = run(case, tensors, grad, whole)
    assert_equal(run(case, tensors, grad, whole, atomic=True), expected)


def test_strided_inputs():
    case = CASES["odd map, shifted"]
    tensors, grad = inputs(case)
    expected = run(case, tensors, grad, True)
    strided = [torch.stack([tensor, tensor], 1)[:, 0] for tensor in (*tensors, grad)]
    assert not any(tensor.is_contiguous() for tensor in strided)
    for ours, before in zip(run(case, strided[:3], strided[3], True), expected, strict=True):
        assert torch.equal(ours, before)


def test_empty_batch_gives_zero_gradients():
    case = Case(0, 4, 4, 4, 0, 1, 16)
    tensors, grad = inputs(case)
    out, grad_qkv, grad_table, grad_padding = run(case, tensors, grad, None)
    assert out.shape == grad.shape
    assert grad_qkv.shape == tensors[0].shape
    assert (grad_table == 0).all()
    assert (grad_padding == 0).all()


@pytest.mark.parametrize("count", [1, 128, 129, 300])
def test_sum_of_parts(count):
    parts = torch.arange(count * 5, dtype=torch.float64).view(count, 5)
    launches, out = triton_bias.plan_sum(parts, torch.empty(5, dtype=torch.float64), parts.dtype)
    for launch in launches:
        launch.run()
    # Integers below 2 ** 53 are summed exactly in any order.
    assert torch.equal(out, parts.sum(0))


@pytest.mark.parametrize("heads", [1, 9])
def test_expanding_and_reducing_the_bias_counts_pairs(heads):
    window_size, stored = 3, 32
    table = torch.randn(25, heads, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    launches, bias = triton_bias.plan_expand(
        table, window_size, 1, stored, torch.float64, transposed=False
    )
    for launch in launches:
        launch.run()
    # The second class adds the mask of a seam between columns.
    parted = (bias[1:2] - bias[:1]) / (-100 * triton_bias.LOG2E)
    sums = []
    for pairs in (bias[:1], parted):
        launches, summed = triton_bias.plan_reduce(
            pairs.contiguous(), table, window_size, stored, torch.float64
        )
        for launch in launches:
            launch.run()
        sums.append(summed)
    # Along one axis, 3 - |d| of the 3 x 3 pairs are d apart, of which one crosses a seam if d != 0.
    count, seam = torch.tensor([1, 2, 3, 2, 1]), torch.tensor([1, 1, 0, 1, 1])
    expected = table * triton_bias.LOG2E * (count[:, None] * count).reshape(-1, 1)
    assert error(sums[0], expected) <= DOUBLE
    expected = (count[:, None] * seam).reshape(-1, 1).expand(-1, heads).double()
    assert error(sums[1], expected) <= DOUBLE


def test_pieces_cover_the_keys_with_powers_of_two():
    assert triton_launch.pieces(144, 128) == ((0, 128), (128, 16))
    assert triton_launch.pieces(144, 64) == ((0, 64), (64, 64), (128, 16))
    assert triton_launch.pieces(64, 128) == ((0, 64),)


@pytest.mark.parametrize("whole", [True, False, None], ids=["whole rows", "tiles", "by size"])
@pytest.mark.parametrize("window_size", [1, 4, 7, 12, 18, 24])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_plans_need_only_shapes(dtype, window_size, whole):
    meta = {"device": "meta", "dtype": dtype}
    qkv = torch.empty(64, 96, 96, 3, 4, 32, **meta)
    arguments = (
        qkv,
        torch.empty((2 * window_size - 1) ** 2, 4, **meta),
        torch.empty(3, 4, 32, **meta),
        WindowSpec(window_size, window_size // 2),
    )
    launches, out = triton_launch.plan_forward(*arguments, whole=whole)
    more, gradients = triton_launch.plan_backward(
        torch.empty(64, 96, 96, 4, 32, **meta), *arguments, whole=whole
    )
    assert out.shape == (64, 96, 96, 4, 32)
    for tensor, gradient in zip(arguments[:3], gradients, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.dtype == dtype
    for launch in launches + more:
        assert min(launch.grid) > 0
        assert max(launch.grid[1:], default=1) <= 65535
        given = {*launch.arguments, *launch.constants}
        assert given == set(launch.kernel.arg_names)


@pytest.mark.parametrize(
    ("shape", "dtype", "window_size", "reason"),
    [
        ((1, 8, 8, 3, 1, 32), torch.float16, 4, None),
        ((1, 8, 8, 3, 1, 128), torch.float32, 18, None),
        ((1, 8, 8, 3, 1, 32), torch.complex64, 4, "complex64"),
        ((1, 8, 8, 3, 1, 136), torch.float16, 4, "136"),
        ((1, 60000, 60000, 3, 1, 32), torch.float16, 4, "32-bit"),
        ((1, 8, 8, 3, 70000, 32), torch.float16, 4, "number of heads, 70000"),
        ((1, 8, 8, 3, 64, 32), torch.float16, 64, "window size 64"),
    ],
)
def test_refusals_give_the_reason(shape, dtype, window_size, reason):
    said = triton_launch.refusal(torch.empty(shape, dtype=dtype, device="meta"), window_size)
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert reason in said
