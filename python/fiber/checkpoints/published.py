"""Load and export published state dicts with the key map of an architecture.

A key map maps our key to one or more published keys, whose tensors are concatenated along the first
dimension: the published code has separate query, key and value layers.
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
        model: receives the tensors.
        state: tensors by published key. Those of `Architecture.default_values` may be missing.

    Returns:
        Ignored published keys with reasons.

    Raises:
        ValueError: naming missing keys, unknown keys and shape mismatches.
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
    """Return the tensors of a model by published key; inverse of `load_published`."""
    architecture = architecture_of(model.config)
    state = unstack(model.state_dict(), architecture.keys(model.config))
    return architecture.to_published(state, model.config)


def load_mapped(
    model: nn.Module, state: Mapping[str, Tensor], keys: KeyMap, unknown: list[str]
) -> None:
    """Copy published tensors into a model.

    Args:
        model: receives the tensors.
        state: tensors by published key.
        keys: our keys -> published keys.
        unknown: published keys to report as unknown.

    Raises:
        ValueError: naming missing keys, unknown keys and shape mismatches.
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
    """Split our tensors into equal parts, one for each published key."""
    published = {}
    for ours, theirs in keys.items():
        # A scalar has no dimension to split.
        pieces = state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],)
        published |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return published


def sort_unmapped(
    names: Iterable[str], keys: KeyMap, reason_for: Callable[[str], str | None]
) -> tuple[dict[str, str], list[str]]:
    """Sort published keys that are not in a key map into ignored and unknown ones.

    Args:
        names: published keys.
        keys: our keys -> published keys.
        reason_for: returns the reason to ignore a key; None if it is unknown.

    Returns:
        Ignored keys with reasons, and unknown keys.
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
    """Resize all relative position bias tables of a state dict, with our or published keys.

    Args:
        state: state dict.
        window_size: side of the new window in tokens.
    """
    rows = (2 * window_size - 1) ** 2
    return {
        name: resize_bias_table(tensor, rows) if name.endswith("bias_table") else tensor
        for name, tensor in state.items()
    }


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resize a relative position bias table by bicubic interpolation, as in the published code.

    Args:
        table: ((2 w - 1) ** 2, h) for windows of side w.
        rows: (2 w' - 1) ** 2 for windows of side w'.

    Returns:
        (rows, h); `table` itself if it has that size.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    # (old ** 2, h) -> (1, h, old, old)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square.float(), (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)
