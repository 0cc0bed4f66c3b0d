"""Read the pickle of document frequencies without `pickle`, which would run what a file names.

Such files (coco-train-words.p of self-critical training) are pickles of plain values, with millions
of n-grams: a dict, or defaultdict, from tuples of words to numbers, in a dict. This reader knows
only the opcodes of these, in every protocol. Nothing is imported or called. Time and memory are
linear in the size of the file: only strings and short tuples of strings are hashed.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from fiber.messages import printable, shown, shown_names

#: Maximum number of words of an n-gram. CIDEr uses up to four.
MAX_WORDS = 16
#: Maximum number of characters of what is wrong with a pickle.
_MAX_PROBLEM = 300
#: Maximum number of dicts; a file has two. One takes a byte in a pickle, and 64 bytes in memory.
_MAX_DICTS = 64

_FLOAT, _UINT32 = struct.Struct(">d"), struct.Struct("<I")
_DEFAULTDICT, _NUMBER_TYPE, _NOTHING = object(), object(), object()
#: What a file may name. Protocols up to 2 have the names of Python 2.
_NAMED = {
    ("collections", "defaultdict"): _DEFAULTDICT,
    **{("builtins", name): _NUMBER_TYPE for name in ("float", "int")},
    **{("__builtin__", name): _NUMBER_TYPE for name in ("float", "int", "long")},
}


def read_frequency_pickle(data: bytes) -> Any:
    """Return the value of a pickle of dicts, tuples of strings, strings and numbers.

    Raises:
        ValueError: if the pickle is damaged, or has anything else.
    """
    try:
        return _Reader(data).read()
    except (IndexError, struct.error) as error:
        raise ValueError(f"the pickle is damaged ({error})") from None
    except ValueError as error:
        # That of a text that is no number has the whole text.
        raise ValueError(printable(str(error), _MAX_PROBLEM)) from None


class _Reader:
    """Stack machine that evaluates a pickle."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        #: Lengths of the stack at its marks.
        self.marks: list[int] = []
        #: Values by memo index; `_NOTHING` where there is none.
        self.memo: list[Any] = []
        self.dicts = 0

    def read(self) -> Any:
        """Evaluate the opcodes up to STOP; those of n-grams are handled here, for speed."""
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, pop, memorize, handlers = stack.append, stack.pop, memo.append, _HANDLERS
        read_float, read_uint = _FLOAT.unpack_from, _UINT32.unpack_from
        at = 0
        while True:
            code = data[at]
            at += 1
            if code == 0x94:  # MEMOIZE
                memorize(stack[-1])
            elif code == 0x8C:  # SHORT_BINUNICODE
                end = at + 1 + data[at]
                push(data[at + 1 : end].decode("utf-8", "surrogatepass"))
                at = end
            elif code == 0x58:  # BINUNICODE
                end = at + 4 + read_uint(data, at)[0]
                push(data[at + 4 : end].decode("utf-8", "surrogatepass"))
                at = end
            elif code == 0x68:  # BINGET
                push(memo[data[at]])
                at += 1
            elif code == 0x6A:  # LONG_BINGET
                push(memo[read_uint(data, at)[0]])
                at += 4
            elif code == 0x71 or code == 0x72:  # BINPUT, LONG_BINPUT
                index = data[at] if code == 0x71 else read_uint(data, at)[0]
                at += 1 if code == 0x71 else 4
                if index == len(memo):
                    memorize(stack[-1])
                else:
                    self.put(index)
            elif code == 0x85:  # TUPLE1
                if type(stack[-1]) is tuple:
                    raise ValueError("a tuple of a tuple")
                stack[-1] = (stack[-1],)
            elif code == 0x86:  # TUPLE2
                last = pop()
                stack[-1] = (stack[-1], last)
            elif code == 0x87:  # TUPLE3
                last, middle = pop(), pop()
                stack[-1] = (stack[-1], middle, last)
            elif code == 0x47:  # BINFLOAT
                push(read_float(data, at)[0])
                at += 8
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x74:  # TUPLE
                start = marks.pop()
                stack[start:] = [tuple(stack[start:])]
            elif code in _LINES:
                end = data.index(b"\n", at)
                line, at = data[at:end], end + 1
                if code == 0x67:  # GET
                    push(memo[_index(line)])
                elif code != 0x70:
                    push(_LINES[code](line))
                elif (index := _index(line)) == len(memo):  # PUT
                    memorize(stack[-1])
                else:
                    self.put(index)
            elif code == 0x73:  # SETITEM
                value = pop()
                self.set_item(pop(), value)
            elif code == 0x2E:  # STOP
                return pop()
            else:
                self.position = at
                handler = handlers.get(code)
                if handler is None:
                    raise ValueError(f"unsupported opcode {_name(code)}")
                handler(self)
                at = self.position

    def put(self, index: int) -> None:
        """Store the top of the stack in the memo at any index; pickles of Python 2 start at 1."""
        if index > len(self.data):
            raise ValueError(f"the memo index is {shown(index)}; expected less than the file size")
        self.memo += [_NOTHING] * (index + 1 - len(self.memo))
        self.memo[index] = self.stack[-1]

    def take(self, count: int) -> bytes:
        """Read bytes."""
        start, end = self.position, self.position + count
        if end > len(self.data):
            raise ValueError("the pickle is cut off")
        self.position = end
        return self.data[start:end]

    def unsigned(self, count: int) -> int:
        """Read an unsigned integer of a number of bytes."""
        return int.from_bytes(self.take(count), "little")

    def push_dict(self) -> None:
        """Push a new dict."""
        self.dicts += 1
        if self.dicts > _MAX_DICTS:
            raise ValueError(f"more than {_MAX_DICTS} dicts")
        self.stack.append({})

    def line(self) -> bytes:
        """Read up to the end of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("the pickle is cut off")
        start, self.position = self.position, end + 1
        return self.data[start:end]

    def set_item(self, key: Any, value: Any) -> None:
        """Set an item of the dict at the top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError("an item is set of a value that is no dict")
        if type(key) is tuple and len(key) <= MAX_WORDS:
            for word in key:
                if type(word) is not str:
                    break
            else:
                target[key] = value
                return
        elif type(key) is str:
            target[key] = value
            return
        raise ValueError(
            f"a dict has the key {shown(key)}; expected a string or a tuple of at most {MAX_WORDS}"
            " words"
        )

    def set_items(self) -> None:
        """Set items of a dict to the keys and values that follow it, and a mark, on the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.set_item(key, value)


def _name(code: int) -> str:
    return _OPCODES.get(code, f"{code:#04x}")


def _named(reader: _Reader, module: Any, name: Any) -> None:
    if type(module) is not str or type(name) is not str:
        raise ValueError("the name of a global is no string")
    if (found := _NAMED.get((module, name))) is None:
        raise ValueError(
            f"unsupported global {shown_names([module])}.{shown_names([name])}; expected only"
            " float, int and collections.defaultdict"
        )
    reader.stack.append(found)


def _global(reader: _Reader) -> None:
    module, name = (reader.line().decode("utf-8", "replace") for _ in range(2))
    _named(reader, module, name)


def _stack_global(reader: _Reader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    _named(reader, module, name)


def _reduce(reader: _Reader) -> None:
    arguments, called = reader.stack.pop(), reader.stack.pop()
    if called is not _DEFAULTDICT or arguments not in ((), (_NUMBER_TYPE,)):
        raise ValueError("a call other than defaultdict(float) or defaultdict(int)")
    reader.push_dict()


def _dict(reader: _Reader) -> None:
    start = reader.marks.pop()
    items = reader.stack[start:]
    del reader.stack[start:]
    reader.push_dict()
    reader.marks.append(len(reader.stack))
    reader.stack += items
    reader.set_items()


def _index(line: bytes) -> int:
    index = int(line)
    if index < 0:
        raise ValueError(f"the memo index is {shown(index)}; expected 0 or more")
    return index


def _int(line: bytes) -> int:
    known = {b"00": False, b"01": True}
    return known[line] if line in known else int(line)


def _quoted(line: bytes) -> str:
    """Return a string of Python 2, from its `repr`."""
    line = line.strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError(f"the string {shown(line)} is not in quotes")
    escaped, _ = codecs.escape_decode(line[1:-1])  # type: ignore[attr-defined]
    return escaped.decode("utf-8", "replace")


def _pushes(read: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    """Return a handler that pushes what a function reads."""
    return lambda reader: reader.stack.append(read(reader))


def _byte_string(width: int) -> Callable[[_Reader], None]:
    """Return the handler of a byte string of Python 2, with a length of `width` bytes."""
    return _pushes(lambda r: r.take(r.unsigned(width)).decode("utf-8", "replace"))


def _long(width: int) -> Callable[[_Reader], None]:
    """Return the handler of an integer in two's complement, with a length of `width` bytes."""
    return _pushes(lambda r: int.from_bytes(r.take(r.unsigned(width)), "little", signed=True))


