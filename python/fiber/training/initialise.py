"""Start a model from another one's weights, and say what became of every tensor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.models.detector import FiberDetector
from fiber.models.image_text import FiberImageText
from fiber.models.weights import TransferReport, coarse_to_fine
from fiber.training.checkpoint import StoredModel

#: Layers whose size follows from the data: another data set means new ones.
SIZED_BY_DATA = ("vqa_head.output.",)


def initialise(model: FiberImageText | FiberDetector, start: StoredModel) -> TransferReport:
    """Copy all that two models share; bias tables of another window are resized.

    Args:
        model: a new model.
        start: a finished one: the same stage, or a coarse one for a fine model.

    Returns:
        The names taken, dropped and new.

    Raises:
        ValueError: if another shared tensor has another shape (the answers of a VQA head may), or
            if a fine model shall start a coarse one.
    """
    own = model.state_dict()
    given = {
        name: resize_bias_table(tensor, len(own[name]))
        if name.endswith(".bias_table") and name in own
        else tensor
        for name, tensor in start.model.state_dict().items()
    }
    if model.config.stage == "fine" and start.config.stage == "coarse":
        return coarse_to_fine(given, model)
    if model.config.stage != start.config.stage:
        raise ValueError(
            "a fine model cannot start a coarse one; start from the coarse model it came from"
        )
    shared = [name for name in own if name in given]
    other_shape = {name for name in shared if own[name].shape != given[name].shape}
    wrong = [name for name in other_shape if not name.startswith(SIZED_BY_DATA)]
    if wrong:
        raise ValueError(
            "the model to start from has other sizes: "
            + "; ".join(
                f"{name} {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
                for name in sorted(wrong)
            )
        )
    taken = [name for name in shared if name not in other_shape]
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(name for name in given if name not in known),
        created=tuple(name for name in own if name not in known),
    )


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Make a table of relative position biases for another window.

    Args:
        table: ((2 w - 1) ** 2, h) of the old window.
        rows: (2 w' - 1) ** 2 of the new one.

    Returns:
        (rows, h), by bicubic interpolation as in the published code; the table itself if it fits.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    # (old ** 2, h) -> (1, h, old, old)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)
