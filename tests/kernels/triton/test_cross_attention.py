"""Cross attention in Triton's interpreter: outputs and all gradients against the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fiber import kernels
from fiber.kernels.cross_attention import naive, triton_launch
from fiber.kernels.cross_attention.key_mask import Dropout, KeyMask

# Sums of at most 300 float64 terms of size 1, in a different order.
TOLERANCE = 1e-12
# Error of rounding the result, relative to its largest element.
FLOORS = {torch.float32: 2**-23, torch.float16: 2**-10}


@dataclass(frozen=True)
class Case:
    """One call; `lengths` or `sizes` may hide keys, which are then NaN."""

    batch: int
    queries: int
    keys: int
    heads: int
    width: int
    lengths: tuple[int, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    map_size: tuple[int, int] | None = None

    def key_mask(self) -> Tensor:
        if self.lengths is not None:
            return torch.arange(self.keys) < torch.tensor(self.lengths)[:, None]
        mask = torch.ones(self.batch, self.keys, dtype=torch.bool)
        if self.sizes is not None and self.map_size is not None:
            for own, (height, width) in zip(mask, self.sizes, strict=True):
                own.view(self.map_size)[height:] = False
                own.view(self.map_size)[:, width:] = False
        return mask

    def keys_read(self, dtype: torch.dtype = torch.int64) -> KeyMask:
        return KeyMask(
            lengths=None if self.lengths is None else torch.tensor(self.lengths).to(dtype),
            sizes=None if self.sizes is None else torch.tensor(self.sizes).to(dtype),
            map_size=self.map_size,
        )

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Queries, keys, values and the gradient of the output."""
        generator = torch.Generator().manual_seed(self.queries + self.keys)
        shapes = [(self.batch, n, self.heads, self.width) for n in self.lengths_of_inputs()]
        return [
            torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
            for shape in shapes
        ]

    def lengths_of_inputs(self) -> tuple[int, ...]:
        return self.queries, self.keys, self.keys, self.queries


