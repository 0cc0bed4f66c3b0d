"""Small kernels with known resources."""

import torch
import triton
import triton.language as tl

from fiber.kernels.runtime.launch import Launch

#: Elements of one program.
BLOCK = 256


@triton.jit
def sum_rows(
    rows,
    more,
    out,
    count,
    width,
    offset,
    atomic: tl.constexpr,
    block: tl.constexpr,
):
    """out[i] = sum of rows[:, i] + more[i] + offset."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for row in range(count):
        total += tl.load(rows + row * width + place).to(tl.float32)
    if more is not None:
        total += tl.load(more + place)
    if atomic:
        tl.atomic_add(out + place, total, sem="relaxed")
    else:
        tl.store(out + place, total + offset)


@triton.jit
def normalize_square(x, out, side: tl.constexpr):
    """Keep a whole square in registers, which exceeds those of a single warp."""
    place = tl.arange(0, side)[:, None] * side + tl.arange(0, side)[None, :]
    square = tl.load(x + place)
    tl.store(out + place, square * tl.sum(square, 0)[None, :] * tl.sum(square, 1)[:, None])


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Create a meta tensor."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def sum_launch(count: int, *, atomic: bool = False, width: int = 1024) -> Launch:
    """Plan a sum of float32 rows."""
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
        constants={"atomic": atomic, "block": BLOCK},
        num_warps=4,
        num_stages=1,
    )


def square_launch(side: int, num_warps: int) -> Launch:
    """Plan a float32 square in `num_warps` warps."""
    return Launch(
        kernel=normalize_square,
        grid=(1,),
        arguments={"x": meta(side, side), "out": meta(side, side)},
        constants={"side": side},
        num_warps=num_warps,
        num_stages=1,
    )
