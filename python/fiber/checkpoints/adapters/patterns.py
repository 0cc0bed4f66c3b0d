"""Patterns of layer names in the config of an adapter, which PEFT takes for regular expressions."""

from __future__ import annotations

import re
from typing import Any

from fiber.messages import shown

#: Fields whose text, or texts, PEFT takes for patterns.
PATTERN_FIELDS = (
    *("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"),
    *("rank_pattern", "alpha_pattern"),
)
#: Maximum number of patterns in a field that is no list of names, and of characters in each.
_MAX_PATTERNS, _MAX_LENGTH = 1000, 2000
#: Maximum number of repetitions in a pattern: each may multiply the time by the length of a name.
_MAX_REPEATS = 3
#: An escape, a set of characters, the start of a group, or one of what is counted.
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[:=!<P>\w]*|[()*+?{]", re.DOTALL)


def pattern_problem(name: str, value: Any) -> str | None:
    """Describe why the patterns of a field take no bounded time, or return None.

    Args:
        name: one of `PATTERN_FIELDS`.
        value: its text, a list of texts, or a dict by texts.
    """
    # PEFT compares the names of these lists as they are.
    is_list = not isinstance(value, str)
    if is_list and name in ("target_modules", "exclude_modules"):
        return None
    patterns = list(value) if is_list else [value]
    if len(patterns) > _MAX_PATTERNS:
        return f"{len(patterns)} patterns, expected at most {_MAX_PATTERNS}"
    found = ((pattern, _problem(pattern)) for pattern in patterns)
    return next((f"{shown(pattern)} {why}" for pattern, why in found if why), None)


def _problem(pattern: str) -> str | None:
    if len(pattern) > _MAX_LENGTH:
        return f"has {len(pattern)} characters, expected at most {_MAX_LENGTH}"
    repeats, end_of_group = 0, -1
    for token in _TOKENS.finditer(pattern):
        if token[0] in ("*", "+", "?", "{"):
            if token.start() == end_of_group and token[0] != "?":
                return "repeats a group, whose time has no bound; expected names of layers"
            repeats += 1
        end_of_group = token.end() if token[0] == ")" else -1
    if repeats > _MAX_REPEATS:
        return f"has {repeats} repetitions, expected at most {_MAX_REPEATS}"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    return None
