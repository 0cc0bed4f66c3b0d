"""Read the tensors of an untrusted checkpoint without executing anything in it.

A file of `torch.save` is a pickle, and a pickle can call any function. `torch.load` with
weights_only=True rejects every file that names a class outside torch, as Lightning 1.3.2 does: it
keys the states of its callbacks by class. Here torch still reads the container and the storages,
but the pickle is read by `InertUnpickler`, whose operations only build tensors and containers.
"""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch._utils
from torch import Tensor

#: Which weights to read from a file with both the trained ones and their moving average.
Weights = Literal["raw", "ema"]

#: Suffixes of checkpoint files.
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")

#: Key of the run's settings in Lightning files, and in the metadata of safetensors files.
SETTINGS = "hyper_parameters"

#: Keys of the state dict, in the order of lookup.
_STATE_KEYS: dict[Weights, tuple[str, ...]] = {
    "raw": ("state_dict", "model"),
    "ema": ("model_ema",),
}

#: Magic number of torch.save before torch 1.6, stored as a pickle at the start of the file.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C

#: Functions that a pickle may call. None of them looks up names or calls its arguments.
_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.Size": torch.Size,
}

#: Names that only a malicious file contains. Safety does not depend on this list, since unknown
#: functions are never called, but the weights of such a file should not be trusted.
_HOSTILE_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "ctypes"),
    *("importlib", "runpy", "code", "codeop", "pickle", "_pickle", "marshal", "webbrowser", "pdb"),
    *("multiprocessing", "asyncio", "timeit", "cProfile", "pip"),
}
_HOSTILE_BUILTINS = {
    *("eval", "exec", "compile", "open", "__import__", "getattr", "setattr"),
    *("delattr", "input", "breakpoint", "globals", "locals", "vars"),
}


class HostileFileError(ValueError):
    """A pickle names a function that runs code."""


class StandIn:
    """Placeholder for an unknown class, function or object of a pickle; cannot be called."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"StandIn({self.name})"


class InertUnpickler(pickle._Unpickler):
    """Unpickler that calls nothing outside `_CALLABLE`.

    Based on the Python implementation, because operations of the C one cannot be overridden.
    Restricting the names alone would still allow a pickle to set attributes (`BUILD`).
    """

    # Missing in the type stub of the base class.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def find_class(self, module: str, name: str) -> Any:
        """Return a function of `_CALLABLE` or a stand-in; nothing is imported."""
        # Protocol 2, the default of torch.save, uses names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        # `open` is pickled under the name of its C module.
        builtin = module in ("builtins", "io", "_io") and name in _HOSTILE_BUILTINS
        if builtin or module.partition(".")[0] in _HOSTILE_MODULES:
            raise HostileFileError(full_name)
        return _CALLABLE.get(full_name) or StandIn(full_name)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        self.stack[-1] = _call(function, arguments)

    def _new_with_keywords(self) -> None:
        if self.stack.pop():
            raise pickle.UnpicklingError("keyword arguments, which torch.save does not write")
        self._reduce()

    def _object(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(_call(function, tuple(arguments)))

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        arguments = tuple(self.pop_mark())
        self.append(_call(self.find_class(module, name), arguments))

    def _drop_state(self) -> None:
        self.stack.pop()

    def _fill_one(self) -> None:
        item = self.stack.pop()
        _fill(self.stack[-1], [item])

    def _fill_pair(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def _fill_marked(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    # Registered extensions (EXT1, EXT2, EXT4) are not supported.
    dispatch = {  # type: ignore[assignment]
        key: operation
        for key, operation in pickle._Unpickler.dispatch.items()
        if key not in {each[0] for each in (pickle.EXT1, pickle.EXT2, pickle.EXT4)}
    } | {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _new_with_keywords,
        pickle.OBJ[0]: _object,
        pickle.INST[0]: _instance,
        pickle.BUILD[0]: _drop_state,
        pickle.APPEND[0]: _fill_one,
        pickle.SETITEM[0]: _fill_pair,
        pickle.APPENDS[0]: _fill_marked,
        pickle.SETITEMS[0]: _fill_marked,
        pickle.ADDITEMS[0]: _fill_marked,
    }


class InertPickle:
    """Replacement for the module `pickle` in `torch.load`."""

    Unpickler = InertUnpickler

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        """Read one pickle."""
        return InertUnpickler(file, **options).load()


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Call a function of `_CALLABLE`; return a stand-in for the result of any other."""
    if any(function is known for known in _CALLABLE.values()):
        return function(*arguments)
    return StandIn(getattr(function, "name", type(function).__name__))


def _fill(target: Any, items: list[Any]) -> None:
    """Add items, or alternating keys and values, to a container; ignored for a stand-in."""
    if type(target) is list:
        target.extend(items)
    elif type(target) is set:
        target.update(items)
    elif type(target) in (dict, OrderedDict):
        target.update(zip(items[::2], items[1::2], strict=True))


