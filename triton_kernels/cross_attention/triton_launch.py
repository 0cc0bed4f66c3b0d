"""Launch plans for the cross-attention kernels, based on shapes and the tile size table.

Image-to-text attention has many queries and few keys; text-to-image attention has few queries and
many keys.

Notation: B batch size, n queries, m keys, h heads, d head dim, S parts of a split loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..runtime.launch import Launch, run_plan
from ..runtime.tiles import tile
from ..runtime.triton_math import accumulator
from .key_mask import ALL_KEYS, NO_DROPOUT, Dropout, KeyMask
from .triton_backward import add_parts, walk_keys, walk_queries
from .triton_forward import attend, join_parts

#: Loops are split until there are this many programs, about two per multiprocessor of an H100.
#: Constant, so that sums have the same order on every GPU.
PROGRAMS = 256
#: Minimum number of tiles per part of a split loop, since splitting costs a second kernel.
TILES_PER_PART = 2
#: Elements per program of `add_parts`.
SUM_BLOCK = 1024

MAX_HEAD_WIDTH = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refusal(q: Tensor, k: Tensor) -> str | None:
    """Return why q [B, n, h, d] and k [B, m, h, d] are not supported, or None if they are."""
    if q.dtype not in DTYPES or (q.dtype == torch.float64 and q.device.type == "cuda"):
        return f"unsupported dtype {q.dtype}; expected float16, bfloat16 or float32"
    if not 0 < q.shape[3] <= MAX_HEAD_WIDTH:
        return f"unsupported head dim {q.shape[3]}; expected 1 to {MAX_HEAD_WIDTH}"
    if max(q.shape[0], q.shape[2]) >= 2**16:
        return f"{q.shape[0]} samples of {q.shape[2]} heads; expected fewer than 65536 of each"
    for name, tensor in (("queries", q), ("keys", k)):
        # Span of a sample in elements, in the tensor or in a contiguous result.
        strided = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
        span = 1 + sum(max(0, size - 1) * stride for size, stride in strided)
        if max(span, math.prod(tensor.shape[1:])) > 2**31:
            return f"{name} {tuple(tensor.shape)} exceed 2^31 elements per sample"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask = ALL_KEYS, dropout: Dropout = NO_DROPOUT
) -> tuple[Tensor, Tensor]:
    """Run `plan_forward` and return its outputs."""
    return run_plan(plan_forward(q, k, v, keys, dropout))


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    keys: KeyMask = ALL_KEYS,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `plan_backward` and return its outputs."""
    return run_plan(plan_backward(grad, q, k, v, out, logsumexp, keys, dropout))


def plan_forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyMask = ALL_KEYS, dropout: Dropout = NO_DROPOUT
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """Plan the launches of softmax(q @ k.T * d ** -0.5) @ v for every head, and allocate outputs.

    Args:
        q: [B, n, h, d].
        k: [B, m, h, d].
        v: [B, m, h, d].
        keys: keys to attend to. Lengths are clamped to m, and valid sizes to the map size. A mask
            is slower than lengths or valid sizes.
        dropout: the dropped weights depend on the seed and the indices of sample, head, query and
            valid key, not on padding or tile sizes.

    Returns:
        The launches, and a pair of outputs: the attention output [B, n, h, d] in q's dtype, and the
        base-2 logsumexp of the scores, [B, h, n] float32 (float64 for float64 inputs). For samples
        without keys, these are 0 and -inf.

    Raises:
        ValueError: if dropout.p is not in [0, 1).
    """
    q, k, v = _with_rows(q), _with_rows(k), _with_rows(v)
    batch, num_queries, heads, _ = q.shape
    sizes = _tiles("attend", q, k)
    query_tiles = _tiles_of(num_queries, sizes["block_queries"])
    parts, keys_per_part = _split(k.shape[1], sizes["block_keys"], query_tiles * heads * batch)
    wide = _wide(q)
    out = _empty(q.shape, q)
    logsumexp = _empty((batch, heads, num_queries), q, wide)
    part_out, part_logsumexp = out, logsumexp
    if parts > 1:
        part_out = _empty((parts, *out.shape), q, wide)
        part_logsumexp = _empty((parts, *logsumexp.shape), q, wide)
    arguments = {
        "outputs": part_out,
        "logsumexps": part_logsumexp,
        "keys_per_part": keys_per_part,
        **_inputs(q, k, v, keys),
        **_dropout(dropout),
    }
    grid = (query_tiles * parts, heads, batch)
    several = keys_per_part > sizes["block_keys"]
    launches = [_walk(attend, grid, arguments, sizes, parts > 1, several)]
    if parts > 1:
        constants = {**_constants(q), "BLOCK_QUERIES": sizes["block_queries"]}
        arguments = {
            "parts": part_out,
            "part_logsumexps": part_logsumexp,
            "outputs": out,
            "logsumexps": logsumexp,
            "num_queries": num_queries,
            "num_heads": heads,
            "num_parts": parts,
        }
        grid = (query_tiles, heads, batch)
        launches.append(Launch(join_parts, grid, arguments, constants, sizes["num_warps"], 1))
    return launches, (out, logsumexp)


