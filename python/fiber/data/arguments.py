"""What each argument of `DataLoader` and `Collator` may be, and errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import numpy as np

from fiber._core import ImageTransform, Tokenizer

_DTYPES = ("float32", "float16", "bfloat16", "uint8")


class _Kind(NamedTuple):
    #: In words, for messages.
    expected: str
    fits: Callable[[Any], bool]
    #: Of whole numbers the least one.
    least: int | None = None


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_whole(value: Any) -> bool:
    return isinstance(value, SupportsIndex) and not _is_switch(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat | SupportsIndex) and not _is_switch(value)


def _are_texts(value: Any) -> bool:
    if not isinstance(value, Collection) or isinstance(value, str | bytes):
        return False
    return all(isinstance(each, str) for each in value)


def _is_color(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != 3:
        return False
    return all(_is_whole(each) and 0 <= each <= 255 for each in value)


def _whole(least: int) -> _Kind:
    return _Kind("a whole number", _is_whole, least)


def _instance(of: type, expected: str) -> _Kind:
    return _Kind(expected, lambda value: isinstance(value, of))


_SWITCH = _Kind("True or False", _is_switch)
_KINDS = {
    "batch_type": _instance(str, "the name of a batch class, such as 'image_text'"),
    "tokenizer": _instance(Tokenizer, "a fiber.data.Tokenizer"),
    "transform": _instance(ImageTransform, "a fiber.data.ImageTransform"),
    "answers": _Kind("a sequence of texts", _are_texts),
    "image_dtype": _instance(str, f"one of {', '.join(map(repr, _DTYPES))}"),
    "mlm_probability": _Kind("a number from 0 to 1", _is_number),
    "background": _Kind("None, or red, green and blue from 0 to 255", _is_color),
    "batch_size": _whole(1),
    "epoch": _whole(0),
    "keep": _whole(0),
    "max_tokens": _whole(1),
    "prefetch": _whole(1),
    "rank": _whole(0),
    "seed": _whole(0),
    "start": _whole(0),
    "threads": _whole(0),
    "world_size": _whole(1),
    "accept_truncated": _SWITCH,
    "apply_orientation": _SWITCH,
    "channels_last": _SWITCH,
    "drop_last": _SWITCH,
    "pin_memory": _SWITCH,
    "scaled_decoding": _SWITCH,
    "shuffle": _SWITCH,
}


def check_arguments(**values: Any) -> None:
    """Refuse arguments of another type, and whole numbers below their least.

    Args:
        values: by name, which the table above has.

    Raises:
        TypeError, ValueError: that name the argument, what it is and what is expected.
    """
    for name, value in values.items():
        expected, fits, least = _KINDS[name]
        if not fits(value):
            raise TypeError(f"{name} is {value!r:.40}; expected {expected}")
        if least is not None and value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    for name in ("seed", "epoch"):
        if values.get(name, 0) >= 1 << 64:
            raise ValueError(f"{name} is {values[name]}; expected less than 2^64")
    if (name := values.get("image_dtype", _DTYPES[0])) not in _DTYPES:
        raise ValueError(f"image_dtype is {name!r}; expected {_KINDS['image_dtype'].expected}")
