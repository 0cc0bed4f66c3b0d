"""One shifted window block from its first norm to the residual, three times, on meta tensors.

The published code in eager mode (`benches/eager_fiber.py`), the same with PyTorch's fused attention
in the packing that suits it best, and the package's own block, whose attention is planned instead
of run: what it launches is kept to be compiled and counted.

Letters: B batch, C channels, w window side, N tokens of a window, nW windows of a picture, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benches import eager_fiber
from fiber import kernels
from fiber.kernels.runtime.launch import Launch
from fiber.kernels.window_attention import triton_launch as window_launch
from fiber.models.swin import SwinBlock
from tests.kernels.compiled.cases import planned
from tests.kernels.compiled.compile import Chip
from tests.kernels.compiled.traffic import OperationBytes, SavedBytes, sum_bytes


@dataclass(frozen=True)
class Setting:
    """Sizes of a block."""

    batch: int
    side: int
    channels: int
    heads: int
    window: int


#: The first stage of the coarse model at 384 pixels.
FIRST_STAGE = Setting(batch=64, side=96, channels=128, heads=4, window=12)


@dataclass
class Counts:
    """What one formulation of the block moves and keeps."""

    forward: int
    backward: int
    saved: int
    forward_operations: int
    #: Of our kernels: bytes of the bias beyond its first time, forward and backward.
    bias_again: tuple[int, int] = (0, 0)


#: What PyTorch's autocast does on CUDA to the operations of a block: these run in 16 bits, ...
_LOW = frozenset({"linear", "matmul", "__matmul__", "_scaled_dot_product_efficient_attention"})
#: ... and these in float32.
_FULL = frozenset({"layer_norm", "softmax"})


class Autocast(TorchFunctionMode):
    """CUDA's rules of autocast to bfloat16, where there is no CUDA to have them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]
        dtype = torch.bfloat16 if name in _LOW else torch.float32 if name in _FULL else None
        if dtype is not None:
            args = tuple(_cast(each, dtype) for each in args)
            kwargs = {key: _cast(each, dtype) for key, each in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # Norms' weights are float32 already.
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def eager(setting: Setting) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """The published block: roll, cut, score, add bias and mask, softmax, weigh, put together."""
    block = _published(setting)

    def run(x: Tensor) -> Tensor:
        grid = torch.roll(block.norm1(x), (-block.shift, -block.shift), (1, 2))
        windows = eager_fiber.to_windows(grid, block.window)
        windows = block.attn(windows, block.attn_mask, None, None)
        grid = eager_fiber.from_windows(windows, block.window, block.side)
        return x + torch.roll(grid, (block.shift, block.shift), (1, 2))

    return block, run


def fused(setting: Setting) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """PyTorch's fused attention; windows are folded into heads, so that B shares one mask."""
    block = _published(setting)
    attention = block.attn
    tokens = setting.window**2
    windows = (setting.side // setting.window) ** 2

    def run(x: Tensor) -> Tensor:
        grid = torch.roll(block.norm1(x), (-block.shift, -block.shift), (1, 2))
        cut = eager_fiber.to_windows(grid, block.window)
        # (B nW, N, 3 C) -> 3 x (B, nW h, N, d)
        packed = attention.qkv(cut).view(-1, windows, tokens, 3, setting.heads, 32)
        query, key, value = packed.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        bias = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
        bias = bias.view(tokens, tokens, -1).permute(2, 0, 1)
        # (nW, h, N, N) -> (1, nW h, N, N), the same for every picture
        scores = (bias + block.attn_mask[:, None]).flatten(0, 1).to(torch.bfloat16)
        scores = scores.expand(setting.batch, -1, -1, -1)
        read = torch._scaled_dot_product_efficient_attention(query, key, value, scores, True)[0]
        # (B, nW h, N, d) -> (B nW, N, C)
        read = read.unflatten(1, (windows, -1)).transpose(2, 3).reshape(-1, tokens, x.shape[-1])
        grid = eager_fiber.from_windows(attention.proj(read), block.window, block.side)
        return x + torch.roll(grid, (block.shift, block.shift), (1, 2))

    return block, run


def _published(setting: Setting) -> Any:
    with torch.device("cpu"):
        block = eager_fiber.SwinBlock(
            setting.channels,
            setting.heads,
            setting.window,
            setting.side,
            shifted=True,
            text_width=None,
        )
    return block.to("meta")


@dataclass
class Ours:
    """The package's own block, with what its attention launches."""

    setting: Setting
    chip: Chip
    forward_launches: list[Launch] = field(default_factory=list)
    backward_launches: list[Launch] = field(default_factory=list)

    def block(self) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
        """Build the block; `attention` has to be in force where it runs."""
        with torch.device("meta"):
            block = SwinBlock(
                self.setting.channels,
                self.setting.heads,
                self.setting.window,
                shifted=True,
                shift_small_maps=False,
                mlp_ratio=4.0,
                drop_path=0.0,
            )
        return block, lambda x: x + block._attend(block.attention_norm(x), None)

    def attention(self) -> AbstractContextManager[Any]:
        """Put the plans in the place of the public operation."""
        ours = self

        class Planned(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, qkv: Tensor, table: Tensor, bias: Tensor, *sizes: Any) -> Tensor:
                ctx.save_for_backward(qkv, table, bias)
                ctx.sizes = sizes
                plan = window_launch.plan_forward
                launches, out = _planned(plan, ours.chip, qkv, table, bias, *sizes)
                ours.forward_launches += launches
                return out

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
                inputs = ctx.saved_tensors
                plan = window_launch.plan_backward
                launches, out = _planned(plan, ours.chip, *gradients, *inputs, *ctx.sizes)
                ours.backward_launches += launches
                return (*out, None, None, None)

        def call(
            qkv: Tensor,
            bias_table: Tensor,
            qkv_bias: Tensor,
            *,
            window_size: int,
            shift: int,
            valid_sizes: Tensor | None = None,
        ) -> Tensor:
            out = Planned.apply(qkv, bias_table, qkv_bias, window_size, shift, valid_sizes)
            assert isinstance(out, Tensor)
            return out

        return mock.patch.object(kernels, "window_attention", call)


def _planned(plan: Callable[..., Any], chip: Chip, *arguments: Any) -> Any:
    return planned(lambda: plan(*arguments), chip)


def count(
    module: torch.nn.Module,
    run: Callable[[Tensor], Tensor],
    setting: Setting,
    ours: Ours | None = None,
) -> Counts:
    """Count one formulation, forward and backward, the residual stream in bfloat16."""
    x = torch.empty(
        (setting.batch, setting.side, setting.side, setting.channels),
        dtype=torch.bfloat16,
        device="meta",
        requires_grad=True,
    )
    saved = SavedBytes([*module.parameters(), *module.buffers()])
    with OperationBytes() as forward, saved.hooks(), Autocast():
        out = run(x)
    with OperationBytes() as backward:
        out.backward(torch.empty_like(out))
    counts = Counts(forward.moved, backward.moved, saved.total, forward.operations)
    if ours is not None:
        of_forward = sum_bytes(ours.forward_launches, ours.chip)
        of_backward = sum_bytes(ours.backward_launches, ours.chip)
        counts.forward += of_forward.moved
        counts.backward += of_backward.moved
        counts.forward_operations += len(ours.forward_launches)
        counts.bias_again = (of_forward.bias_again, of_backward.bias_again)
    return counts


def count_all(setting: Setting, chip: Chip) -> dict[str, Counts]:
    """Count all three formulations."""
    ours = Ours(setting, chip)
    found = {
        "eager": count(*eager(setting), setting),
        "fused": count(*fused(setting), setting),
    }
    with ours.attention():
        found["ours"] = count(*ours.block(), setting, ours)
    return found