class Checkpoint(NamedTuple):
    """Tensors and configuration of a checkpoint."""

    #: Tensors by name.
    state: dict[str, Tensor]
    #: Config of the run that wrote it, by its published names; empty if the file has none.
    config: Mapping[str, Any]


def read_checkpoint(path: Path, weights: Weights = "raw") -> Checkpoint:
    """Read a checkpoint written by safetensors or any version of torch.save.

    Tensors are looked up under "state_dict", then "model" ("model_ema" for the moving average),
    then at the top level; a prefix `module.` of all names is removed. Storages are memory-mapped
    where the format allows, so that unused ones are never read. The config is looked up under
    "hyper_parameters", "config"; in safetensors that is JSON in the metadata.

    Args:
        path: file; its contents decide the format.
        weights: "raw", as the published tools, or "ema" (moving average).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: naming the file and the reason, if it is empty, truncated, of another format,
            has no tensors or tries to run code. Nothing in the file is executed in any case.
    """
    if weights not in _STATE_KEYS:
        raise ValueError(f"weights: expected raw or ema, got {weights!r}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content, settings = _read(path)
    except HostileFileError as error:
        raise ValueError(
            f"{path} tries to run code when it is loaded: it calls {error}. The code was not run."
            " Do not load this file with other tools"
        ) from error
    state = _find_tensors(path, content, weights)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    config = settings.get("config") if isinstance(settings, Mapping) else None
    return Checkpoint(state, config if isinstance(config, Mapping) else {})


def _read(path: Path) -> tuple[Any, Any]:
    """Read the content of a file, with stand-ins, and the settings of its run, or None."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".safetensors" or start[8:10] in (b'{"', b"{}"):
        return _read_safetensors(path)
    is_zip = start.startswith(b"PK")
    if is_zip:
        _check_zip(path)
    else:
        _check_legacy(path, start)
    with _damage_errors(path):
        # weights_only=True does not allow a custom pickle module; see the module docstring.
        content = torch.load(
            path, map_location="cpu", pickle_module=InertPickle, weights_only=False, mmap=is_zip
        )
    return content, content.get(SETTINGS) if isinstance(content, Mapping) else None


@contextmanager
def _damage_errors(path: Path) -> Iterator[None]:
    """Turn errors of a parser, which can be of any type for a damaged file, into ValueError."""
    try:
        yield
    except (HostileFileError, OSError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{path} is damaged or truncated: {type(error).__name__} ({reason})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    try:
        return tensors, json.loads(metadata.get(SETTINGS, "null"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {SETTINGS} in its metadata is not JSON: {error}") from error


def _check_zip(path: Path) -> None:
    """Check that a zip archive is complete and written by torch.save."""
    names: set[str] | None = None
    with _damage_errors(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
    if names is None:
        raise ValueError(f"{path} is truncated: a zip archive without a directory at its end")
    if "constants.pkl" in names:
        # torch.load would pass it to torch.jit, which runs programs.
        raise ValueError(f"{path} is a TorchScript program, expected weights of torch.save")
    if "data.pkl" not in names:
        raise ValueError(f"{path} is a zip archive without data.pkl, expected one of torch.save")


def _check_legacy(path: Path, start: bytes) -> None:
    """Check that a file starts as written by torch.save before torch 1.6."""
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} looks like a web page; the download failed")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer; fetch the file itself")
    # torch.load would unpack a tar archive, the format of torch 0.1.
    if not start.startswith(b"\x80") or tarfile.is_tarfile(path):
        raise ValueError(
            f"{path} is not a checkpoint: expected a file of torch.save or safetensors, got one"
            f" that starts with {start[:16]!r}"
        )
    with _damage_errors(path), path.open("rb") as file:
        number = InertUnpickler(file).load()
    if number != _LEGACY_NUMBER:
        raise ValueError(f"{path} is a plain pickle, expected a file of torch.save")


def _find_tensors(path: Path, content: Any, weights: Weights) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} contains a {type(content).__name__}, expected a dict of tensors")
    keys = (key for key in _STATE_KEYS[weights] if isinstance(content.get(key), Mapping))
    key = next(keys, None)
    if key is None and weights == "ema":
        raise ValueError(
            f"{path} contains no moving average (key 'model_ema'); its keys are {_shorten(content)}"
        )
    state = content if key is None else content[key]
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if len(others) == len(state):
        raise ValueError(
            f"{path} contains no tensors under 'state_dict', 'model' or at the top level; its keys"
            f" are {_shorten(content)}"
        )
    if others:
        raise ValueError(f"{path} contains values other than tensors: {_shorten(others)}")
    return {str(name): tensor for name, tensor in state.items()}


def _shorten(names: Collection[Any]) -> str:
    shown = ", ".join(str(name) for name in list(names)[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
