"""Calls of the model for which kernels are compiled, planned on the meta device.

Notation: B batch size, h heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from fiber.kernels.cross_attention import triton_launch as cross_launch
from fiber.kernels.cross_attention.key_mask import Dropout, KeyMask
from fiber.kernels.runtime import tiles
from fiber.kernels.runtime.launch import Launch
from fiber.kernels.window_attention import triton_launch as window_launch
from fiber.kernels.window_attention.window_spec import WindowSpec
from tests.kernels.compiled.compile import Chip


@dataclass(frozen=True)
class Window:
    """A window attention call."""

    window_size: int
    shift: int
    #: (H, W) in tokens.
    map_size: tuple[int, int]
    heads: int
    batch: int = 8
    head_width: int = 32
    #: True if valid sizes are given.
    sized: bool = False

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, WindowSpec]:
        """Return the arguments of both plans, without the gradient."""
        rows = (2 * self.window_size - 1) ** 2
        sizes = _meta(self.batch, 2, dtype=torch.int64) if self.sized else None
        return (
            _meta(self.batch, *self.map_size, 3, self.heads, self.head_width, dtype=dtype),
            _meta(rows, self.heads, dtype=torch.float32),
            _meta(3, self.heads, self.head_width, dtype=torch.float32),
            WindowSpec(self.window_size, self.shift, sizes),
        )

    def forward(self, dtype: torch.dtype) -> list[Launch]:
        """Plan a forward pass."""
        return window_launch.plan_forward(*self.inputs(dtype))[0]

    def backward(self, dtype: torch.dtype, *, atomic_bias: bool = False) -> list[Launch]:
        """Plan a backward pass."""
        inputs = self.inputs(dtype)
        grad = _meta(self.batch, *self.map_size, self.heads, self.head_width, dtype=dtype)
        return window_launch.plan_backward(grad, *inputs, atomic_bias=atomic_bias)[0]


@dataclass(frozen=True)
class Cross:
    """A cross attention call."""

    queries: int
    keys: int
    heads: int
    head_width: int
    batch: int = 8
    #: True if key lengths are given.
    lengths: bool = False
    #: (H, W) of the key map if valid sizes are given.
    map_size: tuple[int, int] | None = None
    dropout_p: float = 0.0

    def _inputs(self, dtype: torch.dtype) -> tuple[list[Tensor], tuple[KeyMask, Dropout]]:
        shape = (self.heads, self.head_width)
        tensors = [
            _meta(self.batch, count, *shape, dtype=dtype)
            for count in (self.queries, self.keys, self.keys)
        ]
        keys = KeyMask(
            lengths=_meta(self.batch, dtype=torch.int64) if self.lengths else None,
            sizes=_meta(self.batch, 2, dtype=torch.int64) if self.map_size else None,
            map_size=self.map_size,
        )
        seed = _meta(1, dtype=torch.int64) if self.dropout_p else None
        return tensors, (keys, Dropout(self.dropout_p, seed))

    def forward(self, dtype: torch.dtype) -> list[Launch]:
        """Plan a forward pass."""
        tensors, others = self._inputs(dtype)
        return cross_launch.plan_forward(*tensors, *others)[0]

    def backward(self, dtype: torch.dtype) -> list[Launch]:
        """Plan a backward pass."""
        tensors, others = self._inputs(dtype)
        _, (out, logsumexp) = cross_launch.plan_forward(*tensors, *others)
        grad = torch.empty_like(out)
        return cross_launch.plan_backward(grad, *tensors, out, logsumexp, *others)[0]


#: The calls by name: coarse at 384 and 576 pixels, fine at 800 x 1333, and Swin's own window.
CALLS: dict[str, Window | Cross] = {
    "window 12 shifted": Window(12, 6, (96, 96), 4),
    "window 12 one window": Window(12, 0, (12, 12), 32),
    "window 12 sized": Window(12, 6, (200, 336), 4, batch=2, sized=True),
    "window 18 shifted": Window(18, 9, (144, 144), 4),
    "window 7 shifted": Window(7, 3, (56, 56), 4),
    "image to text": Cross(576, 40, 16, 32, lengths=True),
    "image to text fine": Cross(4200, 256, 16, 32, batch=2, lengths=True),
    "text to image": Cross(40, 576, 12, 64, dropout_p=0.1),
    "text to image fine": Cross(256, 4200, 12, 64, batch=1, map_size=(50, 84)),
}
#: dtypes of every call on every chip, and of some calls on three chips.
DTYPES = (torch.bfloat16,)
MORE_DTYPES = (torch.float32, torch.float16)
MORE_CHIPS = ("sm_80", "sm_90", "gfx942")
MORE_CALLS = ("window 12 shifted", "window 18 shifted", "image to text", "text to image")


@dataclass(frozen=True)
class Case:
    """One pass of one call in one dtype."""

    call: str
    dtype: torch.dtype
    backward: bool

    @property
    def name(self) -> str:
        """Name such as "window 12 shifted, bfloat16, forward"."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.call}, {dtype}, {'backward' if self.backward else 'forward'}"

    def chips(self, chips: Iterable[Chip]) -> list[Chip]:
        """Select the chips that the case is compiled for."""
        everywhere = self.dtype in DTYPES
        return [chip for chip in chips if everywhere or chip.name in MORE_CHIPS]

    def launches(self, chip: Chip) -> list[Launch]:
        """Plan the pass with the tile sizes of a chip."""
        call = CALLS[self.call]
        plan: Callable[[torch.dtype], list[Launch]]
        plan = call.backward if self.backward else call.forward
        return planned(lambda: plan(self.dtype), chip)


def planned(plan: Callable[[], list[Launch]], chip: Chip) -> list[Launch]:
    """Plan with the tile sizes of a chip; meta tensors have no architecture."""
    with mock.patch.object(tiles, "architecture", lambda device: chip.name):
        return plan()


def all_cases() -> list[Case]:
    """List every call in all of its dtypes, forward and backward."""
    return [
        Case(call, dtype, backward)
        for call in CALLS
        for dtype in (*DTYPES, *(MORE_DTYPES if call in MORE_CALLS else ()))
        for backward in (False, True)
    ]


def quick_cases() -> list[Case]:
    """List the cases that the tests compile."""
    return [
        Case(call, torch.bfloat16, backward)
        for call in ("window 12 shifted", "image to text")
        for backward in (False, True)
    ]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
