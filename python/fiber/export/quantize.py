"""Quantize the products of an ONNX graph to 8-bit integers."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

from fiber.export.trace import quiet

#: Operators whose weights are stored and multiplied as 8-bit integers. Convolutions, tables and
#: norms keep float32.
_OPERATORS = ("MatMul", "Gemm")


def quantize(path: Path) -> int:
    """Quantize the products with weights of an ONNX file, whose weights are in the file.

    Weights have a scale for each output channel. Activations are quantized when the graph runs,
    with the range of each tensor (`quantize_dynamic` of onnxruntime), so no data are needed.
    Weights use 7 of the 8 bits: without that, sums overflow on processors that lack VNNI, silently.

    Args:
        path: file to overwrite.

    Returns:
        Number of products that are quantized.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    graph = onnx.load(path).graph
    strange = {each.name for each in graph.initializer if len(each.dims) != 2}
    # A product with a vector, or with a matrix for each head, can be quantized, but does not run.
    excluded = [n.name for n in graph.node if n.op_type == "MatMul" and n.input[1] in strange]
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantized = Path(folder) / path.name
        try:
            # It writes advice about preprocessing that does not apply to the root logger.
            root.setLevel(logging.ERROR)
            with quiet(), contextlib.redirect_stdout(io.StringIO()):
                quantization.quantize_dynamic(
                    str(path),
                    str(quantized),
                    op_types_to_quantize=list(_OPERATORS),
                    weight_type=quantization.QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,
                    nodes_to_exclude=excluded,
                    extra_options={"MatMulConstBOnly": True},
                )
        finally:
            root.setLevel(level)
        model = onnx.load(quantized)
        quantized.replace(path)
    return sum(node.op_type == "MatMulInteger" for node in model.graph.node)
