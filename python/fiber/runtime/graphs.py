"""Open a folder of exported graphs, and run them on numpy arrays."""

from __future__ import annotations

import importlib
import json
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fiber.distributions import how_to_install
from fiber.messages import printable, shown, shown_names
from fiber.runtime.metadata import (
    FILE,
    MODEL_KEY,
    PART_KEY,
    Dimension,
    Graph,
    Metadata,
    describe_file,
    read_metadata,
    terms,
)

#: Libraries that run graphs.
Engine = Literal["onnxruntime", "openvino", "torch"]
#: Engines for each format, the default first.
ENGINES: dict[str, tuple[Engine, ...]] = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
#: Extra that installs each engine.
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
#: File in a .pt2 archive that names model and part.
MARK_FILE = "fiber.json"
#: Maximum size of this file.
_MAX_MARK_BYTES = 10_000
#: A key of the mark in an ONNX file, a protocol buffer, with the length of its value; in an XML
#: file, with its value. Maximum size of such a file, whose weights are in another one.
_KEYS = f"({MODEL_KEY}|{PART_KEY})".encode()
_ONNX_MARK = re.compile(_KEYS + rb"\x12([\0-\x7f])", re.DOTALL)
_XML_MARK = re.compile(b"<" + _KEYS + rb' value="(\w{1,127})"')
_MAX_MARKED_BYTES = 1 << 28


