"""`--where`: conditions on the columns of an index, such as `width > 800 and text is not null`.

    condition := column OP literal | column [not] in (literal, ...) | column is [not] null
               | not condition | condition and condition | condition or condition | (condition)

OP is one of = == != <> < <= > >=. A literal is a number, a text in single or double quotes (a quote
in it is doubled), true or false. `not` binds closer than `and`, which binds closer than `or`. As in
SQL, a condition on a column that is null is neither true nor false, and such a row is not found.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fiber.config_io import nearest
from fiber.messages import shown, shown_names

#: Maximum length of a condition, and of conditions in each other.
MAX_LENGTH, MAX_DEPTH = 100_000, 100
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<operator><=|>=|<>|!=|==|=|<|>|\(|\)|,)
      | (?P<word>[A-Za-z_]\w*)
    )""",
    re.VERBOSE,
)
_OPERATORS = {
    "=": "equal",
    "==": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
#: Kind of a column, by which literals are checked.
ColumnKind = Literal["number", "text", "bool"]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


@dataclass(frozen=True)
class Condition:
    """A parsed condition: a tree of tuples, whose first item names the operation."""

    tree: tuple[Any, ...]

    def columns(self) -> set[str]:
        """Return the names of the columns that it reads."""
        found: set[str] = set()
        todo = [self.tree]
        while todo:
            name, *rest = todo.pop()
            if name in ("and", "or", "not"):
                todo += rest
            else:
                found.add(rest[0])
        return found

    def mask(self, table: Any) -> np.ndarray:
        """Return (n,) bools: the rows of a pyarrow table for which the condition is true."""
        compute = importlib.import_module("pyarrow.compute")
        values = _evaluate(self.tree, table, compute)
        return np.asarray(compute.fill_null(values, False))


def parse_where(text: str, columns: Mapping[str, ColumnKind]) -> Condition:
    """Parse a condition, and check it against the columns.

    Raises:
        TypeError: if `text` is not a str.
        ValueError: if it is no condition, names an unknown column, or compares a column with a
            literal of another type. The message names the place.
    """
    if not isinstance(text, str):
        raise TypeError(f"where: expected a str, got {shown(text)}")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"where has {len(text)} characters; expected at most {MAX_LENGTH}")
    return Condition(_Parser(text, columns).parse())


class _Parser:
    """Parser by recursive descent."""

    def __init__(self, text: str, columns: Mapping[str, ColumnKind]) -> None:
        self.text, self.columns = text, columns
        self.tokens = list(self._tokens())
        self.place = self.depth = 0

    def parse(self) -> tuple[Any, ...]:
        tree = self._either()
        if self._peek().kind != "end":
            raise self._error("and, or, or the end")
        return tree

    def _tokens(self) -> Any:
        place = 0
        while place < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, place)
            if match is None:
                raise ValueError(
                    f"where: {shown(self.text[place:].strip())} at character {place + 1} is no"
                    " column, operator or literal"
                )
            kind = str(match.lastgroup)
            yield _Token(kind, match[kind], match.start(kind))
            place = match.end()
        yield _Token("end", "", len(self.text))

    def _peek(self) -> _Token:
        return self.tokens[self.place]

    def _take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def _takes(self, *texts: str) -> bool:
        """Take the next tokens if they are these words or operators."""
        some = self.tokens[self.place : self.place + len(texts)]
        if [token.text.lower() for token in some if token.kind != "text"] != list(texts):
            return False
        self.place += len(texts)
        return True

    def _error(self, expected: str) -> ValueError:
        token = self._peek()
        found = shown(token.text) if token.kind != "end" else "the end"
        return ValueError(f"where: expected {expected} at character {token.start + 1}, got {found}")

    def _either(self) -> tuple[Any, ...]:
        parts = [self._both()]
        while self._takes("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else ("or", *parts)

    def _both(self) -> tuple[Any, ...]:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else ("and", *parts)

    def _one(self) -> tuple[Any, ...]:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"where: expected at most {MAX_DEPTH} conditions in each other")
        if self._takes("not"):
            tree: tuple[Any, ...] = ("not", self._one())
        elif self._takes("("):
            tree = self._either()
            if not self._takes(")"):
                raise self._error(")")
        else:
            tree = self._comparison()
        self.depth -= 1
        return tree

    def _comparison(self) -> tuple[Any, ...]:
        token = self._peek()
        if token.kind != "word" or token.text.lower() in _WORDS:
            raise self._error("a column")
        column = self._take().text
        if column not in self.columns:
            raise ValueError(
                f"where: no column {shown(column)}; {nearest(column, self.columns)}; the columns"
                f" are {shown_names([*self.columns])}"
            )
        if self._takes("is", "not", "null"):
            return ("not", ("null", column))
        if self._takes("is", "null"):
            return ("null", column)
        if self._takes("not", "in"):
            return ("not", ("in", column, self._list(column)))
        if self._takes("in"):
            return ("in", column, self._list(column))
        operator = _OPERATORS.get(self._peek().text)
        if operator is None or self._peek().kind != "operator":
            raise self._error("an operator such as = or <=, in, or is")
        start = self._take()
        value = self._literal(column)
        if isinstance(value, bool) and operator not in ("equal", "not_equal"):
            raise ValueError(f"where: {column} {start.text}: expected = or != for true and false")
        return (operator, column, value)

    def _list(self, column: str) -> list[Any]:
        if not self._takes("("):
            raise self._error("a list such as (1, 2)")
        values = [self._literal(column)]
        while self._takes(","):
            values.append(self._literal(column))
        if not self._takes(")"):
            raise self._error(", or )")
        return values

    def _literal(self, column: str) -> Any:
        """Read a literal of the type of a column."""
        token, expected = self._peek(), self.columns[column]
        words = {"true": True, "false": False}
        kind = {"number": "number", "text": "text"}.get(token.kind)
        if token.kind == "word" and token.text.lower() in words:
            kind = "bool"
        if kind is None:
            raise self._error("a number, a text in quotes, true or false")
        if kind != expected:
            raise ValueError(
                f"where: {column} is a {expected} column; expected a {expected} at character"
                f" {token.start + 1}, got {shown(token.text)}"
            )
        self.place += 1
        if kind == "bool":
            return words[token.text.lower()]
        if kind == "text":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        whole = re.fullmatch(r"-?\d{1,18}", token.text)
        return int(token.text) if whole else float(token.text)


def _evaluate(tree: tuple[Any, ...], table: Any, compute: Any) -> Any:
    name, *rest = tree
    if name in ("and", "or"):
        values = _evaluate(rest[0], table, compute)
        for other in rest[1:]:
            values = getattr(compute, f"{name}_kleene")(values, _evaluate(other, table, compute))
        return values
    if name == "not":
        return compute.invert(_evaluate(rest[0], table, compute))
    column = table[rest[0]]
    if name == "null":
        return compute.is_null(column)
    if name == "in":
        values = compute.equal(column, rest[1][0])
        for value in rest[1][1:]:
            values = compute.or_kleene(values, compute.equal(column, value))
        return values
    return getattr(compute, name)(column, rest[1])


def column_kinds(schema: Any) -> dict[str, ColumnKind]:
    """Return the kind of each column of a pyarrow schema that conditions can read."""
    types = importlib.import_module("pyarrow").types
    kinds: dict[str, ColumnKind] = {}
    for field in schema:
        if types.is_boolean(field.type):
            kinds[field.name] = "bool"
        elif types.is_integer(field.type) or types.is_floating(field.type):
            kinds[field.name] = "number"
        elif types.is_string(field.type) or types.is_large_string(field.type):
            kinds[field.name] = "text"
    return kinds
