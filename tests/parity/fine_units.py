"""Compare the recorded units of the dynamic head: deformable convolutions, and one whole block."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.models.fiber.dyhead import DynamicBlock, reread
from fiber.models.fiber.keys import block_keys
from fiber.ops.deform import TAPS, modulated_deform_conv
from tests.parity.comparison import Comparison
from tests.parity.tolerances import GEOMETRY

#: Published name of the block, from which its weights are drawn, and its groups.
BLOCK, NORM_GROUPS = "dyconv_unit", 16


def compare_units(path: Path) -> Comparison:
    """Compare `units_deform_dyconv.safetensors`."""
    recorded = load_file(path)
    comparison = Comparison(path.stem)
    parts: tuple[Callable[[Comparison, dict[str, Tensor]], None], ...] = (
        _compare_convolutions,
        _compare_block,
    )
    for part in parts:
        try:
            with torch.no_grad():
                part(comparison, recorded)
        except KeyError as error:
            comparison.group("names", 0.0).add(f"{error.args[0]} is missing", 1.0)
    comparison.not_compared = sorted({*recorded} - comparison.compared)
    return comparison


def _compare_convolutions(comparison: Comparison, recorded: dict[str, Tensor]) -> None:
    """Offsets of a larger map, read as the published kernel reads them; and stride 2."""
    weight, bias = recorded["deform.weight"], recorded["deform.bias"]
    comparison.compared |= {"deform.weight", "deform.bias"}
    for prefix, out, stride in (
        ("deform", "out_mismatched_offset", 1),
        ("deform.stride2", "out", 2),
    ):
        features, raw = recorded[f"{prefix}.in"], recorded[f"{prefix}.offset_mask_raw"]
        expected = recorded[f"{prefix}.{out}"]
        size = expected.shape[-2:]
        offsets = reread(raw[:, : 2 * TAPS], size)
        modulation = reread(raw[:, 2 * TAPS :].sigmoid(), size)
        ours = modulated_deform_conv(features, offsets, modulation, weight, bias, stride=stride)
        comparison.values("convolutions", f"{prefix}.{out}", ours, expected, GEOMETRY)
        comparison.compared |= {f"{prefix}.in", f"{prefix}.offset_mask_raw"}


def _compare_block(comparison: Comparison, recorded: dict[str, Tensor]) -> None:
    """One block on four levels."""
    inputs = [name for name in sorted(recorded) if name.startswith("dyconv.in.")]
    levels = [recorded[name] for name in inputs]
    block = drawn_block(recorded["dyconv.in.0"].shape[1])
    for level, ours in enumerate(block(levels)):
        name = f"dyconv.out.{level}"
        comparison.values("block", name, ours, recorded[name], GEOMETRY)
    comparison.compared |= set(inputs)


def drawn_block(channels: int) -> DynamicBlock:
    """Make the block with the weights of the README's rule: 5 times as large, norms apart."""
    block = DynamicBlock(channels, NORM_GROUPS)
    keys = block_keys("block", BLOCK)
    state = block.state_dict()
    for name, tensor in state.items():
        (published,) = keys[f"block.{name}"]
        generator = torch.Generator().manual_seed(zlib.crc32(published.encode()))
        drawn = torch.randn(tensor.shape, generator=generator) * 0.02
        tensor.copy_(1 + drawn if published.endswith("bn.weight") else 5 * drawn)
    return block
