"""Interpolate relative position bias (Swin) and position embeddings (CLIP) to other image sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bias_tables(state: Mapping[str, Tensor], window_size: int) -> dict[str, Tensor]:
    """Resize all relative position bias tables in a state dict with our keys or published keys."""
    rows = (2 * window_size - 1) ** 2
    return {
        name: resize_bias_table(tensor, rows) if name.endswith("bias_table") else tensor
        for name, tensor in state.items()
    }


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resize a bias table by bicubic interpolation, as in Swin: (r, h) -> (rows, h).

    For window size w, r = (2 w - 1) ** 2. Returns `table` itself if it already has `rows` rows.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    # (old ** 2, h) -> (1, h, old, old)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)


def resize_position_table(table: Tensor, rows: int) -> Tensor:
    """Resize a position table by bicubic interpolation, as in METER: (r, C) -> (rows, C).

    The first row, that of the class token, stays as it is. Returns `table` itself if it already
    has `rows` rows.

    Raises:
        ValueError: if the patches of either table are not a square.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table) - 1), math.isqrt(rows - 1)
    for side, count in ((old, len(table)), (new, rows)):
        if side**2 + 1 != count:
            raise ValueError(
                f"position table: expected one row more than a square number, got {count}"
            )
    # (old ** 2, C) -> (1, C, old, old)
    square = table[1:].T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return torch.cat((table[:1], resized[0].flatten(1).T.to(table.dtype)))


def resize_position_tables(state: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Resize the position table of a state dict with our keys or published keys."""
    of_transformers = "embeddings.position_embedding.weight"
    names = (
        "image.position_embedding",
        "visual.positional_embedding",
        f"vision_model.{of_transformers}",
    )

    # Not any name with the last ending: CLIP's text encoder has such a table, too.
    def is_table(name: str) -> bool:
        return name.endswith(names) or name == of_transformers

    return {
        name: resize_position_table(tensor, rows) if is_table(name) else tensor
        for name, tensor in state.items()
    }
