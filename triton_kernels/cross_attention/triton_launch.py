"""Attention from one sequence to another in Triton: what is launched for it.

Serves image-to-text (many queries, few keys) and text-to-image attention (few queries, many keys).

Letters: B batch, n queries, m keys, h heads, d head width, S parts of a split loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import Launch
from ..runtime.tiles import tile
from .triton_backward import add_parts, walk_keys, walk_queries
from .triton_forward import attend, join_parts

#: Programs that a loop is split for: about two for every multiprocessor of an H100. A constant, so
#: that sums are added in the same order on every GPU.
PROGRAMS = 256

#: Tiles that a part of a split loop has at least; splitting costs a second kernel.
TILES_PER_PART = 2

#: Elements that a program of `add_parts` adds up.
SUM_BLOCK = 1024

MAX_HEAD_WIDTH = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refusal(q: Tensor, k: Tensor) -> str | None:
    """Say why these kernels do not take queries (B, n, h, d) and keys (B, m, h, d).

    Returns:
        The reason in words, None where they do.
    """
    if q.dtype not in DTYPES or (q.dtype == torch.float64 and q.device.type == "cuda"):
        return f"dtype {q.dtype}; expected float16, bfloat16 or float32"
    if not 0 < q.shape[3] <= MAX_HEAD_WIDTH:
        return f"head width {q.shape[3]}; expected 1 to {MAX_HEAD_WIDTH}"
    if max(q.shape[0], q.shape[2]) >= 2**16:
        return f"{q.shape[0]} samples of {q.shape[2]} heads; expected fewer than 65536 of each"
    for name, tensor in (("queries", q), ("keys", k)):
        if _reach(tensor) > 2**31:
            return f"{name} {tuple(tensor.shape)} with samples of more than 2^31 elements"
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None = None,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `plan_forward` and return its outputs."""
    launches, outputs = plan_forward(
        q, k, v, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
    )
    for launch in launches:
        launch.run()
    return outputs


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    key_lengths: Tensor | None = None,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `plan_backward` and return its outputs."""
    launches, outputs = plan_backward(
        grad, q, k, v, out, logsumexp, key_lengths, valid_sizes, map_size, dropout_p, seed, key_mask
    )
    for launch in launches:
        launch.run()
    return outputs


def plan_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None = None,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """Say what is launched for softmax(q @ k.T * d ** -0.5) @ v of every head.

    Args:
        q: (B, n, h, d).
        k: (B, m, h, d).
        v: (B, m, h, d).
        key_lengths: (B,) integer, keys of each sample; cut to 0 ... m.
        valid_sizes: (B, 2) integer (height, width) of each sample's own part of a map of keys, cut
            to the map. At most one of the two; without both a sample has m keys.
        map_size: (H, W) with H * W = m; needed with valid_sizes.
        dropout_p: probability of dropping a weight, below 1. What is dropped depends on the seed
            and on the indices of sample, head, query and own key, not on padding or tiles.
        seed: (1,) int64; needed where dropout_p > 0.
        key_mask: (B, m) bool, True = is read; instead of lengths and sizes, and slower than these.

    Returns:
        The launches, and out (B, n, h, d) in q's dtype with the base-2 logarithm of the sum of
        exponentials, (B, h, n) float32 (float64 for float64). Out is 0 and the logarithm -inf
        where a sample has no key.

    Raises:
        ValueError: if dropout_p is not in [0, 1).
    """
    q, k, v = _with_rows(q), _with_rows(k), _with_rows(v)
    batch, num_queries, heads, _ = q.shape
    sizes = _tiles("attend", q, k)
    query_tiles = _tiles_of(num_queries, sizes["block_queries"])
    parts, keys_per_part = _split(k.shape[1], sizes["block_keys"], query_tiles * heads * batch)
    precise = _accumulator(q)
    out = _empty(q.shape, q)
    logsumexp = _empty((batch, heads, num_queries), q, precise)
    part_out, part_logsumexp = out, logsumexp
    if parts > 1:
        part_out = _empty((parts, *out.shape), q, precise)
        part_logsumexp = _empty((parts, *logsumexp.shape), q, precise)
    arguments = {
        "outputs": part_out,
        "logsumexps": part_logsumexp,
        "keys_per_part": keys_per_part,
        **_inputs(q, k, v, key_lengths, valid_sizes, map_size, key_mask),
        **_dropout(dropout_p, seed),
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
    key_lengths: Tensor | None = None,
    valid_sizes: Tensor | None = None,
    map_size: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """Say what is launched for the gradients of `plan_forward`.

    Args:
        grad: (B, n, h, d) gradient of out.
        q: as in `plan_forward`, like all that is not named here.
        k: see there.
        v: see there.
        out: (B, n, h, d) as it came out.
        logsumexp: (B, h, n) as it came out.
        key_lengths: see there.
        valid_sizes: see there.
        map_size: see there.
        dropout_p: see there.
        seed: see there.
        key_mask: see there.

    Returns:
        The launches, and the gradients of q, k and v in their shapes, contiguous; 0 for keys that
        are not a sample's own.
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
        **_inputs(q, k, v, key_lengths, valid_sizes, map_size, key_mask),
        **_dropout(dropout_p, seed),
    }
    by_queries, by_keys = _tiles("walk_keys", q, k), _tiles("walk_queries", q, k)
    if 0 < k.shape[1] <= by_keys["block_keys"]:
        launches = _plan_walk_queries(arguments, by_keys, delta=None)
    elif 0 < q.shape[1] <= by_queries["block_queries"]:
        launches = _plan_walk_keys(arguments, by_queries, out, delta=None)
    else:
        delta = _empty(logsumexp.shape, logsumexp)
        launches = _plan_walk_keys(arguments, by_queries, out, delta)
        launches += _plan_walk_queries(arguments, by_keys, delta)
    return launches, (grad_q, grad_k, grad_v)


