"""Launches of the window attention kernels, from shapes and the table of tile sizes alone.

Only the inputs are saved for the backward pass. Gradients are deterministic, and the same on every
GPU with the same tile sizes: the partition of windows over programs depends on shapes alone, and
every sum has a fixed order.

Letters: B batch, H W map, h heads, d head width, w window side, S stored rows and columns of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from ..runtime import tiles
from ..runtime.launch import Launch
from ..runtime.tiles import tile
from . import triton_tiled, triton_whole
from .triton_bias import LOG2E, accumulator, plan_expand, plan_reduce, plan_sum
from .window_spec import WindowSpec

#: Limits of the kernels that keep whole rows of scores in registers, which need a head width of at
#: most 64 and a dtype with matrix units (16 bits; float64 for tests): elements of the keys of a
#: window forward (a window of 18 with a head width of 32), and keys of a window backward.
WHOLE_KEY_ELEMENTS = 336 * 32
WHOLE_BACKWARD_KEYS = 160
#: Chips and versions of Triton where these spill registers if samples have own map sizes.
SPILLED_SIZED = {("sm_120", "3.7")}
#: Bytes for the gradient of the bias. It then stays in the L2 cache of training GPUs (40 MB or
#: more) while other tensors are streamed.
CHUNK_BYTES = 22_000_000
#: Programs that keep a GPU busy, if there are enough windows.
PROGRAMS = 2048
#: With fewer programs in the forward pass, the queries of a window are split too.
FEW_PROGRAMS = 264
#: Largest head width.
MAX_HEAD_WIDTH = 128


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Return why the kernels do not take a shape or dtype; None if they do."""
    _, height, width, _, heads, head_width = qkv.shape
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if qkv.dtype not in dtypes and (qkv.dtype != torch.float64 or qkv.is_cuda):
        return f"dtype {qkv.dtype}; the kernels take float32, float16 and bfloat16"
    if head_width > MAX_HEAD_WIDTH:
        return f"head width {head_width}; the kernels take up to {MAX_HEAD_WIDTH}"
    if heads > 65535:
        return f"{heads} heads; the kernels take up to 65535"
    if height * width * 3 * heads * head_width >= 2**31:
        return "a sample of 2**31 elements or more, too many for offsets of 32 bits"
    if 4 * heads * (window_size**2 + 128) ** 2 >= 2**31:
        return f"a bias of 2**31 pairs or more for windows of {window_size} and {heads} heads"
    return None


def forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
) -> Tensor:
    """Compute window attention; see `op.window_attention`."""
    launches, out = plan_forward(qkv, bias_table, qkv_bias, spec)
    for each in launches:
        each.run()
    return out


def backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    spec: WindowSpec,
    *,
    atomic_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, bias_table and qkv_bias, in their shapes and dtypes.

    Args:
        grad: [B, H, W, h, d] gradient of the output.
        qkv: [B, H, W, 3, h, d].
        bias_table: [(2 w - 1) ** 2, h].
        qkv_bias: [3, h, d].
        spec: window size, shift and own map sizes.
        atomic_bias: accumulate the gradient of the bias with atomics, in less memory. The order of
            the sum, and so its last bits, then change from run to run.
    """
    launches, gradients = plan_backward(
        grad, qkv, bias_table, qkv_bias, spec, atomic_bias=atomic_bias
    )
    for each in launches:
        each.run()
    return gradients


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
        qkv: [B, H, W, 3, h, d]; may be on the meta device, as may all others.
        bias_table: [(2 w - 1) ** 2, h].
        qkv_bias: [3, h, d].
        spec: window size, shift and own map sizes.
        whole: keep whole rows of scores in registers, or iterate over tiles of keys; None: decide
            by the size of the window.
    """
    batch, height, width, _, heads, head_width = qkv.shape
    out = torch.empty(batch, height, width, heads, head_width, dtype=qkv.dtype, device=qkv.device)
    if out.numel() == 0:
        return [], out
    shared = _Shared(qkv, bias_table, qkv_bias, spec)
    if whole is None:
        whole = reads_whole_rows(qkv, spec.window_size)
    if whole:
        sizes = shared.tile("window_forward")
        stored = shared.stored(sizes["rows"])
        programs = shared.windows * heads
        query_tiles = stored // sizes["rows"]
        groups = min(query_tiles, triton.cdiv(FEW_PROGRAMS, programs))
        queries = triton.cdiv(query_tiles, groups) * sizes["rows"]
        constants = {
            "PIECES": pieces(stored, sizes["piece"]),
            "ROWS": sizes["rows"],
            "QUERIES": queries,
        }
        kernel = triton_whole.whole_forward
        grid = (shared.windows, heads, triton.cdiv(stored, queries))
    else:
        sizes = shared.tile("window_tiled_forward")
        stored = shared.stored(sizes["rows"], sizes["keys"])
        constants = {"ROWS": sizes["rows"], "KEYS": sizes["keys"]}
        kernel = triton_tiled.tiled_forward
        grid = (shared.windows * (stored // sizes["rows"]), heads)
    launches, bias = shared.expand(stored, transposed=False)
    launches.append(
        shared.launch(kernel, grid, sizes, {"bias": bias, "out": out}, stored, constants)
    )
    return launches, out


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
    """Plan the launches of `backward`, and allocate its outputs; see `plan_forward`."""
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    # The gradient is 0 for the query of padding, which has no output, and without padding.
    grad_qkv_bias = torch.zeros_like(qkv_bias, memory_format=torch.contiguous_format)
    if grad_qkv.numel() == 0:
        return [], (grad_qkv, torch.zeros_like(bias_table), grad_qkv_bias)
    shared = _Shared(qkv, bias_table, qkv_bias, spec)
    tensors = {"grad": grad.contiguous(), "grad_qkv": grad_qkv}
    if whole is None:
        whole = differentiates_whole_rows(
            qkv, spec.window_size, is_sized=spec.valid_sizes is not None
        )
    if whole:
        launches, grad_pairs, stored, grad_padding = _plan_whole(shared, tensors, atomic_bias)
    else:
        launches, grad_pairs, stored, grad_padding = _plan_tiled(shared, tensors, atomic_bias)
    more, grad_table = plan_reduce(grad_pairs, bias_table, spec.window_size, stored, qkv.dtype)
    launches += more
    if grad_padding is not None:
        more, _ = plan_sum(grad_padding, grad_qkv_bias[1:].view(-1), qkv.dtype)
        launches += more
    return launches, (grad_qkv, grad_table, grad_qkv_bias)


def _plan_whole(
    shared: _Shared, tensors: dict[str, Tensor], atomic_bias: bool
) -> tuple[list[Launch], Tensor, int, Tensor | None]:
    """Plan one kernel.

    Returns:
        The launches, the gradient of the bias [chunks, h, S * S], S, and the gradients of padding
        [B nW, 2 h d] or None.
    """
    sizes = shared.tile("window_backward")
    stored = shared.stored(sizes["rows"])
    launches, bias = shared.expand(stored, transposed=False)
    chunks, per_chunk = shared.chunks(stored, 1)
    grad_pairs = shared.pairs(1 if atomic_bias else chunks, stored)
    # Every program adds to the memory of its chunk.
    grad_pairs.zero_()
    grad_padding = shared.parts(shared.windows)
    tensors = tensors | {"bias": bias, "grad_bias": grad_pairs, "grad_padding": grad_padding}
    constants = {
        "PIECES": pieces(stored, sizes["piece"]),
        "ROWS": sizes["rows"],
        "ATOMIC": atomic_bias,
    }
    numbers = {"windows": shared.windows, "windows_per_chunk": per_chunk}
    launches.append(
        shared.launch(
            triton_whole.whole_backward,
            (chunks, shared.heads),
            sizes,
            tensors | numbers,
            stored,
            constants,
        )
    )
    return launches, grad_pairs, stored, grad_padding


def _plan_tiled(
    shared: _Shared, tensors: dict[str, Tensor], atomic_bias: bool
) -> tuple[list[Launch], Tensor, int, Tensor | None]:
    """Plan three kernels, by queries, by keys and by pairs of tokens; see `_plan_whole`."""
    by_queries, by_keys, by_pairs = (
        shared.tile(f"window_tiled_{name}") for name in ("queries", "keys", "bias")
    )
    stored = shared.stored(
        *(sizes[side] for sizes in (by_queries, by_keys, by_pairs) for side in ("rows", "keys"))
    )
    launches, bias = shared.expand(stored, transposed=False)
    more, transposed = shared.expand(stored, transposed=True)
    launches += more
    pair_tiles = (stored // by_pairs["rows"]) * (stored // by_pairs["keys"])
    chunks, per_chunk = shared.chunks(stored, pair_tiles)
    grad_pairs = shared.pairs(1 if atomic_bias else chunks, stored)
    if atomic_bias:
        grad_pairs.zero_()
    statistics = torch.empty(
        shared.windows,
        shared.heads,
        2 * stored,
        dtype=grad_pairs.dtype,
        device=grad_pairs.device,
    )
    key_tiles = shared.windows * (stored // by_keys["keys"])
    grad_padding = shared.parts(key_tiles)
    tensors = tensors | {"statistics": statistics}
    numbers = {"windows": shared.windows, "windows_per_chunk": per_chunk}
    plans = (
        (
            triton_tiled.tiled_backward_queries,
            (shared.windows * (stored // by_queries["rows"]), shared.heads),
            by_queries,
            {"bias": bias},
        ),
        (
            triton_tiled.tiled_backward_keys,
            (key_tiles, shared.heads),
            by_keys,
            {"bias": transposed, "grad_padding": grad_padding},
        ),
        (
            triton_tiled.tiled_backward_bias,
            (pair_tiles, shared.heads, chunks),
            by_pairs,
            {"bias": bias, "grad_bias": grad_pairs} | numbers,
        ),
    )
    for kernel, grid, sizes, more_tensors in plans:
        constants = {"ROWS": sizes["rows"], "KEYS": sizes["keys"], "ATOMIC": atomic_bias}
        launches.append(
            shared.launch(kernel, grid, sizes, tensors | more_tensors, stored, constants)
        )
    return launches, grad_pairs, stored, grad_padding


def reads_whole_rows(qkv: Tensor, window_size: int) -> bool:
    """Check whether rows of scores stay in registers forward; see `WHOLE_KEY_ELEMENTS`."""
    block = triton.next_power_of_2(qkv.shape[-1])
    elements = window_size**2 * block
    return elements <= WHOLE_KEY_ELEMENTS and block <= 64 and qkv.dtype != torch.float32


def differentiates_whole_rows(qkv: Tensor, window_size: int, *, is_sized: bool) -> bool:
    """Check the same backward; see `WHOLE_BACKWARD_KEYS` and `SPILLED_SIZED`."""
    if is_sized and (tiles.architecture(qkv.device), tiles.triton_minor()) in SPILLED_SIZED:
        return False
    return reads_whole_rows(qkv, window_size) and window_size**2 <= WHOLE_BACKWARD_KEYS


def pieces(count: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Split `count` keys, a multiple of 16, into powers of two: (first key, keys) of each."""
    cut, first = [], 0
    while first < count:
        size = min(largest, 1 << ((count - first).bit_length() - 1))
        cut.append((first, size))
        first += size
    return tuple(cut)


class _Shared:
    """Arguments that all kernels of one call share."""

    def __init__(self, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor, spec: WindowSpec) -> None:
        window_size = spec.window_size
        batch, self.height, self.width, _, self.heads, self.head_width = qkv.shape
        self.down, self.across = (-(-side // window_size) for side in qkv.shape[1:3])
        self.windows = batch * self.down * self.across
        self.spec = spec
        # Columns of a tile. The table of tile sizes has lines for these widths only.
        self.block = max(16, triton.next_power_of_2(self.head_width))
        # Copied, unless it has the layout of a linear layer's output.
        self.qkv, self.bias_table = qkv.contiguous(), bias_table
        self.padding = qkv_bias.contiguous()
        self.sizes = None if spec.valid_sizes is None else spec.valid_sizes.contiguous()
        self.padded = (
            self.sizes is not None or self.height % window_size > 0 or self.width % window_size > 0
        )

    def tile(self, kernel: str) -> dict[str, int]:
        return tile(
            kernel,
            window=self.spec.window_size,
            head_width=self.block,
            dtype=self.qkv.dtype,
            device=self.qkv.device,
        )

    def stored(self, *blocks: int) -> int:
        """Compute S, the stored rows and columns of pairs: whole tiles of every kernel."""
        block = max(blocks)
        return -(-(self.spec.window_size**2) // block) * block

    def expand(self, stored: int, transposed: bool) -> tuple[list[Launch], Tensor]:
        window_size, shift = self.spec.window_size, self.spec.shift
        return plan_expand(self.bias_table, window_size, shift, stored, self.qkv.dtype, transposed)

    def chunks(self, stored: int, tiles: int) -> tuple[int, int]:
        """Compute the number of chunks of windows, and windows per chunk, from shapes alone."""
        slab = self.heads * stored * stored * (8 if self.qkv.dtype == torch.float64 else 4)
        chunks = min(
            max(1, CHUNK_BYTES // slab),
            triton.cdiv(PROGRAMS, tiles * self.heads),
            # The memory of a chunk costs as much as several windows.
            triton.cdiv(self.windows, 2),
        )
        per_chunk = triton.cdiv(self.windows, chunks)
        return triton.cdiv(self.windows, per_chunk), per_chunk

    def pairs(self, chunks: int, stored: int) -> Tensor:
        double = self.qkv.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        return torch.empty(chunks, self.heads, stored * stored, dtype=dtype, device=self.qkv.device)

    def parts(self, count: int) -> Tensor | None:
        """Allocate gradients of the padding's key and value [count, 2 h d]; None if unpadded."""
        if not self.padded:
            return None
        double = self.qkv.dtype == torch.float64
        return torch.empty(
            count,
            2 * self.heads * self.head_width,
            dtype=torch.float64 if double else torch.float32,
            device=self.qkv.device,
        )

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        sizes: dict[str, int],
        arguments: Mapping[str, Tensor | int | None],
        stored: int,
        constants: dict[str, Any],
    ) -> Launch:
        """Make a `Launch`; arguments and constants that the kernel does not have are dropped."""
        scale = self.head_width**-0.5
        constants = constants | {
            "WINDOW": self.spec.window_size,
            "SHIFT": self.spec.shift,
            "WIDTH": self.head_width,
            "BLOCK": self.block,
            "STORED": stored,
            "SCALE": scale * LOG2E,
            "QUERY_SCALE": scale,
            "MASKED": self.padded or stored != self.spec.window_size**2,
            "PADDED": self.padded,
            "SIZED": self.sizes is not None,
            "ACCUMULATOR": accumulator(self.qkv.dtype),
        }
        named: dict[str, Tensor | int | None] = {
            "qkv": self.qkv,
            "padding": self.padding,
            "sizes": self.sizes,
            "height": self.height,
            "width": self.width,
            "down": self.down,
            "across": self.across,
            **arguments,
        }
        return Launch(
            kernel=kernel,
            grid=grid,
            arguments={name: value for name, value in named.items() if name in kernel.arg_names},
            constants={name: constants[name] for name in constants if name in kernel.arg_names},
            num_warps=sizes["num_warps"],
            num_stages=sizes["num_stages"],
        )
