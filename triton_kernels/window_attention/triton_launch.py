"""Launch plans for the window attention kernels, based on shapes and the tile size table.

Only the inputs are saved for the backward pass. Without atomics, gradients are deterministic, and
identical on all GPUs that use the same tile sizes: the assignment of windows to programs depends
only on shapes, and every sum has a fixed order.

Notation: B batch size, (H, W) map size, h heads, d head dim, w window size, S stored rows and
columns of pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..runtime import tiles
from ..runtime.dispatch import atomics
from ..runtime.launch import Launch, run_plan
from ..runtime.tiles import tile
from ..runtime.triton_math import accumulator
from . import triton_tiled, triton_whole
from .triton_bias import LOG2E, plan_expand, plan_reduce, plan_sum
from .window_spec import WindowSpec

#: Limits of the kernels that keep whole rows of scores in registers: key elements per window in the
#: forward pass (window size 18, head dim 32), and keys per window in the backward pass. The kernels
#: also require a head dim of at most 64 and a dtype with matrix units (16 bits; float64 for tests).
WHOLE_KEY_ELEMENTS = 336 * 32
WHOLE_BACKWARD_KEYS = 160
#: GPU architectures and Triton versions for which these kernels spill registers if valid sizes are
#: given.
SPILLED_SIZED = {("sm_120", "3.7")}
#: Maximum size of the bias gradient in bytes, so that it stays in the L2 cache of training GPUs
#: (40 MB or more) while other tensors are streamed.
CHUNK_BYTES = 22_000_000
#: Number of programs needed to keep a GPU busy.
PROGRAMS = 2048
#: With fewer programs in the forward pass, the queries of a window are also split.
FEW_PROGRAMS = 264
MAX_HEAD_WIDTH = 128


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Return why a shape or dtype is not supported, or None if it is."""
    _, height, width, _, heads, head_width = qkv.shape
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if qkv.dtype not in dtypes and (qkv.dtype != torch.float64 or qkv.is_cuda):
        return f"unsupported dtype {qkv.dtype}; expected float32, float16 or bfloat16"
    if head_width > MAX_HEAD_WIDTH:
        return f"unsupported head dim {head_width}; expected at most {MAX_HEAD_WIDTH}"
    if heads > 65535:
        return f"unsupported number of heads, {heads}; expected at most 65535"
    if height * width * 3 * heads * head_width >= 2**31:
        return f"samples of {height} x {width} tokens are too large for 32-bit offsets"
    if 4 * heads * (window_size**2 + 128) ** 2 >= 2**31:
        return f"window size {window_size} with {heads} heads needs a bias of 2**31 pairs or more"
    return None