def hide(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set keys (B, m, h, d) that must not be read to NaN."""
    return torch.where(mask[..., None, None], tensor, math.nan)


def run(case: Case, inputs: list[Tensor], dropout_p: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Output and the three gradients."""
    q, k, v, grad = inputs
    mask = case.key_mask()
    k, v = hide(k, mask), hide(v, mask)
    keys, dropout = case.keys_read(), Dropout(dropout_p, torch.tensor([seed]))
    out, logsumexp = triton_launch.forward(q, k, v, keys, dropout)
    gradients = triton_launch.backward(grad, q, k, v, out, logsumexp, keys, dropout)
    return [out, *gradients]


def differentiate(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Output and the three gradients of a PyTorch function."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs[:3]]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def error(got: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest expected element; NaN counts as infinite."""
    assert got.shape == expected.shape
    largest = max(expected.abs().max().item(), 1e-300)
    worst = ((got.double() - expected).abs().max() / largest).item()
    return math.inf if math.isnan(worst) else worst


def use_tiles(monkeypatch, queries: int, keys: int, programs: int = 1) -> None:
    """Set tile sizes, and the number of programs for which loops are split."""
    sizes = {"block_queries": queries, "block_keys": keys, "num_warps": 1, "num_stages": 1}
    monkeypatch.setattr(triton_launch, "tile", lambda *_, **__: dict(sizes))
    monkeypatch.setattr(triton_launch, "PROGRAMS", programs)


MAP = {"map_size": (7, 10), "sizes": ((7, 10), (3, 4), (0, 5), (6, 10), (2, 0), (9, 11))}
CASES = {
    "one query, one key": Case(1, 1, 1, 1, 16),
    "few of both": Case(2, 5, 7, 2, 32),
    "short keys by length": Case(4, 37, 12, 1, 16, lengths=(12, 0, 1, 40)),
    "short queries by length": Case(4, 9, 70, 1, 16, lengths=(70, 0, 33, 99)),
    "both long, by length": Case(4, 40, 50, 1, 20, lengths=(50, 0, 32, 1)),
    "a length below 0": Case(2, 3, 20, 1, 16, lengths=(-3, 20)),
    "short queries on a map": Case(6, 5, 70, 1, 16, **MAP),
    "both long, on a map": Case(6, 35, 70, 1, 16, **MAP),
    "short keys on a map": Case(3, 35, 15, 1, 16, map_size=(5, 3), sizes=((5, 3), (2, 2), (0, 0))),
    "a map of one column": Case(2, 3, 20, 1, 16, map_size=(20, 1), sizes=((20, 1), (7, 1))),
    "narrow heads": Case(1, 17, 18, 3, 5),
}


@pytest.fixture
def small_tiles(monkeypatch):
    use_tiles(monkeypatch, 32, 32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_the_reference_in_float64(case):
    inputs, mask = case.inputs(), case.key_mask()
    expected = differentiate(lambda q, k, v: naive.attention(q, k, v, mask), inputs)
    ours = run(case, inputs)
    for name, got, wanted in zip(("out", "q", "k", "v"), ours, expected, strict=True):
        assert error(got, wanted) <= TOLERANCE, name
    for gradient in ours[2:]:
        assert (gradient[~mask] == 0).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("name", ["short keys by length", "both long, by length"])
def test_as_accurate_as_plain_pytorch(name, dtype):
    case = CASES[name]
    inputs = case.inputs(dtype)
    lengths = torch.tensor(case.lengths)
    exact = [tensor.double() for tensor in inputs]
    expected = differentiate(lambda q, k, v: naive.attention(q, k, v, case.key_mask()), exact)
    plain = differentiate(lambda q, k, v: kernels.image_to_text_attention(q, k, v, lengths), inputs)
    ours = run(case, inputs)
    for part, got, other, wanted in zip(("out", "q", "k", "v"), ours, plain, expected, strict=True):
        assert got.dtype == dtype
        assert error(got, wanted) <= max(2 * error(other, wanted), FLOORS[dtype]), part


@pytest.mark.usefixtures("small_tiles")
def test_logsumexp_is_in_base_2():
    case = CASES["short queries by length"]
    q, k, v, _ = case.inputs()
    _, logsumexp = triton_launch.forward(q, k, v, case.keys_read())
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * case.width**-0.5
    scores = scores.masked_fill(~case.key_mask()[:, None, None], -math.inf)
    expected = scores.logsumexp(-1) / math.log(2)
    assert (logsumexp[1] == -math.inf).all()
    assert torch.allclose(logsumexp, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_lengths_and_sizes_of_any_integer_dtype(dtype):
    for name in ("short keys by length", "short queries on a map"):
        case = CASES[name]
        q, k, v, _ = case.inputs()
        out, _ = triton_launch.forward(q, k, v, case.keys_read(dtype))
        assert error(out, naive.attention(q, k, v, case.key_mask())) <= TOLERANCE


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", ["short keys by length", "both long, by length"])
def test_views(name):
    case = replace(CASES[name], heads=2)
    q, k, v, grad = case.inputs()
    expected = run(case, [q, k, v, grad[:1, :1, :1].expand_as(grad)])
    packed = torch.stack([hide(k, case.key_mask()), hide(v, case.key_mask())], 2)
    # As after a projection to all heads; heads before tokens; and an expanded gradient.
    keys = case.keys_read()
    views = q.transpose(1, 2).contiguous().transpose(1, 2), *packed.unbind(2)
    assert not any(view.is_contiguous() for view in views)
    out, logsumexp = triton_launch.forward(*views, keys)
    direction = grad[:1, :1, :1].expand_as(grad)
    gradients = triton_launch.backward(direction, *views, out, logsumexp, keys)
    for got, wanted in zip((out, *gradients), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("small_tiles")
def test_noncontiguous_last_dimension():
    case = CASES["few of both"]
    inputs = case.inputs()
    apart = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in inputs]
    assert all(tensor.stride(-1) == 2 for tensor in apart)
    for got, wanted in zip(run(case, apart), run(case, inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 4, 1), (2, 0, 4, 1), (2, 0, 70, 1), (2, 3, 0, 1), (2, 70, 0, 1), (2, 3, 4, 0)],
    ids=str,
)
def test_empty_tensors(shape):
    case = Case(*shape, width=16)
    out, *gradients = run(case, case.inputs())
    assert (out == 0).all()
    for got, tensor in zip(gradients, case.inputs(), strict=False):
        assert got.shape == tensor.shape
        assert (got == 0).all()


SPLIT_CASES = {
    "queries of one tile": Case(2, 12, 150, 1, 16, lengths=(150, 37)),
    "keys of one tile": Case(2, 150, 12, 1, 16, lengths=(12, 0)),
    "both long": Case(2, 70, 70, 1, 16, lengths=(70, 0)),
    "on a map": Case(2, 12, 150, 1, 16, map_size=(10, 15), sizes=((10, 15), (9, 4))),
}


@pytest.mark.parametrize("case", SPLIT_CASES.values(), ids=SPLIT_CASES.keys())
def test_split_loops_give_the_same_results(case, monkeypatch):
    inputs = case.inputs()
    counts, results = [], []
    for programs in (1, 10_000):
        use_tiles(monkeypatch, 16, 16, programs)
        counts.append(number_of_launches(case))
        results.append(run(case, inputs))
    assert counts[1] > counts[0]
    for got, wanted in zip(results[1], results[0], strict=True):
        assert error(got, wanted) <= TOLERANCE


def number_of_launches(case: Case) -> int:
    q, k, v, grad = (tensor.to("meta") for tensor in case.inputs())
    forward, (out, logsumexp) = triton_launch.plan_forward(q, k, v)
    backward, _ = triton_launch.plan_backward(grad, q, k, v, out, logsumexp)
    return len(forward) + len(backward)


@pytest.mark.parametrize("name", ["queries of one tile", "both long"])
def test_repeated_runs_are_bitwise_identical(name, monkeypatch):
    use_tiles(monkeypatch, 16, 16, 10_000)
    case = SPLIT_CASES[name]
    inputs = case.inputs(torch.float32)
    first, second = run(case, inputs, 0.3), run(case, inputs, 0.3)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def recover_kept(case: Case, dropout_p: float, seed: int) -> Tensor:
    """Recover which weights survive, (B, h, n, m) bool, using unit vectors as values."""
    q, k, _, _ = case.inputs(torch.float32)
    kept = []
    for start in range(0, case.keys, case.width):
        unit = torch.zeros(case.keys, case.width)
        size = min(case.width, case.keys - start)
        unit[start : start + size, :size] = torch.eye(size)
        v = unit[None, :, None].expand(k.shape)
        out, _ = triton_launch.forward(
            0 * q, k, v, case.keys_read(), Dropout(dropout_p, torch.tensor([seed]))
        )
        kept.append(out.permute(0, 2, 1, 3)[..., :size] != 0)
    return torch.cat(kept, -1)


@pytest.mark.parametrize("name", SPLIT_CASES)
def test_dropout_gradients(name, monkeypatch):
    case, dropout_p = SPLIT_CASES[name], 0.25
    use_tiles(monkeypatch, 16, 16)
    kept = recover_kept(case, dropout_p, seed=7)
    hidden = ~case.key_mask()

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * case.width**-0.5
        # Finite for samples without keys; hidden keys are masked anyway.
        scores = scores.masked_fill(hidden[:, None, None], -1e4)
        weights = scores.softmax(-1) * kept / (1 - dropout_p)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)

    inputs = case.inputs()
    expected = differentiate(plain, inputs)
    for programs in (1, 10_000):
        use_tiles(monkeypatch, 16, 16, programs)
        for got, wanted in zip(run(case, inputs, dropout_p, 7), expected, strict=True):
            assert error(got, wanted) <= TOLERANCE


def test_dropout_does_not_depend_on_tiles_or_parts(monkeypatch):
    case = Case(2, 40, 100, 1, 128)
    masks = []
    for queries, keys, programs in ((16, 16, 1), (64, 32, 1), (32, 128, 1), (16, 16, 10_000)):
        use_tiles(monkeypatch, queries, keys, programs)
        masks.append(recover_kept(case, 0.4, seed=3))
    assert 0 < masks[0].double().mean() < 1
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_dropout_does_not_depend_on_padding(monkeypatch):
    use_tiles(monkeypatch, 16, 16)
    alone = Case(1, 20, 12, 1, 16)
    on_map = replace(alone, keys=70, map_size=(7, 10), sizes=((3, 4),))
    wide = recover_kept(on_map, 0.4, seed=3)
    own = wide[..., on_map.key_mask()[0]]
    assert torch.equal(own, recover_kept(alone, 0.4, seed=3))
    assert not wide[..., ~on_map.key_mask()[0]].any()


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 2**-10])
def test_dropout_rate(dropout_p, monkeypatch):
    use_tiles(monkeypatch, 128, 128)
    case = Case(2, 100, 128, 2, 128)
    dropped = (~recover_kept(case, dropout_p, seed=11)).double()
    deviation = math.sqrt(dropout_p * (1 - dropout_p))
    for samples in (dropped.flatten(), *dropped.flatten(0, 1).flatten(1)):
        assert abs(samples.mean() - dropout_p) <= 5 * deviation / math.sqrt(samples.numel())
    # Rows and columns vary like independent draws, so no whole row is dropped.
    for axis in (2, 3):
        means = dropped.mean(axis)
        expected = deviation**2 / dropped.shape[axis]
        # Kurtosis of Bernoulli draws, for the variance of their sample variance.
        kurtosis = (1 - 6 * deviation**2) / deviation**2 / dropped.shape[axis] + 2
        spread = expected * math.sqrt(kurtosis / means.numel())
        assert abs((means - dropout_p).square().mean() - expected) <= 5 * spread


