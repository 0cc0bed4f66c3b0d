"""Trees as pickles and as JSON, and pickles as trees."""

from __future__ import annotations

import json
import pickletools
import struct
from typing import Any

from tests.fuzz.generated.trees import (
    Built,
    Call,
    Dropped,
    Filled,
    Global,
    Node,
    Pairs,
    Persistent,
    Raw,
)

_HEAD = b"\x80\x04"
_CONSTANTS = {None: b"N", True: b"\x88", False: b"\x89"}


def to_pickle(tree: Any) -> bytes:
    """Encode a tree as a pickle of protocol 4.

    What occurs more than once, as the same object, is stored once and referred to.
    """
    writer = _Writer()
    writer.add(tree)
    return _HEAD + b"".join(writer.parts) + b"."


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        #: Index in the memo by identity, with the object, which keeps the identity its own.
        self.memo: dict[int, tuple[int, Any]] = {}

    def add(self, value: Any) -> None:
        """Append the opcodes that push a value."""
        if id(value) in self.memo:
            self.parts.append(b"j" + struct.pack("<I", self.memo[id(value)][0]))
            return
        self._opcodes(value)
        if isinstance(value, Node | list) or (isinstance(value, tuple) and value):
            index = len(self.memo)
            self.memo[id(value)] = (index, value)
            self.parts.append(b"r" + struct.pack("<I", index))

    def _opcodes(self, value: Any) -> None:
        out = self.parts
        if value is None or isinstance(value, bool):
            out.append(_CONSTANTS[value])
        elif isinstance(value, int):
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            out.append(b"\x8b" + struct.pack("<i", len(data)) + data)
        elif isinstance(value, float):
            out.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            code = b"X" if isinstance(value, str) else b"B"
            out.append(code + struct.pack("<I", len(data)) + data)
        elif isinstance(value, Pairs):
            out.append(b"}")
            self._items(value)
        elif isinstance(value, list):
            out.append(b"]")
            self._items(value)
        elif isinstance(value, tuple):
            out.append(b"(")
            for each in value:
                self.add(each)
            out.append(b"t")
        elif isinstance(value, Raw):
            out.append(value.opcodes)
        elif isinstance(value, Global):
            self._pushed(value.module, value.name, code=b"\x93")
        elif isinstance(value, Call):
            self._pushed(value.callee, value.arguments, code=b"\x81" if value.is_new else b"R")
        elif isinstance(value, Filled):
            self.add(value.target)
            self._items(value.items)
        elif isinstance(value, Built):
            self._pushed(value.target, value.state, code=b"b")
        elif isinstance(value, Persistent):
            self._pushed(value.identity, code=b"Q")
        elif isinstance(value, Dropped):
            for each in value.values:
                self._pushed(each, code=b"0")
            self.add(value.result)
        else:
            raise TypeError(f"no opcodes for {type(value).__name__}")

    def _pushed(self, *values: Any, code: bytes) -> None:
        for each in values:
            self.add(each)
        self.parts.append(code)

    def _items(self, items: Any) -> None:
        """Add items to the list or dict on top; a value of another type as the only item."""
        self.parts.append(b"(")
        is_pairs = isinstance(items, Pairs)
        for each in items if isinstance(items, list) else [items]:
            for part in each if is_pairs else (each,):
                self.add(part)
        self.parts.append(b"u" if is_pairs else b"e")


def from_pickle(data: bytes) -> Any:
    """Read a sound pickle as a tree.

    Raises:
        ValueError: for an opcode that torch.save and torch.distributed.checkpoint do not write.
    """
    reader = _Reader()
    for opcode, argument, _ in pickletools.genops(data):
        reader.step(opcode.name, argument)
    return reader.stack[-1]


class _Reader:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        stack = self.stack
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name == "MARK":
            self.marks.append(len(stack))
        elif name == "MEMOIZE" or name.endswith("BINPUT"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(self.memo[argument])
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else Pairs())
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("APPEND", "APPENDS"):
            self._fill(self._pop(1) if name == "APPEND" else self._pop_mark())
        elif name in ("SETITEM", "SETITEMS"):
            flat = self._pop(2) if name == "SETITEM" else self._pop_mark()
            self._fill(Pairs(zip(flat[::2], flat[1::2], strict=True)))
        elif name == "GLOBAL":
            stack.append(Global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(Global(*self._pop(2)))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(Call(*self._pop(2), is_new=name == "NEWOBJ"))
        elif name == "BUILD":
            stack.append(Built(*self._pop(2)))
        elif name == "BINPERSID":
            stack.append(Persistent(*self._pop(1)))
        elif isinstance(argument, str | bytes | int | float):
            stack.append(argument)
        else:
            raise ValueError(f"unexpected opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _pop_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())

    def _fill(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        else:
            self.stack[-1] = Filled(self.stack[-1], items)


def to_json(tree: Any) -> str:
    """Encode a tree as JSON. Bytes, and keys that are no strings, become strings.

    Raises:
        ValueError: for a value that JSON cannot express.
    """
    if isinstance(tree, Raw):
        if tree.text is None:
            raise ValueError("a value of pickles only")
        return tree.text
    if isinstance(tree, Pairs):
        items = (f"{_key(key)}: {to_json(value)}" for key, value in tree)
        return "{" + ", ".join(items) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ", ".join(map(to_json, tree)) + "]"
    return json.dumps(tree.decode("latin-1") if isinstance(tree, bytes) else tree)


def _key(key: Any) -> str:
    text = to_json(key)
    return text if text.startswith('"') else json.dumps(text)
