"""Load and export published state dicts using an architecture's key map.

Each of our keys maps to one or more published keys. The tensors of several keys are concatenated
along the first dimension, since the published code has separate query, key and value layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fiber.models.encoders.keys import KeyMap
from fiber.models.registry import Network, architecture_of


def load_published(model: Network, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Load tensors by published key. Tensors in `Architecture.default_values` may be missing.

    Returns:
        Ignored published keys with reasons.

    Raises:
        ValueError: if keys are missing or unknown, or shapes do not match; the message lists them.
    """
    config, architecture = model.config, architecture_of(model.config)
    state = architecture.from_published(state)
    keys, defaults = architecture.keys(config), architecture.default_values(config, state)
    keys = {ours: theirs for ours, theirs in keys.items() if ours not in defaults}
    ignored = load_mapped(model, state, keys, lambda name: architecture.ignored_key(name, config))
    own = model.state_dict()
    for ours, value in defaults.items():
        nn.init.constant_(own[ours], value)
    return ignored


def published_state(model: Network) -> dict[str, Tensor]:
    """Return the tensors of a model by published key (the inverse of `load_published`)."""
    architecture = architecture_of(model.config)
    state = unstack(model.state_dict(), architecture.keys(model.config))
    return architecture.to_published(state, model.config)


def load_mapped(
    model: nn.Module,
    state: Mapping[str, Tensor],
    keys: KeyMap,
    ignored_reason: Callable[[str], str | None],
) -> dict[str, str]:
    """Copy published tensors into a model, leaving it unchanged on error.

    Args:
        model: model to copy into.
        state: tensors by published key.
        keys: mapping from our keys to published keys.
        ignored_reason: function that returns why a published key that is not in `keys` is ignored,
            or None if the key is unknown.

    Returns:
        Ignored published keys with reasons.

    Raises:
        ValueError: if keys are missing or unknown, or shapes do not match; the message lists them.
    """
    own, values = model.state_dict(), {}
    # A dict keeps the order of keys for messages.
    mapped = dict.fromkeys(name for theirs in keys.values() for name in theirs)
    reasons = {name: ignored_reason(name) for name in state if name not in mapped}
    problems = [f"missing {name}" for name in mapped if name not in state]
    problems += [f"unknown {name}" for name, reason in reasons.items() if reason is None]
    for ours, theirs in keys.items():
        if any(name not in state for name in theirs):
            continue
        pieces = [state[name] for name in theirs]
        values[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if values[ours].shape != own[ours].shape:
            shapes = " + ".join(str(tuple(piece.shape)) for piece in pieces)
            problems.append(
                f"{', '.join(theirs)} has shape {shapes}, expected {tuple(own[ours].shape)}"
            )
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(
            f"{len(problems)} tensors of the checkpoint do not match the model:\n  {shown}{more}"
        )
    with torch.no_grad():
        for ours, value in values.items():
            own[ours].copy_(value)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def unstack(state: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Split our tensors into equal parts, one for each published key."""
    published = {}
    for ours, theirs in keys.items():
        # A scalar has no dimension to split.
        pieces = state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],)
        published |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return published