def plan_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    keys: KeyMask = ALL_KEYS,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """Plan the launches of the backward pass, and allocate its outputs.

    Args:
        grad: [B, n, h, d] gradient of the output.
        q: [B, n, h, d].
        k: [B, m, h, d].
        v: [B, m, h, d].
        out: [B, n, h, d] from `plan_forward`.
        logsumexp: [B, h, n] from `plan_forward`.
        keys: as in `plan_forward`.
        dropout: as in `plan_forward`.

    Returns:
        The launches, and the contiguous gradients of q, k and v; 0 for masked keys.
    """
    q, k, v, grad = _with_rows(q), _with_rows(k), _with_rows(v), _with_rows(grad)
    grad_q, grad_k, grad_v = (_empty(tensor.shape, tensor) for tensor in (q, k, v))
    arguments: dict[str, Any] = {
        "grads": grad,
        "logsumexps": logsumexp.contiguous(),
        "grad_queries": grad_q,
        "grad_keys": grad_k,
        "grad_values": grad_v,
        **_strides("grad", grad),
        **_inputs(q, k, v, keys),
        **_dropout(dropout),
    }
    by_queries, by_keys = _tiles("walk_keys", q, k), _tiles("walk_queries", q, k)
    outputs = {"outputs": out.contiguous()}
    if 0 < k.shape[1] <= by_keys["block_keys"]:
        launches = _plan_walk(walk_queries, arguments, by_keys, None)
    elif 0 < q.shape[1] <= by_queries["block_queries"]:
        launches = _plan_walk(walk_keys, arguments | outputs, by_queries, None)
    else:
        delta = _empty(logsumexp.shape, logsumexp)
        launches = _plan_walk(walk_keys, arguments | outputs, by_queries, delta)
        launches += _plan_walk(walk_queries, arguments, by_keys, delta)
    return launches, (grad_q, grad_k, grad_v)


def _plan_walk(
    kernel: Any, arguments: dict[str, Any], sizes: dict[str, int], delta: Tensor | None
) -> list[Launch]:
    """Plan `walk_keys` or `walk_queries`. If `delta` is None, the kernel writes all gradients."""
    grads = {"queries": ["grad_queries"], "keys": ["grad_keys", "grad_values"]}
    tiled, walked = ("queries", "keys") if kernel is walk_keys else ("keys", "queries")
    lengths = {"queries": arguments["num_queries"], "keys": arguments["num_keys"]}
    batch, _, heads, _ = arguments["queries"].shape
    tiles = _tiles_of(lengths[tiled], sizes[f"block_{tiled}"])
    block = sizes[f"block_{walked}"]
    parts, per_part = _split(lengths[walked], block, tiles * heads * batch)
    arguments = {**arguments, "deltas": delta, f"{walked}_per_part": per_part}
    if delta is not None:
        arguments.update(dict.fromkeys(grads[walked]))
    sums = []
    if parts > 1:
        for name in grads[tiled]:
            arguments[name], launch = _parts(arguments[name], parts)
            sums.append(launch)
    grid = (tiles * parts, heads, batch)
    return [_walk(kernel, grid, arguments, sizes, parts > 1, per_part > block), *sums]


def _parts(total: Tensor, parts: int) -> tuple[Tensor, Launch]:
    """Allocate partial results [S, ...] for a tensor, and plan the kernel that sums them."""
    separate = _empty((parts, *total.shape), total, _wide(total))
    arguments = {"parts": separate, "sums": total, "size": total.numel(), "num_parts": parts}
    constants = {"BLOCK_SIZE": SUM_BLOCK, "ACCUMULATOR": accumulator(total.dtype)}
    grid = (_tiles_of(total.numel(), SUM_BLOCK),)
    return separate, Launch(add_parts, grid, arguments, constants, num_warps=4, num_stages=1)