def _plan_walk_keys(
    arguments: dict[str, Any], sizes: dict[str, int], out: Tensor, delta: Tensor | None
) -> list[Launch]:
    """Launch `walk_keys`; without `delta` to fill it writes the gradients of keys as well."""
    q, grad_q = arguments["queries"], arguments["grad_queries"]
    batch, num_queries, heads, _ = q.shape
    tiles = _tiles_of(num_queries, sizes["block_queries"])
    parts, keys_per_part = _split(arguments["num_keys"], sizes["block_keys"], tiles * heads * batch)
    arguments = {
        **arguments,
        "outputs": out.contiguous(),
        "deltas": delta,
        "keys_per_part": keys_per_part,
    }
    if delta is not None:
        arguments.update(grad_keys=None, grad_values=None)
    sums = []
    if parts > 1:
        arguments["grad_queries"], launch = _parts(grad_q, parts)
        sums = [launch]
    grid = (tiles * parts, heads, batch)
    several = keys_per_part > sizes["block_keys"]
    walk = _walk(walk_keys, grid, arguments, sizes, parts > 1, several)
    return [walk, *sums]


def _plan_walk_queries(
    arguments: dict[str, Any], sizes: dict[str, int], delta: Tensor | None
) -> list[Launch]:
    """Launch `walk_queries`; without a filled `delta` it writes the gradient of queries as well."""
    q = arguments["queries"]
    batch, num_queries, heads, _ = q.shape
    tiles = _tiles_of(arguments["num_keys"], sizes["block_keys"])
    parts, queries_per_part = _split(num_queries, sizes["block_queries"], tiles * heads * batch)
    arguments = {**arguments, "deltas": delta, "queries_per_part": queries_per_part}
    if delta is not None:
        arguments["grad_queries"] = None
    sums = []
    if parts > 1:
        for name in ("grad_keys", "grad_values"):
            arguments[name], launch = _parts(arguments[name], parts)
            sums.append(launch)
    grid = (tiles * parts, heads, batch)
    several = queries_per_part > sizes["block_queries"]
    walk = _walk(walk_queries, grid, arguments, sizes, parts > 1, several)
    return [walk, *sums]


def _parts(total: Tensor, parts: int) -> tuple[Tensor, Launch]:
    """Allocate (S, ...) for parts of a tensor, and say what adds them up."""
    precise = _accumulator(total)
    separate = _empty((parts, *total.shape), total, precise)
    arguments = {"parts": separate, "sums": total, "size": total.numel(), "num_parts": parts}
    constants = {"BLOCK_SIZE": SUM_BLOCK, "ACCUMULATOR": _triton_dtype(precise)}
    grid = (_tiles_of(total.numel(), SUM_BLOCK),)
    return separate, Launch(add_parts, grid, arguments, constants, num_warps=4, num_stages=1)


