"""Read the tensors of an untrusted checkpoint without executing anything in it.

A file of `torch.save` is a pickle, and a pickle may name any function to be called.
`torch.load(weights_only=True)` refuses a file as soon as it names a class outside torch, and
Lightning 1.3.2 does: it keys the states of its callbacks by class. So the pickle is read by
`InertUnpickler`, handed to `torch.load` as its pickle module: torch still reads the container and
the storages, and the few operations of a pickle that can call, create or fill something are
replaced by ones that do so for tensors alone.
"""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch._utils
from torch import Tensor

#: Which weights of a file that holds both the trained ones and their moving average.
Weights = Literal["raw", "ema"]

#: What such a file is called.
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")

#: Keys under which a file holds its tensors, in the order in which they are looked for.
_PLACES: dict[Weights, tuple[str, ...]] = {"raw": ("state_dict", "model"), "ema": ("model_ema",)}

#: Key under which Lightning writes the settings of a run; of safetensors, a key of the metadata.
SETTINGS = "hyper_parameters"

#: The number that a file of torch.save before torch 1.6 begins with, as a pickle of its own.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C

#: All that a pickle may call. None of them looks a name up or calls what it is given.
_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.Size": torch.Size,
}

#: A file that names one of these means harm. Safety does not rest on the list (nothing unknown is
#: ever called), but nobody wants the weights of such a file.
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
    """A pickle asks for a function that runs code."""


class StandIn:
    """What stands for something that a pickle names or creates and we do not know.

    It has no `__call__` and no state; it can be a key and a value, and no more.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"StandIn({self.name})"


class InertUnpickler(pickle._Unpickler):
    """Python's own unpickler, in which nothing but `_CALLABLE` can be called.

    The one written in Python is the base, since the one in C does not let its operations be
    replaced, and restricting the names alone would still let a pickle write attributes of those
    that are left (`BUILD`).
    """

    # Attributes of the base that its type stub leaves out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def find_class(self, module: str, name: str) -> Any:
        """Give one of the known globals, or a stand-in; nothing is imported."""
        # Protocol 2, which torch.save writes, has the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        # A pickle of `open` names the module that it is written in.
        builtin = module in ("builtins", "io", "_io") and name in _HOSTILE_BUILTINS
        if builtin or module.partition(".")[0] in _HOSTILE_MODULES:
            raise HostileFileError(f"it asks to call {full_name}")
        return _CALLABLE.get(full_name) or StandIn(full_name)

    def _call(self) -> None:
        """Replace (callee, arguments) on the stack by what the call gives."""
        arguments, callee = self.stack.pop(), self.stack[-1]
        self.stack[-1] = _made(callee, arguments)

    def _call_with_keywords(self) -> None:
        keywords = self.stack.pop()
        if keywords:
            raise pickle.UnpicklingError("keyword arguments, which torch.save does not write")
        self._call()

    def _call_marked(self) -> None:
        """Do `_call` for a callee and arguments that stand after a mark."""
        callee, *arguments = self.pop_mark()
        made = _made(callee, tuple(arguments))
        self.append(made)

    def _call_named(self) -> None:
        """Do `_call` for a callee that is named by the operation itself."""
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        made = _made(self.find_class(module, name), tuple(self.pop_mark()))
        self.append(made)

    def _drop_state(self) -> None:
        """Leave attributes unset: no tensor needs any."""
        self.stack.pop()

    def _fill_list(self) -> None:
        items = self.pop_mark()
        _extend(self.stack[-1], items)

    def _fill_list_by_one(self) -> None:
        item = self.stack.pop()
        _extend(self.stack[-1], [item])

    def _fill_dict(self) -> None:
        items = self.pop_mark()
        _update(self.stack[-1], items)

    def _fill_dict_by_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def _fill_set(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is set:
            target.update(items)

    # Left out besides: EXT1, EXT2, EXT4 (registered extensions) and out-of-band buffers.
    dispatch = {  # type: ignore[assignment]
        key: operation
        for key, operation in pickle._Unpickler.dispatch.items()
        if key not in {each[0] for each in (pickle.EXT1, pickle.EXT2, pickle.EXT4)}
    } | {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: _call_with_keywords,
        pickle.OBJ[0]: _call_marked,
        pickle.INST[0]: _call_named,
        pickle.BUILD[0]: _drop_state,
        pickle.APPEND[0]: _fill_list_by_one,
        pickle.APPENDS[0]: _fill_list,
        pickle.SETITEM[0]: _fill_dict_by_one,
        pickle.SETITEMS[0]: _fill_dict,
        pickle.ADDITEMS[0]: _fill_set,
    }


class InertPickle:
    """The part of the module `pickle` that `torch.load` uses, on `InertUnpickler`."""

    Unpickler = InertUnpickler

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        """Read one pickle."""
        return InertUnpickler(file, **options).load()


def _made(callee: Any, arguments: tuple[Any, ...]) -> Any:
    """Call one of `_CALLABLE`; for all else give a stand-in without calling anything."""
    if any(callee is known for known in _CALLABLE.values()):
        return callee(*arguments)
    return StandIn(getattr(callee, "name", type(callee).__name__))


def _extend(target: Any, items: list[Any]) -> None:
    """Fill a list; a stand-in for one stays empty."""
    if type(target) is list:
        target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    """Fill a dict; a stand-in for one stays empty."""
    if type(target) in (dict, OrderedDict):
        target.update(zip(items[::2], items[1::2], strict=True))


class Checkpoint(NamedTuple):
    """Tensors and configuration of a checkpoint."""

    #: Tensors by name.
    state: dict[str, Tensor]
    #: Settings of the run that wrote it, by their published names; empty if the file has none.
    config: Mapping[str, Any]


def read_state(path: Path, weights: Weights = "raw") -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, see `read_checkpoint`."""
    return read_checkpoint(path, weights).state