def forward(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> Tensor:
    """Compute window attention; see `op.window_attention`."""
    return run_plan(plan_forward(qkv, bias_table, qkv_bias, spec))


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias, in their shapes and dtypes."""
    return run_plan(plan_backward(grad, qkv, bias_table, qkv_bias, spec, atomic_bias=atomics()))


def plan_forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
    *,
    whole: bool | None = None,
) -> tuple[list[Launch], Tensor]:
    """Plan the launches of `forward`, and allocate its output.

    Args:
        qkv: [B, H, W, 3, h, d]; all tensors may be on the meta device.
        bias_table: [(2 w - 1) ** 2, h].
        qkv_bias: [3, h, d].
        spec: window size, shift and valid sizes.
        whole: keep whole rows of scores in registers instead of looping over tiles of keys; None to
            choose automatically.
    """
    batch, height, width, _, heads, head_width = qkv.shape
    out = torch.empty(batch, height, width, heads, head_width, dtype=qkv.dtype, device=qkv.device)
    if out.numel() == 0:
        return [], out
    plan = _Plan(qkv, bias_table, qkv_bias, spec)
    if whole is None:
        whole = reads_whole_rows(qkv, spec.window_size)
    queries = None
    if whole:
        kernel, sizes = triton_whole.whole_forward, plan.tile("window_forward")
        stored = plan.stored(sizes["rows"])
        query_tiles = stored // sizes["rows"]
        groups = min(query_tiles, triton.cdiv(FEW_PROGRAMS, plan.windows * heads))
        queries = triton.cdiv(query_tiles, groups) * sizes["rows"]
        grid = (plan.windows, heads, triton.cdiv(stored, queries))
    else:
        kernel, sizes = triton_tiled.tiled_forward, plan.tile("window_tiled_forward")
        stored = plan.stored(sizes["rows"], sizes["keys"])
        grid = (plan.windows * (stored // sizes["rows"]), heads)
    bias = plan.expand(stored, transposed=False)
    plan.add(kernel, grid, sizes, stored, bias=bias, out=out, QUERIES=queries)
    return plan.launches, out


def plan_backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
    *,
    atomic_bias: bool = False,
    whole: bool | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """Plan the launches of `backward`, and allocate its outputs; see `plan_forward`.

    If `atomic_bias` is True, the bias gradient is accumulated with atomics. This saves memory, but
    the summation order varies between runs, and with it the last bits of the gradient.
    """
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    # The query of `qkv_bias` has no gradient. Without padding, neither do its key and value.
    grad_qkv_bias = torch.zeros_like(qkv_bias, memory_format=torch.contiguous_format)
    if grad_qkv.numel() == 0:
        return [], (grad_qkv, torch.zeros_like(bias_table), grad_qkv_bias)
    if whole is None:
        is_sized = spec.valid_sizes is not None
        whole = differentiates_whole_rows(qkv, spec.window_size, is_sized=is_sized)
    plan = _Plan(qkv, bias_table, qkv_bias, spec)
    plan.values |= {"grad": grad.contiguous(), "grad_qkv": grad_qkv, "ATOMIC": atomic_bias}
    add = _add_whole if whole else _add_tiled
    grad_pairs, stored, grad_padding = add(plan, atomic_bias)
    more, grad_table = plan_reduce(grad_pairs, bias_table, spec.window_size, stored, qkv.dtype)
    plan.launches += more
    if grad_padding is not None:
        more, _ = plan_sum(grad_padding, grad_qkv_bias[1:].view(-1), qkv.dtype)
        plan.launches += more
    return plan.launches, (grad_qkv, grad_table, grad_qkv_bias)


def _add_whole(plan: _Plan, atomic_bias: bool) -> tuple[Tensor, int, Tensor | None]:
    """Add the launch of `whole_backward`.

    Returns:
        The bias gradients [chunks, h, S * S], S, and the padding gradients [parts, 2 h d] (None
        without padding).
    """
    sizes = plan.tile("window_backward")
    stored = plan.stored(sizes["rows"])
    bias = plan.expand(stored, transposed=False)
    chunks, per_chunk = plan.chunks(stored, 1)
    # Programs accumulate into the memory of their chunk.
    grad_pairs = plan.empty(1 if atomic_bias else chunks, plan.heads, stored * stored).zero_()
    grad_padding = plan.padding_parts(plan.windows)
    plan.add(
        triton_whole.whole_backward,
        (chunks, plan.heads),
        sizes,
        stored,
        bias=bias,
        grad_bias=grad_pairs,
        grad_padding=grad_padding,
        windows_per_chunk=per_chunk,
    )
    return grad_pairs, stored, grad_padding


def _add_tiled(plan: _Plan, atomic_bias: bool) -> tuple[Tensor, int, Tensor | None]:
    """Add the launches of the `tiled_backward_*` kernels. Returns the same as `_add_whole`."""
    by_queries, by_keys, by_pairs = (
        plan.tile(f"window_tiled_{name}") for name in ("queries", "keys", "bias")
    )
    stored = plan.stored(
        *(sizes[side] for sizes in (by_queries, by_keys, by_pairs) for side in ("rows", "keys"))
    )
    bias = plan.expand(stored, transposed=False)
    transposed = plan.expand(stored, transposed=True)
    pair_tiles = (stored // by_pairs["rows"]) * (stored // by_pairs["keys"])
    chunks, per_chunk = plan.chunks(stored, pair_tiles)
    grad_pairs = plan.empty(1 if atomic_bias else chunks, plan.heads, stored * stored)
    if atomic_bias:
        grad_pairs.zero_()
    plan.values["statistics"] = plan.empty(plan.windows, plan.heads, 2 * stored)
    key_tiles = plan.windows * (stored // by_keys["keys"])
    grad_padding = plan.padding_parts(key_tiles)
    grid = (plan.windows * (stored // by_queries["rows"]), plan.heads)
    plan.add(triton_tiled.tiled_backward_queries, grid, by_queries, stored, bias=bias)
    plan.add(
        triton_tiled.tiled_backward_keys,
        (key_tiles, plan.heads),
        by_keys,
        stored,
        bias=transposed,
        grad_padding=grad_padding,
    )
    plan.add(
        triton_tiled.tiled_backward_bias,
        (pair_tiles, plan.heads, chunks),
        by_pairs,
        stored,
        bias=bias,
        grad_bias=grad_pairs,
        windows_per_chunk=per_chunk,
    )
    return grad_pairs, stored, grad_padding


def reads_whole_rows(qkv: Tensor, window_size: int) -> bool:
    """Return True if the forward pass keeps whole rows of scores; see `WHOLE_KEY_ELEMENTS`."""
    block = triton.next_power_of_2(qkv.shape[-1])
    elements = window_size**2 * block
    return elements <= WHOLE_KEY_ELEMENTS and block <= 64 and qkv.dtype != torch.float32


def differentiates_whole_rows(qkv: Tensor, window_size: int, *, is_sized: bool) -> bool:
    """Return True if the backward pass keeps whole rows of scores; see `WHOLE_BACKWARD_KEYS`."""
    if is_sized and (tiles.architecture(qkv.device), tiles.triton_minor()) in SPILLED_SIZED:
        return False
    return reads_whole_rows(qkv, window_size) and window_size**2 <= WHOLE_BACKWARD_KEYS


def pieces(count: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Split `count` keys (a multiple of 16) into power-of-two (first key, length) pairs."""
    split, first = [], 0
    while first < count:
        size = min(largest, 1 << ((count - first).bit_length() - 1))
        split.append((first, size))
        first += size
    return tuple(split)


class _Plan:
    """Launches of one call, and the arguments shared by its kernels."""

    def __init__(self, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> None:
        batch, height, width, _, self.heads, head_width = qkv.shape
        down, across = (triton.cdiv(side, spec.window_size) for side in (height, width))
        self.windows = batch * down * across
        # Columns of a tile. The tile size table has entries only for these head dims.
        self.block = max(16, triton.next_power_of_2(head_width))
        self.qkv, self.bias_table, self.spec = qkv, bias_table, spec
        self.wide = torch.promote_types(qkv.dtype, torch.float32)
        self.launches: list[Launch] = []
        is_sized = spec.valid_sizes is not None
        self.padded = is_sized or height % spec.window_size > 0 or width % spec.window_size > 0
        #: Arguments and constants by parameter name.
        self.values: dict[str, Any] = {
            # Copied unless it has the layout of a linear layer's output.
            "qkv": qkv.contiguous(),
            "padding": qkv_bias.contiguous(),
            "sizes": None if spec.valid_sizes is None else spec.valid_sizes.contiguous(),
            "height": height,
            "width": width,
            "down": down,
            "across": across,
            "windows": self.windows,
            "WINDOW": spec.window_size,
            "SHIFT": spec.shift,
            "WIDTH": head_width,
            "BLOCK": self.block,
            "SCALE": head_width**-0.5 * LOG2E,
            "QUERY_SCALE": head_width**-0.5,
            "PADDED": self.padded,
            "SIZED": is_sized,
            "ACCUMULATOR": accumulator(qkv.dtype),
        }

    def tile(self, kernel: str) -> dict[str, int]:
        return tile(
            kernel,
            window=self.spec.window_size,
            head_width=self.block,
            dtype=self.qkv.dtype,
            device=self.qkv.device,
        )

    def stored(self, *blocks: int) -> int:
        """Compute S, the number of tokens per window rounded up to whole tiles of all kernels."""
        return triton.cdiv(self.spec.window_size**2, max(blocks)) * max(blocks)

    def expand(self, stored: int, transposed: bool) -> Tensor:
        """Append the kernel launches that expand the bias, and return the expanded bias."""
        window_size, shift = self.spec.window_size, self.spec.shift
        launches, bias = plan_expand(
            self.bias_table, window_size, shift, stored, self.qkv.dtype, transposed
        )
        self.launches += launches
        return bias

    def chunks(self, stored: int, tiles: int) -> tuple[int, int]:
        """Compute the number of window chunks and the windows per chunk, from shapes alone."""
        chunk_bytes = self.heads * stored * stored * self.wide.itemsize
        chunks = min(
            max(1, CHUNK_BYTES // chunk_bytes),
            triton.cdiv(PROGRAMS, tiles * self.heads),
            # The memory traffic of a chunk costs as much as several windows.
            triton.cdiv(self.windows, 2),
        )
        per_chunk = triton.cdiv(self.windows, chunks)
        return triton.cdiv(self.windows, per_chunk), per_chunk

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.wide, device=self.qkv.device)

    def padding_parts(self, count: int) -> Tensor | None:
        """Allocate the padding gradients [count, 2 h d], or return None without padding."""
        return self.empty(count, 2 * self.heads * self.qkv.shape[-1]) if self.padded else None

    def add(
        self, kernel: Any, grid: tuple[int, ...], sizes: dict[str, int], stored: int, **values: Any
    ) -> None:
        """Add a launch of `kernel`. `values` has the arguments and constants specific to it."""
        values = self.values | values
        values |= {name.upper(): sizes[name] for name in ("rows", "keys") if name in sizes}
        if "piece" in sizes:
            values["PIECES"] = pieces(stored, sizes["piece"])
        values["STORED"] = stored
        values["MASKED"] = self.padded or stored != self.spec.window_size**2
        used = {name: values[name] for name in kernel.arg_names}
        self.launches.append(
            Launch(
                kernel=kernel,
                grid=grid,
                arguments={name: value for name, value in used.items() if not name.isupper()},
                constants={name: value for name, value in used.items() if name.isupper()},
                num_warps=sizes["num_warps"],
                num_stages=sizes["num_stages"],
            )
        )
