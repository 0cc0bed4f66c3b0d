"""Stack machine that evaluates a pickle without importing or calling anything."""

from __future__ import annotations

import codecs
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Collection
from typing import Any

from fiber.inert_pickle.records import (
    MAX_NAME,
    HostileFileError,
    Inert,
    ObjectRecord,
    Pickle,
    StorageRecord,
    storage_key,
    tensor_record,
)
from fiber.messages import printable, shown

#: Maximum number of opcodes in a pickle. A state dict has about 40 per tensor.
MAX_OPERATIONS = 1_000_000

#: Integer keys below this bound are kept. An integer hashes to itself, so a file could choose
#: larger ones that all probe the same slots of a dict, which takes quadratic time.
_MAX_INT_KEY = 2**14
#: Maximum number of characters of a key; names of tensors have some hundred at most.
_MAX_KEY = 2**12

#: Modules and builtins that only malicious files name. Such files are rejected. Safety does not
#: depend on these lists, since nothing is ever called.
_HOSTILE_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "ctypes"),
    *("importlib", "runpy", "code", "codeop", "pickle", "_pickle", "marshal", "webbrowser"),
    *("pdb", "multiprocessing", "asyncio", "timeit", "cProfile", "pip"),
}
_HOSTILE_BUILTINS = {
    *("eval", "exec", "compile", "open", "__import__", "getattr", "setattr", "delattr"),
    *("input", "breakpoint", "globals", "locals", "vars", "execfile"),
}


_ReadArgument = Callable[[Any], Any]


class _Mark:
    """Stack mark, compared by identity."""


_MARK = _Mark()

#: Subclasses of dict and list in which sacred holds the config of a run; METER's files store it.
_SACRED_CONTAINERS: dict[str, type[dict[Any, Any]] | type[list[Any]]] = {
    f"sacred.config.custom_containers.{name}": kind
    for name, kind in (
        ("DogmaticDict", dict),
        ("DogmaticList", list),
        ("ReadOnlyDict", dict),
        ("ReadOnlyList", list),
    )
}


def _decoded(data: bytes) -> str:
    """Decode a byte string, which is how Python 2 wrote texts."""
    return data.decode("utf-8", "replace")


#: Readers of arguments that pickletools decodes in other ways.
_STRINGS: dict[str, _ReadArgument] = {
    "STRING": lambda file: _decoded(
        codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0]
    ),
    "BINSTRING": lambda file: _decoded(pickletools.read_string4(file).encode("latin-1")),
    "SHORT_BINSTRING": lambda file: _decoded(pickletools.read_string1(file).encode("latin-1")),
}
#: Name, code, and reader of the argument of each opcode.
_OPCODES = [
    (
        each.name,
        each.code.encode("latin-1"),
        _STRINGS.get(each.name, None if each.arg is None else each.arg.reader),
    )
    for each in pickletools.opcodes
]
_STOP = b"."


def read_pickle(
    file: Any,
    *,
    objects: Collection[str] = (),
    max_words: int = 0,
    max_operations: int = MAX_OPERATIONS,
) -> Pickle:
    """Read one pickle from a file or mmap, leaving the file position at the end of the pickle.

    Args:
        file: file or mmap at the start of a pickle.
        objects: dotted names of classes whose objects become `ObjectRecord`.
        max_words: maximum length of tuples of strings that stay keys of dicts.
        max_operations: maximum number of opcodes.

    Raises:
        HostileFileError: if the pickle names a function that can execute arbitrary code.
        ValueError, IndexError, KeyError, TypeError, AttributeError: if the pickle is damaged.
    """
    reader = _Reader(objects, max_words)
    reader.run(file, max_operations)
    return Pickle(reader.stack.pop(), reader.storages)