class Graphs:
    """Graphs of a model, run on the CPU in float32.

    Each graph is loaded when it is first run. Runs of one object are not parallel. What the graphs
    are and how they are connected is in docs/export.md.

    Args:
        folder: folder that `fiber export` wrote.
        engine: library that runs the graphs. Default: onnxruntime for ONNX, OpenVINO for its own
            format. OpenVINO also runs ONNX. "torch" is no default: when torch loads a .pt2 file, it
            runs code that is in it, so ask for it only for files that you exported yourself.
        threads: maximum number of threads of a graph. Default: the engine's own.

    Raises:
        FileNotFoundError: if the folder has no metadata.json, or a file is missing.
        ValueError: if metadata.json is invalid or of another version, a file is damaged or of
            another model, or the engine does not run the format.
        ModuleNotFoundError: if the engine is not installed; the message names the extra.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        engine: Engine | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.metadata: Metadata = read_metadata(self.folder)
        engines = ENGINES[self.metadata.to]
        if engine is not None and engine not in engines:
            raise ValueError(
                f"engine {shown(engine)} does not run the format {shown(self.metadata.to)} of"
                f" {self.folder / FILE}; expected {' or '.join(map(repr, engines))}"
            )
        if engine is None and engines[0] == "torch":
            raise ValueError(
                f"{self.folder} has .pt2 files, and torch runs code that such a file contains; pass"
                " engine='torch' if you exported them yourself, or use graphs of fiber export --to"
                " onnx, which contain none"
            )
        self.engine: Engine = engine or engines[0]
        self._module = _import(self.engine)
        self._threads = threads
        # onnxruntime sets the handling of subnormal numbers for the thread that loads a graph; in
        # the caller's, it would hold for other arithmetic, too.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fiber-graphs")
        self._check_files()
        self._loaded: dict[str, _Runner] = {}

    def __repr__(self) -> str:
        return f"Graphs({shown(self.folder)}, {', '.join(self.metadata.graphs)})"

    def run(self, name: str, inputs: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """Run a graph.

        Args:
            name: name of the graph.
            inputs: an array, or a buffer of the tokenizer, for each input, as
                `metadata.graphs[name].inputs` describes them.

        Returns:
            Outputs by name.

        Raises:
            ValueError: if the folder has no such graph, or the name, the type or the shape of an
                input is not what the graph takes. The message names the dimension.
        """
        graph = self.metadata.graphs.get(name)
        if graph is None:
            raise ValueError(
                f"{self.folder} has no graph {shown(name)}; it has"
                f" {shown_names(self.metadata.graphs, 40)}"
            )
        # Some are buffers of the extension.
        own = {each: np.asarray(value) for each, value in inputs.items()}
        check_inputs(name, graph, self.metadata.dimensions, own)
        # Two types of C have 64 bits, of which OpenVINO knows one; numpy takes them for equal.
        arrays = [np.asarray(own[each.name], each.dtype, order="C") for each in graph.inputs]
        names = [each.name for each in graph.inputs]
        outputs = self._thread.submit(lambda: self._load(name, graph).run(names, arrays)).result()
        return {each.name: array for each, array in zip(graph.outputs, outputs, strict=True)}

    def _load(self, name: str, graph: Graph) -> _Runner:
        """Load a graph when it is first run."""
        if name not in self._loaded:
            path = self.folder / graph.file
            try:
                self._loaded[name] = _RUNNERS[self.engine](self._module, path, self._threads)
            except Exception as error:
                # Errors of engines have classes of their own.
                raise ValueError(
                    f"{path} cannot be loaded by {self.engine}: {_first_line(error)}"
                ) from error
        return self._loaded[name]

    def _check_files(self) -> None:
        """Compare size and checksum of every file with metadata.json."""
        for name, expected in self.metadata.files.items():
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist, but metadata.json names it; export the model again"
                )
            found = describe_file(path)
            if found == expected:
                continue
            part = next((p for p, g in self.metadata.graphs.items() if g.file == name), None)
            mark = _read_mark(path) if part is not None else {}
            model = mark.get(MODEL_KEY, self.metadata.fingerprint)
            if model != self.metadata.fingerprint:
                raise ValueError(
                    f"{path} is a graph of another model, {printable(model, 12)}; expected"
                    f" {self.metadata.fingerprint[:12]}, the model of metadata.json"
                )
            if mark.get(PART_KEY, part) != part:
                raise ValueError(
                    f"{path} is the graph {shown(mark[PART_KEY])}; expected {shown(part)}"
                )
            raise ValueError(
                f"{path} is damaged or of another export: it has {found.bytes} bytes and SHA-256"
                f" {found.sha256[:12]}, expected {expected.bytes} and {expected.sha256[:12]} of"
                " metadata.json; export the model again"
            )


def _read_mark(path: Path) -> Mapping[str, str]:
    """Return what a graph file says of itself; empty if it cannot be read.

    No engine reads it: a file whose checksum is wrong may be anything, and torch would run code in
    it.
    """
    try:
        return _torch_mark(path) if path.suffix == ".pt2" else _marks_in(path)
    except Exception:
        # A damaged file fails in any way.
        return {}


def _marks_in(path: Path) -> Mapping[str, str]:
    """Find the mark among the bytes of an ONNX file, or of an XML file of OpenVINO."""
    if path.stat().st_size > _MAX_MARKED_BYTES:
        return {}
    content = path.read_bytes()
    found = {each[1]: each[2] for each in _XML_MARK.finditer(content)}
    for each in _ONNX_MARK.finditer(content):
        # A length, and as many bytes.
        found[each[1]] = content[each.end() : each.end() + each[2][0]]
    return {key.decode(): value.decode() for key, value in found.items()}


def _torch_mark(path: Path) -> Mapping[str, str]:
    """Read the mark of a .pt2 archive."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (i for i in archive.infolist() if i.filename.endswith(f"extra/{MARK_FILE}"))
        if entry.file_size > _MAX_MARK_BYTES:
            raise ValueError(f"{path}: {MARK_FILE} has {entry.file_size} bytes")
        mark = json.loads(archive.read(entry))
    return {key: str(value) for key, value in mark.items()}


