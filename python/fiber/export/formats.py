"""Write traced parts as ONNX, OpenVINO or `torch.export` files."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fiber.export.parts import Subgraph
from fiber.export.trace import ExportError, Shapes, quiet
from fiber.runtime.graphs import MARK_FILE
from fiber.runtime.metadata import Format

#: Version of the operators of ONNX, all of which are in its standard domains.
OPSET = 20
STANDARD_DOMAINS = ("", "ai.onnx")
#: File with the weights of all ONNX graphs.
WEIGHTS = "weights.bin"
#: Packages of each format, and the extra that installs them.
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
#: Version of torch with which the tests export models.
TESTED_TORCH = "2.15"
#: Suffix of the graph files of each format.
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

#: Smaller tensors are stored in the graph itself.
_MIN_SHARED_BYTES = 1024
#: Multiples at which weights start: pages of memory for large ones, which may be mapped.
_PAGE, _ALIGNMENT, _MIN_MAPPED_BYTES = 4096, 64, 1 << 16
#: Larger constants are not computed at export.
_MAX_FOLDED = 1 << 28


def need_packages(to: Format) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ModuleNotFoundError: if one is not; the message names the extra.
        ValueError: if torch is too old.
    """
    check_torch()
    for name in PACKAGES[to]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ModuleNotFoundError(
                f"{name} is not installed; an export to {to} needs `pip install 'fiber-vl[{to}]'`",
                name=name,
            ) from None


def check_torch() -> None:
    """Raise ValueError if torch is too old to export models."""
    if "check_guards" not in inspect.signature(ExportedProgram.module).parameters:
        raise ValueError(
            f"torch {torch.__version__} is too old to export models; expected {TESTED_TORCH}, the"
            " tested version, or a newer one"
        )


class SharedWeights:
    """File of the weights of all graphs, each of which is stored once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / WEIGHTS
        self._file = self.path.open("wb")
        self._offsets: dict[bytes, int] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def move(self, model: Any) -> None:
        """Move the large initializers of an ONNX graph to the file."""
        onnx_ir: Any = importlib.import_module("onnx_ir")
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _MIN_SHARED_BYTES:
                continue
            content = np.ascontiguousarray(tensor.numpy()).tobytes()
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS,
                self._store(content),
                len(content),
                tensor.dtype,
                shape=tensor.shape,
                name=name,
                base_dir=self.path.parent,
            )
        self._file.flush()

    def move_from(self, path: Path) -> None:
        """Move the large initializers of an ONNX file to the file of all graphs."""
        onnx_ir: Any = importlib.import_module("onnx_ir")
        model = onnx_ir.load(path)
        # What is not moved is in memory, too, when the file is overwritten.
        onnx_ir.external_data.load_to_model(model)
        self.move(model)
        onnx_ir.save(model, path)

    def _store(self, content: bytes) -> int:
        """Return the place of some bytes in the file, to which new ones are added."""
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            multiple = _PAGE if len(content) >= _MIN_MAPPED_BYTES else _ALIGNMENT
            self._file.write(bytes(-self._file.tell() % multiple))
            self._offsets[key] = self._file.tell()
            self._file.write(content)
        return self._offsets[key]


def drop_unused(program: ExportedProgram) -> None:
    """Remove the weights that a traced part does not read."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    stored = (program.state_dict, program.constants)
    for spec in list(specs):
        node = nodes[spec.arg.name]
        if spec.kind.name == "USER_INPUT" or node.users:
            continue
        program.graph.erase_node(node)
        specs.remove(spec)
        if not any(each.target == spec.target for each in specs):
            for values in stored:
                values.pop(str(spec.target), None)
    program.graph_module.recompile()


def write_torch(program: ExportedProgram, path: Path, mark: Mapping[str, str]) -> None:
    """Write a .pt2 file of `torch.export`."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={MARK_FILE: json.dumps(dict(mark))})
    path.write_bytes(content.getvalue())


def write_onnx(
    part: Subgraph,
    program: ExportedProgram,
    path: Path,
    shapes: Shapes,
    mark: Mapping[str, str],
    weights: SharedWeights | None,
) -> None:
    """Write an ONNX file; its weights are in the file itself if `weights` is None.

    Raises:
        ExportError: if an operator has no counterpart in the standard domains.
    """
    # Not installed with the tools that check types.
    onnx_ir: Any = importlib.import_module("onnx_ir")
    passes: Any = importlib.import_module("onnx_ir.passes.common")
    optimizer: Any = importlib.import_module("onnxscript.optimizer")
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            model: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, verbose=False, optimize=False
            ).model  # pyright: ignore[reportOptionalMemberAccess]
            optimizer.fold_constants(
                model, input_size_limit=_MAX_FOLDED, output_size_limit=_MAX_FOLDED
            )
            passes.CommonSubexpressionEliminationPass()(model)
            optimizer.remove_unused_nodes(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:600]
        raise ExportError(f"graph {part.name}: the ONNX exporter refuses it: {reason}") from error
    domains = {node.domain for node in model.graph} | {key[0] for key in model.functions}
    if strange := sorted(domains - set(STANDARD_DOMAINS)):
        raise ExportError(f"graph {part.name}: operators in the domains {', '.join(strange)}")
    for value, name in zip(model.graph.inputs, part.inputs, strict=True):
        value.name = name
        value.shape = onnx_ir.Shape(shapes[name])
    for value, name in zip(model.graph.outputs, part.outputs, strict=True):
        value.name = name
        value.shape = onnx_ir.Shape(shapes[name])
    model.metadata_props.clear()
    model.metadata_props.update(mark)
    _forget_sources(model)
    if weights is not None:
        weights.move(model)
    onnx_ir.save(model, path)


def _forget_sources(model: Any) -> None:
    """Remove what the exporter notes of the source code, such as paths of this machine."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None


def write_openvino(onnx_file: Path, path: Path, mark: Mapping[str, str]) -> None:
    """Convert an ONNX file to OpenVINO's .xml and .bin, in float32."""
    openvino: Any = importlib.import_module("openvino")
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        model = openvino.convert_model(str(onnx_file))
        for key, value in mark.items():
            model.set_rt_info(value, [key])
        openvino.save_model(model, str(path), compress_to_fp16=False)
