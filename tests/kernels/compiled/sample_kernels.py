"""Small kernels whose registers, instructions and bytes can be said beforehand."""

import torch
import triton
import triton.language as tl

from fiber.kernels.runtime.launch import Launch

#: Elements that one program of these kernels handles.
BLOCK = 256


@triton.jit
def sum_rows(
    rows,
    more,
    out,
    count,
    width,
    offset,
    passes: tl.constexpr,
    atomic: tl.constexpr,
    block: tl.constexpr,
):
    """out[i] = passes * sum of rows[:, i] + more[i] + offset."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for _ in range(passes):
        for row in range(count):
            total += tl.load(rows + row * width + place).to(tl.float32)
    if more is not None:
        total += tl.load(more + place)
    if atomic:
        tl.atomic_add(out + place, total, sem="relaxed")
    else:
        tl.store(out + place, total + offset)


@triton.jit
def share_rows(rows, out, count, width, block: tl.constexpr):
    """Each program sums every so many-th row into a row of its own."""
    part = tl.program_id(0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for row in range(part, count, tl.num_programs(0)):
        total += tl.load(rows + row * width + place).to(tl.float32)
    tl.store(out + part * width + place, total)


@triton.jit
def sum_some_rows(rows, length, out, width, block: tl.constexpr):
    """How many rows are summed stands in memory."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for row in range(tl.load(length)):
        total += tl.load(rows + row * width + place).to(tl.float32)
    tl.store(out + place, total)


@triton.jit
def normalise_square(x, out, side: tl.constexpr):
    """Hold a whole square at once, which no single warp has the registers for."""
    place = tl.arange(0, side)[:, None] * side + tl.arange(0, side)[None, :]
    square = tl.load(x + place)
    tl.store(out + place, square * tl.sum(square, 0)[None, :] * tl.sum(square, 1)[:, None])


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def sum_launch(count: int, *, passes: int = 1, atomic: bool = False, width: int = 1024) -> Launch:
    """Sum rows of float32."""
    return Launch(
        kernel=sum_rows,
        grid=(width // BLOCK,),
        arguments={
            "rows": meta(count, width),
            "more": None,
            "out": meta(width),
            "count": count,
            "width": width,
            "offset": 1.5,
        },
        constants={"passes": passes, "atomic": atomic, "block": BLOCK},
        num_warps=4,
        num_stages=1,
    )


def share_launch(count: int, parts: int, width: int = 1024) -> Launch:
    """Sum rows of bfloat16 in so many parts."""
    return Launch(
        kernel=share_rows,
        grid=(parts, width // BLOCK),
        arguments={
            "rows": meta(count, width, dtype=torch.bfloat16),
            "out": meta(parts, width),
            "count": count,
            "width": width,
        },
        constants={"block": BLOCK},
        num_warps=2,
        num_stages=1,
    )


def some_launch(width: int = 1024) -> Launch:
    """Sum as many rows as a number in memory says."""
    return Launch(
        kernel=sum_some_rows,
        grid=(width // BLOCK,),
        arguments={
            "rows": meta(64, width),
            "length": meta(1, dtype=torch.int32),
            "out": meta(width),
            "width": width,
        },
        constants={"block": BLOCK},
        num_warps=4,
        num_stages=1,
    )


def square_launch(side: int, num_warps: int) -> Launch:
    """Hold a square of float32 in so many warps."""
    return Launch(
        kernel=normalise_square,
        grid=(1,),
        arguments={"x": meta(side, side), "out": meta(side, side)},
        constants={"side": side},
        num_warps=num_warps,
        num_stages=1,
    )
