"""Values of options that are checked before a command starts."""

from __future__ import annotations

import argparse
import sys


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
