"""Freeze parameters by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from fiber.config_io import nearest
from fiber.messages import shown


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze parameters and modules by name; * in a pattern matches anything.

    Returns:
        Names of the parameters that match a pattern.

    Raises:
        ValueError: if a pattern matches nothing (the message suggests the nearest names), or if
            every parameter is frozen.
    """
    parameters, matched = dict(model.named_parameters()), set[str]()
    for pattern in patterns:
        frozen = [
            name
            for name in parameters
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        ]
        if not frozen:
            parts = (name.split(".") for name in parameters)
            modules = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
            raise ValueError(
                f"optim.frozen: no parameter or module is called {shown(pattern)};"
                f" {nearest(pattern, sorted(modules))}"
            )
        for name in frozen:
            parameters[name].requires_grad_(False)
        matched.update(frozen)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"optim.frozen: {', '.join(patterns)} freezes every parameter; expected at least one"
            " trainable parameter"
        )
    return [name for name in parameters if name in matched]