def _split(length: int, block: int, programs: int) -> tuple[int, int]:
    """Split a loop if there are few programs. Return the number of parts and their length."""
    tiles = max(1, _tiles_of(length, block))
    wanted = min(_tiles_of(PROGRAMS, max(1, programs)), tiles // TILES_PER_PART)
    tiles_of_part = _tiles_of(tiles, max(1, wanted))
    return _tiles_of(tiles, tiles_of_part), tiles_of_part * block


def _tiles(kernel: str, q: Tensor, k: Tensor) -> dict[str, int]:
    """Look up the tile sizes of a kernel, reduced for short sequences."""
    sizes = tile(
        f"cross_attention.{kernel}",
        window=None,
        head_width=q.shape[3],
        dtype=q.dtype,
        device=q.device,
    )
    area = sizes["block_queries"] * sizes["block_keys"]
    for name, length in (("block_queries", q.shape[1]), ("block_keys", k.shape[1])):
        block = min(sizes[name], _power_of_two(length))
        # Padding may add at most a third to the length, after it is rounded up to a multiple of 16.
        while 3 * _tiles_of(length, block) * block > 4 * _tiles_of(length, 16) * 16:
            block //= 2
        sizes[name] = block
    smaller = area // (sizes["block_queries"] * sizes["block_keys"])
    sizes["num_warps"] = max(1, sizes["num_warps"] // smaller)
    return sizes


def _walk(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    sizes: dict[str, int],
    split: bool,
    several: bool,
) -> Launch:
    """Plan a kernel that loops over tiles. If `several` is True, parts have more than one tile."""
    q, masked = arguments["queries"], arguments["key_mask"]
    constants = {
        **_constants(q),
        "BLOCK_QUERIES": sizes["block_queries"],
        "BLOCK_KEYS": sizes["block_keys"],
        "BLOCK_MASK": 16 if masked is None else _power_of_two(masked.shape[1]),
        "SPLIT": split,
    }
    # With a single tile, there is nothing to prefetch.
    stages = sizes["num_stages"] if several else 1
    return Launch(kernel, grid, arguments, constants, sizes["num_warps"], stages)


def _constants(q: Tensor) -> dict[str, Any]:
    return {
        "HEAD_WIDTH": q.shape[3],
        "BLOCK_WIDTH": _power_of_two(q.shape[3]),
        "ACCUMULATOR": accumulator(q.dtype),
    }


def _inputs(q: Tensor, k: Tensor, v: Tensor, keys: KeyMask) -> dict[str, Any]:
    """Return the arguments shared by all kernels."""
    height, width = (0, 0) if keys.sizes is None or keys.map_size is None else keys.map_size
    return {
        "queries": q,
        "keys": k,
        "values": v,
        "lengths": None if keys.lengths is None else keys.lengths.contiguous(),
        "valid_sizes": None if keys.sizes is None else keys.sizes.contiguous(),
        "key_mask": None if keys.mask is None else keys.mask.contiguous().view(torch.uint8),
        **_strides("q", q),
        **_strides("k", k),
        **_strides("v", v),
        "num_queries": q.shape[1],
        "num_keys": k.shape[1],
        "num_heads": q.shape[2],
        "map_height": height,
        "map_width": width,
    }


def _dropout(dropout: Dropout) -> dict[str, Any]:
    """Return the dropout arguments: the seed, and the hash below which a weight is dropped."""
    if not 0 <= dropout.p < 1:
        raise ValueError(f"dropout_p must be >= 0 and < 1, got {dropout.p}")
    if dropout.p == 0:
        return {"seed": None, "threshold": 0}
    # Even, hence never 1, which Triton would specialize as a constant.
    dropped = 2 * min(round(dropout.p * 2**31), 2**31 - 1)
    return {"seed": dropout.seed, "threshold": dropped - 2**31}


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    sample, token, head, _ = tensor.stride()
    return {f"{name}_sample": sample, f"{name}_token": token, f"{name}_head": head}


def _with_rows(tensor: Tensor) -> Tensor:
    """Make the last dimension contiguous, copying only if necessary."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a contiguous tensor on the device of `like`, by default with its dtype."""
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _tiles_of(length: int, block: int) -> int:
    return math.ceil(length / block)


def _power_of_two(length: int) -> int:
    """Round up to a power of two, at least 16 (the smallest tile of matrix units)."""
    return max(16, triton.next_power_of_2(length))
