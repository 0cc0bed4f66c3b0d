"""Trace a part with `torch.export`, and refuse graphs that hold for the traced sizes only."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fiber import kernels
from fiber.export.parts import Subgraph
from fiber.runtime.metadata import Dimension, terms

#: (sizes and names of dimensions) of each tensor, by name.
Shapes = Mapping[str, tuple[int | str, ...]]


class ExportError(ValueError):
    """A part of a model cannot be exported."""


def infer_shapes(
    samples: Sequence[Mapping[str, Tensor]],
    sizes: Sequence[Mapping[str, int]],
    dimensions: Mapping[str, Any],
) -> dict[str, tuple[int | str, ...]]:
    """Name the dimensions of tensors by comparing samples of several sizes.

    A size that is the same in all samples is fixed. Others are those of a dimension, or parts of
    it, or else the number of "locations", which depends on both height and width.
    """
    found = {}
    for name, first in samples[0].items():
        shape: list[int | str] = []
        for axis, size in enumerate(first.shape):
            own = [sample[name].shape[axis] for sample in samples]
            if len(set(own)) == 1:
                shape.append(size)
                continue
            shape.append(_term(own, sizes, dimensions) or "locations")
        found[name] = tuple(shape)
    return found


def _term(
    own: list[int], sizes: Sequence[Mapping[str, int]], dimensions: Mapping[str, Any]
) -> str | None:
    """Return the dimension of which sizes are, as in "height/8"; None if there is none."""
    for name in (each for each in dimensions if each in sizes[0]):
        values = [each[name] for each in sizes]
        factor = values[0] // own[0]
        if factor and [value / factor for value in values] == own:
            return name if factor == 1 else f"{name}/{factor}"
    return None


def trace(
    part: Subgraph,
    tensors: Mapping[str, Tensor],
    shapes: Shapes,
    dimensions: Mapping[str, Dimension],
) -> ExportedProgram:
    """Trace a part on sample tensors, with the dimensions of its inputs dynamic.

    Raises:
        ExportError: if the traced function holds for some values of a dimension only.
    """
    variables = {
        name: Dim(name, min=math.ceil(each.least / each.step), max=_most(each))
        for name, each in dimensions.items()
        if name != "locations"
    }
    # Read as one tuple, since the part takes any number of tensors.
    dynamic = tuple(
        {
            axis: _dim(size, variables, dimensions)
            for axis, size in enumerate(shapes[name])
            if isinstance(size, str)
        }
        for name in part.inputs
    )
    given = tuple(tensors[name].clone() for name in part.inputs)
    with torch.no_grad(), kernels.use_backend("export"), quiet():
        try:
            program = torch.export.export(part, given, dynamic_shapes=(dynamic,), strict=False)
        except Exception as error:
            # Those of the tracer have classes of their own, and pages of hints.
            reason = " ".join(str(error).split())[:600]
            raise ExportError(f"graph {part.name}: torch.export refuses it: {reason}") from error
    _check_dimensions(part, program, shapes, dimensions)
    return program


def _most(dimension: Dimension) -> int | None:
    return None if dimension.most is None else dimension.most // dimension.step


def _dim(size: str, variables: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> Any:
    name, divisor = terms(size)
    factor = dimensions[name].step // divisor
    return variables[name] if factor == 1 else factor * variables[name]


def _check_dimensions(
    part: Subgraph, program: ExportedProgram, shapes: Shapes, dimensions: Mapping[str, Dimension]
) -> None:
    """Compare the dimensions of the traced inputs with those that were asked for.

    The tracer specializes some sizes without an error, most of all those that are multiples of
    another variable.
    """
    names = {
        spec.arg.name: name
        for spec, name in zip(
            (s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"),
            part.inputs,
            strict=True,
        )
    }
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        tensor = names[node.name]
        for size, expected in zip(node.meta["val"].shape, shapes[tensor], strict=True):
            if isinstance(expected, int):
                continue
            name, divisor = terms(expected)
            dimension = dimensions[name]
            least, most = _range(size, program)
            # Sides of images may have larger minima: where a map has one row, memory is ordered
            # otherwise, but values are the same, which `fiber.export.export` checks.
            least_wanted = None if dimension.step > 1 else dimension.least // divisor
            most_wanted = math.inf if dimension.most is None else dimension.most // divisor
            if most < most_wanted or (least_wanted is not None and least > least_wanted):
                found = f"{least}" if least == most else f"{least} to {most}"
                raise ExportError(
                    f"graph {part.name}: {tensor} was traced for {expected} = {found} only"
                )


def _range(size: Any, program: ExportedProgram) -> tuple[float, float]:
    """Return the least and the largest value of a traced size."""
    if isinstance(size, int):
        return size, size
    least, most = 1.0, math.inf
    for symbol in size.node.expr.free_symbols:
        values = program.range_constraints[symbol]
        if getattr(values.upper, "is_Integer", False):
            most = min(most, int(values.upper))
        if getattr(values.lower, "is_Integer", False):
            least = max(least, int(values.lower))
    return least, most


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log messages of the tracer and of exporters, which no user can act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
