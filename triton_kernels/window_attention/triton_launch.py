"""Window attention in Triton: what is launched, from shapes and the table of tile sizes alone.

Nothing is saved for the backward pass but the inputs. Its results are the same bits every time,
and on every GPU that runs the same tiles: how windows are shared out among programs follows from
shapes, and every sum has one order.
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

#: Whole rows of scores stay in registers, up to a head width of 64 and in dtypes with matrix units
#: (16 bits; float64 for tests), forward with at most so many elements of keys (a window of 18 with
#: a head width of 32), backward with at most so many keys.
WHOLE_KEY_ELEMENTS = 336 * 32
WHOLE_BACKWARD_KEYS = 160
#: Chips and versions of Triton that spill registers there where maps have sizes of their own.
SPILLED_SIZED = {("sm_120", "3.7")}
#: Memory for the bias's gradient, in bytes: with that much, all of it stays in the second cache of
#: the GPUs that train (40 MB and more) beside what streams through.
CHUNK_BYTES = 22_000_000
#: Programs that keep a GPU busy, where there are enough windows.
PROGRAMS = 2048
#: With fewer programs than this in the forward pass, a window's queries are shared out too.
FEW_PROGRAMS = 264
#: Head widths up to this are taken.
MAX_HEAD_WIDTH = 128


def refusal(qkv: Tensor, window_size: int) -> str | None:
    """Say why the kernels do not take a shape or dtype; None where they do."""
    _, height, width, _, heads, head_width = qkv.shape
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if qkv.dtype not in dtypes and (qkv.dtype != torch.float64 or qkv.is_cuda):
        return f"dtype {qkv.dtype}; the kernels take float32, float16 and bfloat16"
    if head_width > MAX_HEAD_WIDTH:
        return f"head width {head_width}; the kernels take up to {MAX_HEAD_WIDTH}"
    if heads > 65535:
        return f"{heads} heads; the kernels take up to 65535"
    if height * width * 3 * heads * head_width >= 2**31:
        return "a sample of 2**31 elements or more, which offsets of 32 bits do not reach"
    if 4 * heads * (window_size**2 + 128) ** 2 >= 2**31:
        return f"a bias of 2**31 pairs or more for windows of {window_size} and {heads} heads"
    return None


def forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
) -> Tensor:
    """See `operations.window_attention`."""
    launches, out = plan_forward(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
    for each in launches:
        each.run()
    return out


def backward(
    grad: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    atomic_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, bias_table and qkv_bias, each in its tensor's shape and dtype.

    Args:
        grad: (B, H, W, h, d) gradient of what `forward` returns.
        qkv: and the others, as for `forward`.
        bias_table: see there.
        qkv_bias: see there.
        window_size: see there.
        shift: see there.
        valid_sizes: see there.
        atomic_bias: add the bias's gradient up with atomics, in less memory but in an order, and
            so with last bits, that change from run to run.
    """
    launches, gradients = plan_backward(
        grad, qkv, bias_table, qkv_bias, window_size, shift, valid_sizes, atomic_bias
    )
    for each in launches:
        each.run()
    return gradients