def test_dropout_is_independent_across_samples_heads_seeds_and_neighbors(monkeypatch):
    use_tiles(monkeypatch, 128, 128)
    case = Case(2, 100, 128, 2, 128)
    kept = recover_kept(case, 0.5, seed=11)
    pairs = {
        "samples": (kept[0], kept[1]),
        "heads": (kept[:, 0], kept[:, 1]),
        "seeds": (kept, recover_kept(case, 0.5, seed=12)),
        "seeds in the upper half": (kept, recover_kept(case, 0.5, seed=11 + 2**32)),
        "next query": (kept[:, :, 1:], kept[:, :, :-1]),
        "next key": (kept[..., 1:], kept[..., :-1]),
        "next query and key": (kept[..., 1:, 1:], kept[..., :-1, :-1]),
        "corners of a square": (
            kept[..., 1:, 1:] ^ kept[..., :-1, :-1],
            kept[..., :-1, 1:] ^ kept[..., 1:, :-1],
        ),
    }
    for name, (one, other) in pairs.items():
        same = (one == other).double()
        assert abs(same.mean() - 0.5) <= 5 * 0.5 / math.sqrt(same.numel()), name


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, 1.5, math.nan])
def test_invalid_dropout_probability_is_rejected(dropout_p):
    q, k, v, _ = Case(1, 1, 1, 1, 16).inputs()
    with pytest.raises(ValueError, match=r"dropout_p must be >= 0 and < 1, got"):
        triton_launch.plan_forward(q, k, v, dropout=Dropout(dropout_p, torch.tensor([0])))