def check_inputs(
    name: str,
    graph: Graph,
    dimensions: Mapping[str, Dimension],
    inputs: Mapping[str, np.ndarray],
) -> dict[str, int]:
    """Check the inputs of a graph, and return the value of each dimension.

    Raises:
        ValueError: see `Graphs.run`.
    """
    names = [each.name for each in graph.inputs]
    if set(names) != set(inputs):
        raise ValueError(
            f"graph {name}: expected the inputs {', '.join(names)}, got {shown_names(inputs)}"
        )
    found: dict[str, tuple[int, str]] = {}
    for each in graph.inputs:
        array = inputs[each.name]
        what = f"graph {name}: {each.name}"
        if not isinstance(array, np.ndarray) or array.dtype != each.dtype:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{what}: expected an array of {each.dtype}, got {kind}")
        shape = f"({', '.join(map(str, each.shape))})"
        if array.ndim != len(each.shape):
            raise ValueError(f"{what}: expected the shape {shape}, got {array.shape}")
        for size, expected in zip(array.shape, each.shape, strict=True):
            if isinstance(expected, int):
                if size != expected:
                    raise ValueError(f"{what}: expected the shape {shape}, got {array.shape}")
                continue
            dimension, divisor = terms(expected)
            value = size * divisor
            first, where = found.setdefault(dimension, (value, each.name))
            if value != first:
                raise ValueError(
                    f"{what} has the {dimension} {value}, but {where} has {first}; shapes are"
                    f" {shape} and {array.shape}"
                )
            _check_value(what, dimension, value, dimensions[dimension], array.shape)
    return {dimension: value for dimension, (value, _) in found.items()}


def _check_value(
    what: str, name: str, value: int, allowed: Dimension, shape: tuple[int, ...]
) -> None:
    is_inside = allowed.least <= value and (allowed.most is None or value <= allowed.most)
    if is_inside and value % allowed.step == 0:
        return
    most = "or more" if allowed.most is None else f"to {allowed.most}"
    multiple = f", a multiple of {allowed.step}" if allowed.step > 1 else ""
    raise ValueError(
        f"{what}: {name} {value} in shape {shape}; expected {allowed.least} {most}{multiple}"
    )


def _import(engine: Engine) -> Any:
    try:
        return importlib.import_module(engine)
    except ModuleNotFoundError as error:
        if error.name != engine or engine not in _EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"{engine} is not installed; run `{how_to_install(engine, _EXTRAS[engine])}`",
            name=engine,
        ) from None


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0], 300)


class _Runner(ABC):
    """A graph that an engine has loaded."""

    @abstractmethod
    def __init__(self, module: Any, path: Path, threads: int | None) -> None: ...

    @abstractmethod
    def run(self, names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run on the arrays of all inputs, and return all outputs in order."""


class _OnnxRuntime(_Runner):
    def __init__(self, module: Any, path: Path, threads: int | None) -> None:
        options = module.SessionOptions()
        # Errors are raised; warnings are about initializers that no user can change.
        options.log_severity_level = 4
        # Swin adds -100 to scores across the border of a shifted map, whose weights are subnormal
        # numbers, with which some processors compute many times slower.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = module.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._session.run(None, dict(zip(names, arrays, strict=True)))


class _OpenVino(_Runner):
    def __init__(self, module: Any, path: Path, threads: int | None) -> None:
        core = module.Core()
        model = core.read_model(str(path))
        # By default it computes in a lower precision where the processor is faster with it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(model, "CPU", options)

    def run(self, names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
        found = self._compiled(dict(zip(names, arrays, strict=True)))
        # Arrays of the engine are overwritten by its next run.
        return [np.array(found[index]) for index in range(len(self._compiled.outputs))]


class _TorchExport(_Runner):
    def __init__(self, module: Any, path: Path, threads: int | None) -> None:
        self._torch = module
        with path.open("rb") as file:
            program = module.export.load(file)
        # Guards of small maps are about the order of dimensions in memory, not about values.
        self._run = program.module(check_guards=False)

    def run(self, names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
        with self._torch.inference_mode():
            found = self._run(*map(self._torch.from_numpy, arrays))
        found = (found,) if isinstance(found, self._torch.Tensor) else found
        return [each.numpy() for each in found]


_RUNNERS: dict[Engine, type[_Runner]] = {
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
    "torch": _TorchExport,
}
