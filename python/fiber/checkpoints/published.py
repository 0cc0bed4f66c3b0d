"""Load and export published state dicts using an architecture's key map.

Each of our keys maps to one or more published keys. The tensors of several keys are concatenated
along the first dimension, since the published code has separate query, key and value layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fiber.checkpoints.weights import copy_weights, dtype_problem, list_problems, sharing_problem
from fiber.models.encoders.keys import KeyMap
from fiber.models.init import allocate
from fiber.models.registry import ModelConfig, Network, architecture_of

#: Copies pieces of tensors into a model's, both by our keys.
CopyWeights = Callable[[Mapping[str, Tensor], Mapping[str, Sequence[Tensor]]], None]


def load_published(
    model: Network,
    state: Mapping[str, Tensor],
    device: torch.device | str | None = None,
    copy: CopyWeights = copy_weights,
) -> dict[str, str]:
    """Load tensors by published key. Tensors in `Architecture.default_values` may be missing.

    `device` is where to allocate a model that is on the meta device, and `copy` copies the tensors;
    see `load_mapped`.

    Returns:
        Ignored published keys with reasons.

    Raises:
        ValueError: if keys are missing or unknown, or shapes or dtypes do not match; the message
            lists them.
    """
    config, architecture = model.config, architecture_of(model.config)
    state = architecture.from_published(state)
    keys, defaults = architecture.keys(config), architecture.default_values(config, state)
    keys = {ours: theirs for ours, theirs in keys.items() if ours not in defaults}

    def ignored_reason(name: str) -> str | None:
        return architecture.ignored_key(name, config)

    ignored = load_mapped(model, state, keys, ignored_reason, device, copy)
    weights = model.state_dict()
    for ours, value in defaults.items():
        nn.init.constant_(weights[ours], value)
    return ignored


def check_names(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Check that a file has enough tensors for its config before the network is built.

    Raises:
        ValueError: if more than half of the tensors are missing; the message lists them.
    """
    architecture = architecture_of(config)
    names = dict.fromkeys(name for keys in architecture.keys(config).values() for name in keys)
    found = architecture.from_published(state)
    missing = [f"missing {name}" for name in names if name not in found]
    if len(missing) > len(names) / 2:
        raise ValueError(
            f"{len(missing)} tensors of the model are not in the checkpoint:\n "
            f" {list_problems(missing)}"
        )


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
    device: torch.device | str | None = None,
    copy: CopyWeights = copy_weights,
) -> dict[str, str]:
    """Copy published tensors into a model, leaving it unchanged on error.

    Args:
        model: model to copy into.
        state: tensors by published key.
        keys: mapping from our keys to published keys.
        ignored_reason: function that returns why a published key that is not in `keys` is ignored,
            or None if the key is unknown.
        device: device on which a model on the meta device is allocated once all tensors are known
            to fit.
        copy: `copy_weights`, with further arguments.

    Returns:
        Ignored published keys with reasons.

    Raises:
        ValueError: if keys are missing or unknown, or shapes or dtypes do not match; the message
            lists them.
    """
    weights, values = model.state_dict(), {}
    # A dict keeps the order of keys for messages.
    mapped = dict.fromkeys(name for theirs in keys.values() for name in theirs)
    reasons = {name: ignored_reason(name) for name in state if name not in mapped}
    problems = [f"missing {name}" for name in mapped if name not in state]
    problems += [f"unknown {name}" for name, reason in reasons.items() if reason is None]
    for ours, theirs in keys.items():
        if any(name not in state for name in theirs):
            continue
        pieces = [state[name] for name in theirs]
        values[ours] = pieces
        wrong = [dtype_problem(name, state[name], weights[ours]) for name in theirs]
        problems += [problem for problem in wrong if problem]
        if _joined_shape(pieces) != tuple(weights[ours].shape):
            shapes = " + ".join(str(tuple(piece.shape)) for piece in pieces)
            problems.append(
                f"{', '.join(theirs)} has shape {shapes}, expected {tuple(weights[ours].shape)}"
            )
    if sharing := sharing_problem(piece for pieces in values.values() for piece in pieces):
        problems.append(sharing)
    if problems:
        single = len(problems) == 1
        counted = "1 tensor" if single else f"{len(problems)} tensors"
        raise ValueError(
            f"{counted} of the checkpoint {'does' if single else 'do'} not match the model:\n "
            f" {list_problems(problems)}"
        )
    if device is not None:
        allocate(model, device)
        weights = model.state_dict()
    copy(weights, values)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _joined_shape(pieces: list[Tensor]) -> tuple[int, ...] | None:
    """Return the shape of the pieces joined along the first dimension, or None if they differ."""
    if len(pieces) == 1:
        return tuple(pieces[0].shape)
    if any(not p.dim() or p.shape[1:] != pieces[0].shape[1:] for p in pieces):
        return None
    return (sum(map(len, pieces)), *pieces[0].shape[1:])


def unstack(state: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Split our tensors into equal parts, one for each published key."""
    published = {}
    for ours, theirs in keys.items():
        # A scalar has no dimension to split.
        pieces = state[ours].chunk(len(theirs)) if len(theirs) > 1 else (state[ours],)
        published |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return published