def plan_forward(
    qkv: Tensor,
    bias_table: Tensor,
    qkv_bias: Tensor,
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    whole: bool | None = None,
) -> tuple[list[Launch], Tensor]:
    """What `forward` launches, and its result, not yet written.

    Args:
        qkv: and the others, as for `forward`; meta tensors will do.
        bias_table: see there.
        qkv_bias: see there.
        window_size: see there.
        shift: see there.
        valid_sizes: see there.
        whole: keep whole rows of scores in registers, or go through them in tiles; None lets the
            window's size decide.
    """
    batch, height, width, _, heads, head_width = qkv.shape
    out = torch.empty(batch, height, width, heads, head_width, dtype=qkv.dtype, device=qkv.device)
    if out.numel() == 0:
        return [], out
    shared = _Shared(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
    if reads_whole_rows(qkv, window_size) if whole is None else whole:
        sizes = shared.tile("window_forward")
        stored = shared.stored(sizes["rows"])
        programs = shared.windows * heads
        tiles = stored // sizes["rows"]
        groups = min(tiles, triton.cdiv(FEW_PROGRAMS, programs))
        queries = triton.cdiv(tiles, groups) * sizes["rows"]
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
    window_size: int,
    shift: int,
    valid_sizes: Tensor | None,
    atomic_bias: bool = False,
    whole: bool | None = None,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """What `backward` launches, and its results, not yet written; see `plan_forward`."""
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    # Zero is the answer for the padding's query, which nobody asks, and where there is no padding.
    grad_qkv_bias = torch.zeros_like(qkv_bias, memory_format=torch.contiguous_format)
    if grad_qkv.numel() == 0:
        return [], (grad_qkv, torch.zeros_like(bias_table), grad_qkv_bias)
    shared = _Shared(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
    tensors = {"grad": grad.contiguous(), "grad_qkv": grad_qkv}
    if whole is None:
        whole = differentiates_whole_rows(qkv, window_size, is_sized=valid_sizes is not None)
    if whole:
        launches, grad_pairs, stored, grad_padding = _plan_whole(shared, tensors, atomic_bias)
    else:
        launches, grad_pairs, stored, grad_padding = _plan_tiled(shared, tensors, atomic_bias)
    more, grad_table = plan_reduce(grad_pairs, bias_table, window_size, stored, qkv.dtype)
    launches += more
    if grad_padding is not None:
        more, _ = plan_sum(grad_padding, grad_qkv_bias[1:].view(-1), qkv.dtype)
        launches += more
    return launches, (grad_qkv, grad_table, grad_qkv_bias)


def _plan_whole(
    shared: _Shared, tensors: dict[str, Tensor], atomic_bias: bool
) -> tuple[list[Launch], Tensor, int, Tensor | None]:
    """One kernel: the launches, the bias's gradient by chunks, its S, the padding's by windows."""
    sizes = shared.tile("window_backward")
    stored = shared.stored(sizes["rows"])
    launches, bias = shared.expand(stored, transposed=False)
    chunks, per_chunk = shared.chunks(stored, 1)
    grad_pairs = shared.pairs(1 if atomic_bias else chunks, stored)
    # Every program adds to what it finds.
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
    """Three kernels: by queries, by keys, by pairs of tokens."""
    by_queries, by_keys, by_pairs = (
        shared.tile(f"window_tiled_{name}") for name in ("queries", "keys", "bias")
    )
    stored = shared.stored(
        *(sizes[side] for sizes in (by_queries, by_keys, by_pairs) for side in ("rows", "keys"))
    )
    launches, bias = shared.expand(stored, transposed=False)
    more, transposed = shared.expand(stored, transposed=True)
    launches += more
    tiles = (stored // by_pairs["rows"]) * (stored // by_pairs["keys"])
    chunks, per_chunk = shared.chunks(stored, tiles)
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
            (tiles, shared.heads, chunks),
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
    """Whether rows of scores stay in registers forward; see `WHOLE_KEY_ELEMENTS`."""
    block = triton.next_power_of_2(qkv.shape[-1])
    elements = window_size**2 * block
    return elements <= WHOLE_KEY_ELEMENTS and block <= 64 and qkv.dtype != torch.float32


def differentiates_whole_rows(qkv: Tensor, window_size: int, *, is_sized: bool) -> bool:
    """Whether they do backward; see `WHOLE_BACKWARD_KEYS` and `SPILLED_SIZED`."""
    if is_sized and (tiles.architecture(qkv.device), tiles.triton_minor()) in SPILLED_SIZED:
        return False
    return reads_whole_rows(qkv, window_size) and window_size**2 <= WHOLE_BACKWARD_KEYS


def pieces(count: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Cut `count` keys, a multiple of 16, into powers of two: (first key, keys) of each."""
    cut, first = [], 0
    while first < count:
        size = min(largest, 1 << ((count - first).bit_length() - 1))
        cut.append((first, size))
        first += size
    return tuple(cut)


class _Shared:
    """What every kernel of one call is given."""

    def __init__(
        self,
        qkv: Tensor,
        bias_table: Tensor,
        qkv_bias: Tensor,
        window_size: int,
        shift: int,
        valid_sizes: Tensor | None,
    ) -> None:
        batch, self.height, self.width, _, self.heads, self.head_width = qkv.shape
        self.down, self.across = (-(-side // window_size) for side in qkv.shape[1:3])
        self.windows = batch * self.down * self.across
        self.window_size, self.shift = window_size, shift
        # Columns of a tile; the table has a line for these widths, not for every one.
        self.block = max(16, triton.next_power_of_2(self.head_width))
        # Layouts other than that of a linear layer's output are copied.
        self.qkv, self.bias_table = qkv.contiguous(), bias_table
        self.padding = qkv_bias.contiguous()
        self.sizes = None if valid_sizes is None else valid_sizes.contiguous()
        self.padded = (
            valid_sizes is not None or self.height % window_size > 0 or self.width % window_size > 0
        )

    def tile(self, kernel: str) -> dict[str, int]:
        return tile(
            kernel,
            window=self.window_size,
            head_width=self.block,
            dtype=self.qkv.dtype,
            device=self.qkv.device,
        )

    def stored(self, *blocks: int) -> int:
        """Rows and columns of pairs that are stored, whole tiles of every kernel: S."""
        block = max(blocks)
        return -(-(self.window_size**2) // block) * block

    def expand(self, stored: int, transposed: bool) -> tuple[list[Launch], Tensor]:
        return plan_expand(
            self.bias_table, self.window_size, self.shift, stored, self.qkv.dtype, transposed
        )

    def chunks(self, stored: int, tiles: int) -> tuple[int, int]:
        """How many chunks the windows are cut into, and windows per chunk, from shapes alone."""
        slab = self.heads * stored * stored * (8 if self.qkv.dtype == torch.float64 else 4)
        chunks = min(
            max(1, CHUNK_BYTES // slab),
            triton.cdiv(PROGRAMS, tiles * self.heads),
            # A chunk's memory costs as much as several windows.
            triton.cdiv(self.windows, 2),
        )
        per_chunk = triton.cdiv(self.windows, chunks)
        return triton.cdiv(self.windows, per_chunk), per_chunk

    def pairs(self, chunks: int, stored: int) -> Tensor:
        double = self.qkv.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        return torch.empty(chunks, self.heads, stored * stored, dtype=dtype, device=self.qkv.device)

    def parts(self, count: int) -> Tensor | None:
        """Memory for the gradients of the padding's key and value; None without padding."""
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
        """Describe a call; what the kernel does not take is left out."""
        scale = self.head_width**-0.5
        constants = constants | {
            "WINDOW": self.window_size,
            "SHIFT": self.shift,
            "WIDTH": self.head_width,
            "BLOCK": self.block,
            "STORED": stored,
            "SCALE": scale * LOG2E,
            "QUERY_SCALE": scale,
            "MASKED": self.padded or stored != self.window_size**2,
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
