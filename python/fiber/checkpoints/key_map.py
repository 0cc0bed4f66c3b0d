"""Load and export published state dicts by the key map of their architecture.

A key map goes from our name to the published names whose tensors, concatenated along the first
dimension, are ours: the published code has separate queries, keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.encoders.keys import KeyMap
from fiber.models.registry import Network, architecture_of


def load_published(model: Network, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Load a published state dict.

    Args:
        model: its config determines which names are needed.
        state: tensors by published name. A tensor of `Architecture.default_values` may be missing.

    Returns:
        Ignored published names, each with the reason.

    Raises:
        ValueError: naming missing, unknown and differently shaped tensors.
    """
    config, architecture = model.config, architecture_of(model.config)
    state = architecture.from_published(state)
    keys, values = architecture.keys(config), architecture.default_values(config, state)
    ignored, unknown = sort_unmapped(
        state, keys, lambda name: architecture.ignored_key(name, config)
    )
    load_mapped(model, state, {ours: keys[ours] for ours in keys if ours not in values}, unknown)
    own = model.state_dict()
    for ours, value in values.items():
        nn.init.constant_(own[ours], value)
    return ignored


def published_state(model: Network) -> dict[str, Tensor]:
    """Return a model's tensors by published name; the inverse of `load_published`."""
    architecture = architecture_of(model.config)
    state = unstack(model.state_dict(), architecture.keys(model.config))
    return architecture.to_published(state, model.config)


def load_mapped(
    model: nn.Module, state: Mapping[str, Tensor], keys: KeyMap, unknown: list[str]
) -> None:
    """Copy published tensors into a model by its key map.

    Args:
        model: receives the tensors.
        state: tensors by published name.
        keys: our names -> published names.
        unknown: published names without a rule.

    Raises:
        ValueError: naming missing keys, `unknown` keys and tensors of another shape.
    """
    own = model.state_dict()
    missing = [name for names in keys.values() for name in names if name not in state]
    problems = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in unknown]
    values = {}
    for ours, theirs in keys.items():
        if any(name not in state for name in theirs):
            continue
        pieces = [state[name] for name in theirs]
        value = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if value.shape != own[ours].shape:
            shapes = " + ".join(str(tuple(piece.shape)) for piece in pieces)
            problems.append(
                f"{', '.join(theirs)} has shape {shapes}, expected {tuple(own[ours].shape)}"
            )
        values[ours] = value
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(f"{len(problems)} tensors do not fit the model:\n  {shown}{more}")
    with torch.no_grad():
        for ours, value in values.items():
            own[ours].copy_(value)


def unstack(state: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Split our tensors into the published ones, in equal parts."""
    published = {}
    for ours, theirs in keys.items():
        # A scalar has no dimension to split.
        pieces = state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],)
        published |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return published


def sort_unmapped(
    names: Iterable[str], keys: KeyMap, reason_for: Callable[[str], str | None]
) -> tuple[dict[str, str], list[str]]:
    """Classify the names that are not in a key map.

    Args:
        names: published names.
        keys: our names -> published names.
        reason_for: returns why a name may be dropped; None if it may not.

    Returns:
        Dropped names with the reason, and names without a rule.
    """
    mapped = {name for theirs in keys.values() for name in theirs}
    ignored, unknown = {}, []
    for name in names:
        if name not in mapped:
            reason = reason_for(name)
            if reason is None:
                unknown.append(name)
            else:
                ignored[name] = reason
    return ignored, unknown


def resize_bias_tables(state: Mapping[str, Tensor], window_size: int) -> dict[str, Tensor]:
    """Resize every relative position bias table to another window size.

    Args:
        state: tensors by our names or by published ones.
        window_size: side of the new window in tokens.
    """
    rows = (2 * window_size - 1) ** 2
    return {
        name: resize_bias_table(tensor, rows) if name.endswith("bias_table") else tensor
        for name, tensor in state.items()
    }


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resize a relative position bias table by bicubic interpolation.

    Args:
        table: ((2 w - 1) ** 2, h) of the old window.
        rows: (2 w' - 1) ** 2 of the new one.

    Returns:
        (rows, h), interpolated as in the published code; the table itself if it has that size.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    # (old ** 2, h) -> (1, h, old, old)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)