def read_checkpoint(path: Path, weights: Weights = "raw") -> Checkpoint:
    """Read a checkpoint: safetensors, or any age of torch.save.

    Tensors are looked for under "state_dict" and "model" (the moving average under "model_ema"),
    else at the top; a prefix `module.` that all names have is dropped. Storages are mapped from the
    file where its format allows, so that what nobody uses is never read. The config is looked for
    under "hyper_parameters", "config"; of safetensors that is JSON in the metadata.

    Args:
        path: the file; what it holds decides how it is read.
        weights: "raw", as the published tools do, or "ema".

    Returns:
        The tensors, and the config if there is one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, cut off, of another kind, holds no tensors or tries to run code;
            with the file's name and the reason. Nothing of the file is run in any case.
    """
    if weights not in _PLACES:
        raise ValueError(f"weights: expected raw or ema, got {weights!r}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content, settings = _read(path)
    except HostileFileError as error:
        raise ValueError(
            f"{path} tries to run code when it is loaded: {error}; nothing of it was run. Do not"
            " load this file with other tools"
        ) from error
    state = _find_tensors(path, content, weights)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    config = settings.get("config") if isinstance(settings, Mapping) else None
    return Checkpoint(state, config if isinstance(config, Mapping) else {})


def _read(path: Path) -> tuple[Any, Any]:
    """Read whatever the file holds, stand-ins included; and the settings of its run, or None."""
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
    try:
        # weights_only would exclude a pickle module of our own: see the module's docstring.
        content = torch.load(
            path, map_location="cpu", pickle_module=InertPickle, weights_only=False, mmap=is_zip
        )
    except (HostileFileError, OSError):
        raise
    except Exception as error:
        # A damaged pickle can fail in any way.
        raise ValueError(f"{path} is damaged or cut off: {_said(error)}") from error
    return content, content.get(SETTINGS) if isinstance(content, Mapping) else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors, it is cut off, damaged or of another kind:"
            f" {error}"
        ) from error
    try:
        return tensors, json.loads(metadata.get(SETTINGS, "null"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {SETTINGS} in its metadata is no JSON: {error}") from error


def _check_zip(path: Path) -> None:
    """Check that a zip archive is whole and is what torch.save writes."""
    try:
        names = _zip_names(path)
    except OSError:
        raise
    except Exception as error:
        # zipfile answers damage with errors of many kinds.
        raise ValueError(f"{path} is damaged: {_said(error)}") from error
    if names is None:
        raise ValueError(
            f"{path} is cut off: it begins as a zip archive, but has no directory at its end"
        )
    if "constants.pkl" in names:
        # torch.load would hand it to torch.jit, which has a language of its own.
        raise ValueError(f"{path} is a TorchScript program; expected weights, as torch.save writes")
    if "data.pkl" not in names:
        raise ValueError(f"{path} is a zip archive, but none of torch.save: data.pkl is missing")


def _zip_names(path: Path) -> set[str] | None:
    """List the files of a zip archive without their folders; None if it has no directory."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return {name.rpartition("/")[2] for name in archive.namelist()}


def _check_legacy(path: Path, start: bytes) -> None:
    """Check that a file begins as torch.save wrote before torch 1.6."""
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} looks like a web page; the download went wrong")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS; fetch the file itself")
    # torch.load would unpack a tar archive, the format of torch 0.1.
    if not start.startswith(b"\x80") or tarfile.is_tarfile(path):
        raise ValueError(
            f"{path} is no checkpoint: it begins with {start[:16]!r}; expected what torch.save or"
            " safetensors write"
        )
    try:
        with path.open("rb") as file:
            number = InertUnpickler(file).load()
    except (HostileFileError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged or cut off: {_said(error)}") from error
    if number != _LEGACY_NUMBER:
        raise ValueError(f"{path} is a plain pickle; expected what torch.save writes")


def _find_tensors(path: Path, content: Any, weights: Weights) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    place = next((key for key in _PLACES[weights] if isinstance(content.get(key), Mapping)), None)
    if place is None and weights == "ema":
        raise ValueError(
            f"{path} holds no moving average (key 'model_ema'); its keys are {_listed(content)}"
        )
    state = content if place is None else content[place]
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if not state or len(others) == len(state):
        raise ValueError(
            f"{path} holds no tensors under 'state_dict', 'model' or at the top; its keys are"
            f" {_listed(content)}"
        )
    if others:
        raise ValueError(f"{path} holds among its tensors what is none: {_listed(others)}")
    return {str(name): tensor for name, tensor in state.items()}


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def _said(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
