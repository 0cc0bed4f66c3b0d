"""Published checkpoints in small: names of the recorded lists, their shapes a quarter as wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden import KEYS

Shapes = dict[str, tuple[list[int], str]]

#: Names whose values follow from the sizes, or that nobody needs: they get one value, spread out.
_SPREAD = ("queue", "attn_mask", "relative_position_index", "position_ids")


def coarse_keys() -> Shapes:
    """Name -> (shape, type) of the coarse base model with every head."""
    return json.loads((KEYS / "coarse_keys.json").read_text())["keys"]


def fine_keys(version: str) -> Shapes:
    """Name -> (shape, type) of the fine base model."""
    keys = json.loads((KEYS / "fine_keys.json").read_text())
    return keys["base_v2"] | (keys["v3_extra"] if version == "v3" else {})


#: Released files of METER: their configs, and names and shapes of their tensors.
METER_FILES: dict[str, dict[str, Any]] = json.loads(
    (KEYS / "meter_published_files.json").read_text()
)["kinds"]


def meter_shapes(name: str) -> dict[str, list[int]]:
    """Name -> shape of the tensors of a released METER file, in its order."""
    about = METER_FILES[name]
    if "keys" in about:
        return {key: shape for key, (shape, _) in _keys_in(about["keys"]).items()}
    ((base, changes),) = ((k, v) for k, v in about.items() if k.startswith("against "))
    shapes = {key: shape for key, (shape, _) in _keys_in(base.removeprefix("against ")).items()}
    for removed in changes["removed"]:
        del shapes[removed]
    return shapes | {n: s for n, (s, _) in {**changes["added"], **changes["changed"]}.items()}


def _keys_in(file: str) -> Shapes:
    return json.loads((KEYS / file).read_text())["keys"]


def write_small_meter_file(
    name: str, path: Path, vocabulary: int = 320, answers: int = 40
) -> dict[str, Tensor]:
    """Write a released METER file in small, as Lightning writes it; return its tensors.

    Its config is the released one with the sizes of the small tensors.
    """
    integers = ("position_ids", "relative_position_index")
    shapes = {
        key: (shape, "int64" if key.endswith(integers) else "float32")
        for key, shape in meter_shapes(name).items()
    }
    state = {key: t.contiguous() for key, t in small_state(shapes, vocabulary, answers).items()}
    sizes = {"hidden_size": 192, "vocab_size": vocabulary, "vqav2_label_size": answers}
    # Encoders of no published size.
    config = METER_FILES[name]["config"] | sizes | {"vit": "small", "tokenizer": "small"}
    content = {"epoch": 9, "global_step": 100, "pytorch-lightning_version": "1.3.2"}
    settings = {"hyper_parameters": {"config": config}, "optimizer_states": []}
    torch.save({**content, "state_dict": state, **settings}, path)
    return state


def names_of_head(head: str) -> set[str]:
    """Names that a coarse checkpoint has for the sake of one head."""
    required = json.loads((KEYS / "coarse_keys.json").read_text())["required_by"]
    return {name for heads, names in required.items() if head in heads for name in names}


def base_state(keys: Shapes) -> dict[str, Tensor]:
    """Tensors of the published shapes that take no memory; one value each, anchors as published."""
    state = {
        name: torch.zeros((), dtype=getattr(torch, kind)).expand(shape)
        for name, (shape, kind) in keys.items()
    }
    return state | _anchors(state)


def small_state(keys: Shapes, vocabulary: int = 320, answers: int = 40) -> dict[str, Tensor]:
    """Random tensors under the published names.

    Widths are a quarter of the published ones; heads, windows, depths and positions are the same.
    """
    exact = {50265: vocabulary, 3129: answers}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (shape, kind) in keys.items():
        if any(part in name for part in _SPREAD):
            state[name] = torch.zeros((), dtype=getattr(torch, kind)).expand(shape)
            continue
        small = [exact.get(n, n // 4 if n >= 64 and n % 64 == 0 else n) for n in shape]
        state[name] = torch.randn(small, generator=generator) * 0.1
    return state | _anchors(state)


def _anchors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Squares of eight strides around the middle of a cell, corners included."""
    anchors = {}
    for level in range(5):
        name, stride = f"rpn.anchor_generator.cell_anchors.{level}", 2.0 ** (level + 3)
        middle, half = (stride - 1) / 2, (8 * stride - 1) / 2
        if name in state:
            corners = [middle - half] * 2 + [middle + half] * 2
            anchors[name] = torch.tensor([corners])
    return anchors