REFUSED = {
    "unsupported head dim 0; expected 1 to 128": (1, 2, 1, 0),
    "unsupported head dim 200; expected 1 to 128": (1, 2, 1, 200),
    "70000 samples of 1 heads; expected fewer than 65536": (70_000, 1, 1, 8),
    "queries .* exceed 2\\^31 elements": (1, 2**25 + 1, 2, 32),
}


@pytest.mark.parametrize(("message", "shape"), REFUSED.items(), ids=REFUSED.keys())
def test_unsupported_shapes_are_refused(message, shape):
    tensor = torch.empty(shape, dtype=torch.float16, device="meta")
    assert re.match(message, triton_launch.refusal(tensor, tensor) or "")


def test_unsupported_dtypes_are_refused():
    tensor = torch.empty(2, 3, 4, 32, dtype=torch.int32, device="meta")
    assert (triton_launch.refusal(tensor, tensor) or "").startswith("unsupported dtype torch.int32")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert triton_launch.refusal(tensor.to(dtype), tensor.to(dtype)) is None


@pytest.mark.parametrize("dtype", [*FLOORS, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [8, 32, 64, 128])
def test_table_has_tiles_for_every_dtype(width, dtype):
    q = torch.empty(1, 40, 2, width, dtype=dtype, device="meta")
    k = torch.empty(1, 600, 2, width, dtype=dtype, device="meta")
    launches, (out, logsumexp) = triton_launch.plan_forward(q, k, k)
    launches += triton_launch.plan_backward(q, q, k, k, out, logsumexp)[0]
    for launch in launches:
        constants = launch.constants
        rows = [constants.get(f"BLOCK_{side}", 16) for side in ("QUERIES", "KEYS")]
        assert all(16 <= block <= 128 for block in rows)
        assert launch.num_warps in (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 16), (17, 32), (40, 64), (70, 32), (80, 32), (144, 64), (576, 128), (4200, 128), (0, 16)],
)
def test_tiles_fit_the_sequence(length, block):
    q = torch.empty(1, length, 2, 32, dtype=torch.float16, device="meta")
    k = torch.empty(1, 40, 2, 32, dtype=torch.float16, device="meta")
    launch = triton_launch.plan_forward(q, k, k)[0][0]
    assert launch.constants["BLOCK_QUERIES"] == block
