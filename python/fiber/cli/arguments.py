"""Values of options that are checked before a command starts."""

from __future__ import annotations

import argparse
import sys

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_words(command: argparse.ArgumentParser) -> None:
    """Add the options that name what a published file of a model does not hold."""
    command.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="of the model, instead of its own: tokenizer.json, or a folder with it or with"
        " vocab.json and merges.txt",
    )
    command.add_argument(
        "--answers",
        metavar="FILE",
        help="of the model's VQA head, instead of its own: JSON list in the order of its logits",
    )


def count(text: str) -> int:
    """Read a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: for anything else, with what was given.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def whole_number(text: str) -> int:
    """Read a whole number of 0 or more.

    Raises:
        argparse.ArgumentTypeError: for anything else, with what was given.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def candidates(text: str) -> int:
    """Read how many candidates are looked at: a whole number, or "all" for `sys.maxsize`.

    Raises:
        argparse.ArgumentTypeError: for anything else, with what was given.
    """
    if text == "all":
        return sys.maxsize
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number or all, got {text!r}")
    return int(text)


def byte_count(text: str) -> int:
    """Read a size: a number of bytes, or of KB, MB or GB (powers of 1,024), as in "256MB".

    Raises:
        argparse.ArgumentTypeError: for anything else, with what was given.
    """
    number, unit = text.rstrip("KMGkmgBb"), text.lstrip("0123456789").upper().removesuffix("B")
    if not number.isdecimal() or int(number) < 1 or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB, got {text!r}")
    return int(number) * _UNITS[unit]