def _split(length: int, block: int, programs: int) -> tuple[int, int]:
    """Cut a loop into parts where there are few programs: their number, and elements of each."""
    tiles = max(1, _tiles_of(length, block))
    wanted = min(_tiles_of(PROGRAMS, max(1, programs)), tiles // TILES_PER_PART)
    tiles_of_part = _tiles_of(tiles, max(1, wanted))
    return _tiles_of(tiles, tiles_of_part), tiles_of_part * block


def _tiles(kernel: str, q: Tensor, k: Tensor) -> dict[str, int]:
    """Read the tile sizes of a kernel, and make them no larger than the sequences need."""
    sizes = tile(
        f"cross_attention.{kernel}",
        window=None,
        head_width=q.shape[3],
        dtype=q.dtype,
        device=q.device,
    )
    area = sizes["block_queries"] * sizes["block_keys"]
    for name, length in (("block_queries", q.shape[1]), ("block_keys", k.shape[1])):
        sizes[name] = _fitting(sizes[name], length)
    smaller = area // (sizes["block_queries"] * sizes["block_keys"])
    sizes["num_warps"] = max(1, sizes["num_warps"] // smaller)
    return sizes


def _fitting(block: int, length: int) -> int:
    """Halve a tile until at most a third is added to the sixteens that a length takes."""
    block = min(block, _power_of_two(length))
    while 3 * _tiles_of(length, block) * block > 4 * _tiles_of(length, 16) * 16:
        block //= 2
    return block


def _walk(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    sizes: dict[str, int],
    split: bool,
    several: bool,
) -> Launch:
    """Launch a kernel that loops over tiles; `several`: more than one of them in a part."""
    q, masked = arguments["queries"], arguments["key_mask"]
    constants = {
        **_constants(q),
        "BLOCK_QUERIES": sizes["block_queries"],
        "BLOCK_KEYS": sizes["block_keys"],
        "BLOCK_MASK": 16 if masked is None else _power_of_two(masked.shape[1]),
        "SPLIT": split,
    }
    # One tile has no next one that could be loaded ahead.
    stages = sizes["num_stages"] if several else 1
    return Launch(kernel, grid, arguments, constants, sizes["num_warps"], stages)


def _constants(q: Tensor) -> dict[str, Any]:
    return {
        "HEAD_WIDTH": q.shape[3],
        "BLOCK_WIDTH": _power_of_two(q.shape[3]),
        "ACCUMULATOR": _triton_dtype(_accumulator(q)),
    }


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    valid_sizes: Tensor | None,
    map_size: tuple[int, int] | None,
    key_mask: Tensor | None,
) -> dict[str, Any]:
    """Arguments by which all kernels find queries, keys and values."""
    height, width = (0, 0) if valid_sizes is None or map_size is None else map_size
    return {
        "queries": q,
        "keys": k,
        "values": v,
        "lengths": None if key_lengths is None else key_lengths.contiguous(),
        "valid_sizes": None if valid_sizes is None else valid_sizes.contiguous(),
        "key_mask": None if key_mask is None else key_mask.contiguous().view(torch.uint8),
        **_strides("q", q),
        **_strides("k", k),
        **_strides("v", v),
        "num_queries": q.shape[1],
        "num_keys": k.shape[1],
        "num_heads": q.shape[2],
        "map_height": height,
        "map_width": width,
    }


def _dropout(dropout_p: float, seed: Tensor | None) -> dict[str, Any]:
    """Arguments of dropout: the seed, and the signed word below which a weight is dropped."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p: expected 0 <= dropout_p < 1, got {dropout_p}")
    if dropout_p == 0:
        return {"seed": None, "threshold": 0}
    # Even, so that it is never 1, which Triton would compile in as a constant.
    dropped = 2 * min(round(dropout_p * 2**31), 2**31 - 1)
    return {"seed": seed, "threshold": dropped - 2**31}


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    sample, token, head, _ = tensor.stride()
    return {f"{name}_sample": sample, f"{name}_token": token, f"{name}_head": head}


def _with_rows(tensor: Tensor) -> Tensor:
    """Copy a tensor whose last dimension is not contiguous; the kernels read whole rows."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _reach(tensor: Tensor) -> int:
    """Elements of a sample from its first to its last, here or in a contiguous result."""
    strided = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    spread = 1 + sum(max(0, size - 1) * stride for size, stride in strided)
    return max(spread, math.prod(tensor.shape[1:]))


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate contiguous memory on the device (and with the dtype) of another tensor."""
    return torch.empty(tuple(shape), dtype=dtype or like.dtype, device=like.device)


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _triton_dtype(dtype: torch.dtype) -> Any:
    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]


def _tiles_of(length: int, block: int) -> int:
    return math.ceil(length / block)


def _power_of_two(length: int) -> int:
    """The power of two that holds a length, 16 at least: what matrix units take."""
    return max(16, triton.next_power_of_2(length))