def _skip(count: int) -> Callable[[_Reader], None]:
    """Return a handler that skips a number of bytes."""

    def handler(reader: _Reader) -> None:
        reader.take(count)

    return handler


def _constant(make: Callable[[], Any]) -> Callable[[_Reader], None]:
    return _pushes(lambda _: make())


#: Handlers of opcodes that are less frequent, by name.
_BY_NAME: dict[str, Callable[[_Reader], None]] = {
    "PROTO": _skip(1),
    "FRAME": _skip(8),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _Reader.push_dict,
    "EMPTY_TUPLE": _constant(tuple),
    "DICT": _dict,
    "SETITEMS": _Reader.set_items,
    "BININT1": _pushes(lambda r: r.unsigned(1)),
    "BININT2": _pushes(lambda r: r.unsigned(2)),
    "BININT": _pushes(lambda r: int.from_bytes(r.take(4), "little", signed=True)),
    "LONG1": _long(1),
    "LONG4": _long(4),
    "BINUNICODE8": _pushes(lambda r: r.take(r.unsigned(8)).decode("utf-8", "surrogatepass")),
    "SHORT_BINSTRING": _byte_string(1),
    "BINSTRING": _byte_string(4),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
}
#: Names of all opcodes.
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_HANDLERS = {code: _BY_NAME[name] for code, name in _OPCODES.items() if name in _BY_NAME}
#: What opcodes with a line of text push; the line of GET and PUT is a memo index.
_LINES: dict[int, Callable[[bytes], Any]] = {
    ord("F"): float,
    ord("I"): _int,
    ord("L"): lambda line: int(line.removesuffix(b"L")),
    ord("S"): _quoted,
    ord("V"): lambda line: line.decode("raw-unicode-escape"),
    ord("g"): _index,
    ord("p"): _index,
}