class _Reader:
    """Stack machine that evaluates a pickle."""

    def __init__(self, objects: Collection[str], max_words: int) -> None:
        self.objects, self.max_words = objects, max_words
        #: Number of opcodes before the current one.
        self.number = 0
        self.stack: list[Any] = []
        #: Values by memo index; `_MARK` where there is none. A dict could be slow, as for keys.
        self.memo: list[Any] = []
        self.storages: dict[str, StorageRecord] = {}
        #: Number of items copied by calls.
        self.copied = 0

    def run(self, file: Any, max_operations: int) -> None:
        """Execute the opcodes of a file up to STOP."""
        read, operations = file.read, self._operations()
        for self.number in range(max_operations):
            code = read(1)
            if (operation := operations.get(code)) is None:
                raise ValueError(_unknown(code))
            execute, read_argument = operation
            execute() if read_argument is None else execute(read_argument(file))
            if code == _STOP:
                return
        raise ValueError(f"the pickle has more than {max_operations:,} opcodes")

    def _operations(self) -> dict[bytes, tuple[Callable[..., object], _ReadArgument | None]]:
        """Return how each opcode is executed, and how its argument is read, by code."""
        push, stack = self.stack.append, self.stack
        executes: dict[str, Callable[..., object]] = {
            **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), push),
            **dict.fromkeys(("LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"), push),
            **dict.fromkeys(("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"), push),
            **dict.fromkeys(("SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), push),
            "BYTEARRAY8": push,
            "NONE": lambda: push(None),
            "NEWTRUE": lambda: push(True),
            "NEWFALSE": lambda: push(False),
            **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), self._recall),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), self._memorize),
            "MEMOIZE": lambda: self._memorize(len(self.memo)),
            "MARK": lambda: push(_MARK),
            "EMPTY_TUPLE": lambda: push(()),
            "TUPLE1": lambda: push((self._pop_one(),)),
            "TUPLE2": lambda: push(tuple(self._pop(2))),
            "TUPLE3": lambda: push(tuple(self._pop(3))),
            "TUPLE": lambda: push(tuple(self._pop_mark())),
            "EMPTY_LIST": lambda: push([]),
            "LIST": lambda: push(self._pop_mark()),
            "APPEND": lambda: self._append([self._pop_one()]),
            "APPENDS": lambda: self._append(self._pop_mark()),
            "EMPTY_DICT": lambda: push({}),
            "DICT": self._dict,
            "SETITEM": lambda: self._set_items(self._pop(2)),
            "SETITEMS": lambda: self._set_items(self._pop_mark()),
            "EMPTY_SET": lambda: push(Inert("builtins.set")),
            "FROZENSET": self._frozen_set,
            "ADDITEMS": self._pop_mark,
            "GLOBAL": lambda names: push(_named(*names.split(" ", 1))),
            "STACK_GLOBAL": lambda: push(_named(*self._pop(2))),
            "REDUCE": lambda: push(self._result(*self._pop(2))),
            "NEWOBJ": lambda: push(self._result(*self._pop(2))),
            "NEWOBJ_EX": lambda: push(self._result(*self._pop(3)[:2])),
            "OBJ": self._object,
            "INST": self._instance,
            "BUILD": self._build,
            "BINPERSID": lambda: push(self._storage(self._pop_one())),
            "POP": self._pop_one,
            "POP_MARK": self._pop_mark,
            "DUP": lambda: push(stack[-1]),
            **dict.fromkeys(("PROTO", "FRAME"), lambda argument: None),
            "STOP": lambda: None,
        }
        return {code: (executes[name], read) for name, code, read in _OPCODES if name in executes}

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def _dict(self) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _frozen_set(self) -> None:
        self._pop_mark()
        self.stack.append(Inert("builtins.set"))

    def _object(self) -> None:
        callee, *arguments = self._pop_mark()
        self.stack.append(self._result(callee, tuple(arguments)))

    def _instance(self, names: str) -> None:
        arguments = tuple(self._pop_mark())
        self.stack.append(self._result(_named(*names.split(" ", 1)), arguments))

    def _build(self) -> None:
        state = self._pop_one()
        if type(self.stack[-1]) is ObjectRecord:
            self.stack[-1].state = state

    def _memorize(self, index: int) -> None:
        # Picklers count up, by one for each value that they keep.
        if not 0 <= index <= self.number:
            raise ValueError(
                f"an index of the memo is {shown(index)}, expected 0 to {self.number:,}"
            )
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
            return
        self.memo += [_MARK] * (index + 1 - len(self.memo))
        self.memo[index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        if not 0 <= index < len(self.memo) or self.memo[index] is _MARK:
            raise ValueError(f"the memo has no value {shown(index)}")
        self.stack.append(self.memo[index])

    def _pop_one(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("stack underflow: an opcode needs a value above the last mark")
        return value

    def _pop(self, count: int) -> list[Any]:
        """Pop `count` values, all of which must be above the last mark."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError(f"stack underflow: an opcode needs {count} values above the last mark")
        del self.stack[-count:]
        return values

    def _pop_mark(self) -> list[Any]:
        """Pop the last mark and return all values above it."""
        stack, items = self.stack, []
        while (value := stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                words = type(key) is tuple and 0 < len(key) <= self.max_words
                is_kept = words and all(type(word) is str and len(word) <= _MAX_KEY for word in key)
                target[key if is_kept else _key(key)] = value

    def _result(self, callee: Any, arguments: Any) -> Any:
        """Return the tensor or container that a call creates, or a placeholder."""
        # Only an Inert stands for a class. A string could say anything and be of any length.
        name = callee.name if isinstance(callee, Inert) else type(callee).__name__
        if not isinstance(arguments, tuple):
            raise ValueError(
                f"expected a tuple of arguments in a call to {name}, got {type(arguments).__name__}"
            )
        if name in self.objects:
            return ObjectRecord(name, arguments)
        if name == "collections.defaultdict" or (
            name == "collections.OrderedDict" and not arguments
        ):
            return {}
        if name == "collections.OrderedDict" and isinstance(arguments[0], list):
            # A pickle may pass one long list to many calls.
            self.copied += len(arguments[0])
            if self.copied > MAX_OPERATIONS:
                raise ValueError(f"the pickle copies more than {MAX_OPERATIONS:,} items")
            if _is_pairs(arguments[0]):
                return {_key(key): value for key, value in arguments[0]}
        if (kind := _SACRED_CONTAINERS.get(name)) is not None:
            # Its items follow, or are the argument if the container is read-only.
            if not arguments:
                return kind()
            if len(arguments) == 1 and type(arguments[0]) is kind:
                return arguments[0]
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return tensor_record(arguments)
        if name in (
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
        ):
            return arguments[0]
        if name == "torch._utils._rebuild_tensor_v3":
            # Dtypes without a storage class of their own, such as float8.
            dtype = arguments[6] if len(arguments) > 6 else None
            kind = printable(dtype.name, 100) if isinstance(dtype, Inert) else "an unknown dtype"
            raise ValueError(f"tensors of {kind} are not supported")
        return callee if isinstance(callee, Inert) else Inert(name)

    def _storage(self, value: Any) -> Any:
        """Read a storage reference: ("storage", class, key, device, numel, ...)."""
        if not (isinstance(value, tuple) and value and value[0] == "storage"):
            return Inert("persistent id")
        kind, key, _, numel = value[1:5]
        if not isinstance(kind, Inert):
            raise ValueError(f"a storage has no class; got {type(kind).__name__}")
        key = storage_key(key)
        if type(numel) is not int or not 0 <= numel < 2**63:
            raise ValueError(
                f"storage {key} has {shown(numel)} elements; expected an integer below 2**63"
            )
        # Before torch 0.4, a storage could be a view of another storage.
        if len(value) > 5 and value[5] is not None:
            raise ValueError(
                f"storage {key} is a view of another storage; expected a file from torch 0.4 or"
                " later"
            )
        record = StorageRecord(kind.name.rpartition(".")[2], key, numel)
        known = self.storages.setdefault(key, record)
        if known != record:
            raise ValueError(f"storage {key} is referenced with different types or sizes")
        # The first one, so that many references take no memory of their own.
        return known


def _unknown(code: bytes) -> str:
    """Describe an opcode that is not executed."""
    if not code:
        return "the pickle ends before STOP"
    names = [name for name, each, _ in _OPCODES if each == code]
    return f"unsupported opcode {names[0] if names else shown(code)}; torch.save does not write it"


def _key(key: Any) -> Any:
    """Return the key if it is found in constant time, otherwise a distinct `Inert` key."""
    if key is None or isinstance(key, Inert | ObjectRecord):
        return key
    if isinstance(key, str | bytes):
        # Equal long strings would be compared in whole at every use.
        unit = "characters" if isinstance(key, str) else "bytes"
        return key if len(key) <= _MAX_KEY else Inert(f"{len(key):,} {unit}")
    if isinstance(key, int) and 0 <= key < _MAX_INT_KEY:
        return key
    return Inert(type(key).__name__)


def _named(module: Any, name: Any) -> Inert:
    """Return a placeholder for a class or function without importing anything."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError(
            "expected module and class names to be strings, got"
            f" {type(module).__name__} and {type(name).__name__}"
        )
    if max(len(module), len(name)) > MAX_NAME:
        raise ValueError(
            f"a class is called {shown(name)} in module {shown(module)}; expected names of at most"
            f" {MAX_NAME} characters"
        )
    # Protocol 2, which torch.save writes, uses Python 2 names.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    # `open` is pickled under the module that defines it.
    builtin = module in ("builtins", "io", "_io") and name in _HOSTILE_BUILTINS
    if builtin or module.partition(".")[0] in _HOSTILE_MODULES:
        raise HostileFileError(printable(f"{module}.{name}", 2 * MAX_NAME))
    return Inert(name, module)


def _is_pairs(values: list[Any]) -> bool:
    return all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in values)
