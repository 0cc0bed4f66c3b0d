"""What a pickle is read as, besides plain values: placeholders and records."""

from __future__ import annotations

from typing import Any, NamedTuple

from fiber.messages import shown

#: Maximum number of dimensions of a tensor, as in torch.
MAX_DIMS = 64

#: Maximum number of characters in the name of a module, a class or a storage.
MAX_NAME = 256


#: What `read_pickle` raises for a damaged pickle.
PICKLE_ERRORS = (
    *(ValueError, IndexError, KeyError, TypeError, AttributeError),
    # Of a length that is larger than any file.
    *(MemoryError, OverflowError),
)


class HostileFileError(ValueError):
    """Raised if a pickle names a function that can execute arbitrary code."""


class Inert:
    """Placeholder for a class, function or object that a pickle names or creates."""

    __slots__ = ("_module", "_name")

    def __init__(self, name: str, module: str = "") -> None:
        self._name, self._module = name, module

    @property
    def name(self) -> str:
        """Dotted name, at most 513 characters."""
        # Joined when it is needed: a pickle can name a class in every opcode.
        return f"{self._module}.{self._name}" if self._module else self._name

    def __repr__(self) -> str:
        return f"Inert({self.name})"


class ObjectRecord:
    """Object that a pickle creates, of a class whose objects were asked for. Nothing was called."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        #: Dotted name of the class.
        self.name = name
        #: Arguments of the call that creates the object.
        self.arguments = arguments
        #: State that is set afterwards, if there is one.
        self.state: Any = None


class StorageRecord(NamedTuple):
    """Tensor storage that a pickle refers to."""

    #: Name of the storage class without its module, such as "FloatStorage".
    kind: str
    #: Key of the storage in the file.
    key: str
    #: Number of elements.
    numel: int


class TensorRecord(NamedTuple):
    """Strided view of a storage. Offset and strides are in elements."""

    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Pickle(NamedTuple):
    """Content of one pickle."""

    #: Unpickled value. Built-in scalars and containers are unchanged, sacred's containers are dicts
    #: and lists, tensors, storages and the objects that were asked for are records, and all other
    #: objects are `Inert`.
    content: Any
    #: All storages that the pickle refers to, by key.
    storages: dict[str, StorageRecord]


def storage_key(key: Any) -> str:
    """Return the key of a storage as a string; files from before torch 1.0 have integers.

    Raises:
        ValueError: if it is neither a string of at most 256 printable characters nor an integer
            from 0 to 2**63 - 1.
    """
    if type(key) is int and 0 <= key < 2**63:
        return str(key)
    if isinstance(key, str) and len(key) <= MAX_NAME and key.isprintable():
        return key
    raise ValueError(f"a storage has the key {shown(key)}; expected a short string or an integer")


def tensor_record(arguments: tuple[Any, ...]) -> TensorRecord:
    """Make a record from the arguments of a function of torch that rebuilds a tensor."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, StorageRecord):
        raise ValueError(f"expected the storage of a tensor, got {type(storage).__name__}")
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError(
            "expected the size and the stride of a tensor to be tuples, got"
            f" {type(size).__name__} and {type(stride).__name__}"
        )
    if len(size) != len(stride):
        raise ValueError(
            f"expected a size and a stride of the same length, got {len(size)} and {len(stride)}"
        )
    if len(size) > MAX_DIMS:
        raise ValueError(f"a tensor has {len(size)} dimensions; expected at most {MAX_DIMS}")
    numbers = [offset, *size, *stride]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(
            "a tensor has an invalid size, stride or offset; expected integers in [0, 2**63)"
        )
    return TensorRecord(storage, offset, size, stride)
