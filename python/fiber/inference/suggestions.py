"""Errors of misspelled keyword arguments and attributes that name similar ones."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type)

#: Methods of models for other parts of this package.
_INTERNAL = ("arithmetic", "need_head", "with_head")


def suggest_keywords(function: FunctionT) -> FunctionT:
    """Name similar keyword arguments in the TypeError for an unknown one.

    `help`, `inspect` and type checkers see the signature of the function itself.
    """
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r};"
                    f" {_similar(name, known)}"
                )
        return function(*arguments, **options)

    return cast(FunctionT, checked)


def suggest_keywords_of_methods(cls: ClassT) -> ClassT:
    """Apply `suggest_keywords` to the public methods that a class defines."""
    for name, value in list(vars(cls).items()):
        if inspect.isfunction(value) and not name.startswith("_"):
            setattr(cls, name, suggest_keywords(value))
    return cls


def unknown_attribute(model: object, name: str) -> AttributeError:
    """Make the error for an attribute that a model lacks; it names similar methods, or all."""
    kind = type(model)
    public = (each for each in dir(kind) if each[0] != "_" and each not in _INTERNAL)
    methods = [each for each in public if callable(getattr(kind, each))]
    return AttributeError(
        f"{kind.__name__!r} object has no attribute {name!r}; {_similar(name, methods)}",
        name=name,
    )


def _similar(name: str, known: list[str]) -> str:
    # "threshold" is less similar to "score_threshold" than to "nms_threshold".
    close = [each for each in known if name in each]
    close = close or difflib.get_close_matches(name, known, n=2, cutoff=0.65)
    return f"did you mean {' or '.join(close)}?" if close else f"expected {', '.join(known)}"
