"""metadata.json of a folder of exported graphs: what inference needs besides the graphs.

Shapes are lists of integers and of names of dimensions, as in ["batch", 3, "height", "width"];
"height/8" is an eighth of a height. What a dimension may be is in `dimensions`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fiber.atomic_io import read_json
from fiber.config_io import READ, from_dict
from fiber.messages import shown, shown_names

#: Formats of graphs.
Format = Literal["onnx", "torch", "openvino"]
#: Types in which the products with weights are computed.
Precision = Literal["float32", "int8"]
FILE = "metadata.json"
#: Version of the layout of the folder; a reader takes its own only.
VERSION = 1
#: Value of the field `kind`.
KIND = "fiber graphs"
#: Keys under which a graph file names the model and the part that it is of.
MODEL_KEY, PART_KEY = "fiber_model", "fiber_part"

_MAX_BYTES = 64 << 20
_CHUNK = 1 << 20
#: A name of a file in the folder itself.
_FILE_NAME = re.compile(r"[\w-][\w.-]{0,120}")
_TERM = re.compile(r"([a-z_]+)(?:/([1-9]\d{0,5}))?")


def _read_values(value: Any, where: str) -> dict[str, Any] | None:
    """Check a field with values of any type."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {shown(value)}")
    return value


#: Metadata of such a field.
_VALUES = {READ: _read_values}


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a graph."""

    name: str
    #: Name of a numpy dtype: float32, int64 or bool.
    dtype: str
    #: Sizes, and names of dimensions.
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """A part of the network, in a file."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Dimension:
    """Values that a dimension may have: multiples of `step` from `least` to `most`."""

    least: int = 1
    #: None for no limit.
    most: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if self.least < 0 or self.step < 1 or (self.most is not None and self.most < self.least):
            raise ValueError(
                f"dimensions: expected multiples of a positive number in a range, got multiples of"
                f" {self.step} from {self.least} to {self.most}"
            )


@dataclass(frozen=True)
class StoredFile:
    """Size and checksum of a file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Content of metadata.json."""

    kind: str = KIND
    version: int = VERSION
    #: Format of the graphs.
    to: Format
    #: Type of the products with weights; everything else is in float32.
    precision: Precision = "float32"
    #: Versions of fiber and of the packages that wrote the graphs.
    made_with: dict[str, str] = field(default_factory=dict)
    #: Checksum of config and weights of the exported model.
    fingerprint: str
    #: Config of the model, as in config.json of a model folder.
    model: dict[str, Any] = field(metadata=_VALUES)
    heads: tuple[str, ...]
    files: dict[str, StoredFile]
    graphs: dict[str, Graph]
    dimensions: dict[str, Dimension]
    #: Constructor of `fiber.data.ImageTransform` and its arguments, under "name" and "arguments".
    image_transform: dict[str, Any] = field(metadata=_VALUES)
    #: Maximum number of tokens of a text, and ids of special tokens.
    text: dict[str, Any] = field(metadata=_VALUES)
    #: File of the tokenizer in the folder; None if the model has none.
    tokenizer: str | None = None
    #: Answers in the order of the outputs of the graph "head_vqa".
    answers: tuple[str, ...] = ()
    #: Default classes of detection.
    classes: tuple[str, ...] = ()
    #: Labels in the order of the outputs of the graph "head_snli".
    entailment: tuple[str, ...] = ()
    #: Strides, anchors and box coding of a detector.
    detector: dict[str, Any] | None = field(default=None, metadata=_VALUES)
    #: Ids and limits of writing captions.
    caption: dict[str, Any] | None = field(default=None, metadata=_VALUES)
    #: How pairs are ranked for retrieval.
    ranking: dict[str, Any] | None = field(default=None, metadata=_VALUES)

    def __post_init__(self) -> None:
        for name in (*self.files, *filter(None, [self.tokenizer])):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"files: expected the name of a file, got {shown(name)}")
        for name, graph in self.graphs.items():
            if graph.file not in self.files:
                raise ValueError(f"graphs.{name}: files has no {shown(graph.file)}")
            for each in (*graph.inputs, *graph.outputs):
                for size in each.shape:
                    self._check_size(size, f"graphs.{name}.{each.name}")

    def _check_size(self, size: int | str, where: str) -> None:
        if isinstance(size, int):
            return
        found = _TERM.fullmatch(size)
        if found is None or found[1] not in self.dimensions:
            raise ValueError(
                f"{where}: expected an integer or one of {shown_names(self.dimensions)}, got"
                f" {shown(size)}"
            )


def terms(size: str) -> tuple[str, int]:
    """Split "height/8" into a name and a divisor, which is 1 by default."""
    found = _TERM.fullmatch(size)
    assert found is not None
    return found[1], int(found[2] or 1)


def to_json(metadata: Metadata) -> dict[str, Any]:
    """Convert to a JSON-serializable dict."""
    return dataclasses.asdict(metadata)


def read_metadata(folder: Path) -> Metadata:
    """Read and check metadata.json of a folder.

    Raises:
        FileNotFoundError: if the folder has no metadata.json.
        ValueError: if the file is not of exported graphs, of another version, or invalid.
    """
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} contains no exported graphs: {FILE} does not exist; pass a folder that"
            " `fiber export` wrote"
        )
    values = read_json(path, _MAX_BYTES)
    if not isinstance(values, Mapping) or values.get("kind") != KIND:
        raise ValueError(f"{path}: expected a JSON object whose field 'kind' is {KIND!r}")
    if values.get("version") != VERSION:
        raise ValueError(
            f"{path}: the graphs have version {shown(values.get('version'))}, expected {VERSION};"
            " export the model again with this version of fiber"
        )
    try:
        return from_dict(Metadata, dict(values))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_graphs(folder: Path) -> bool:
    """Return True if a folder has exported graphs, by its metadata.json."""
    path = folder / FILE
    try:
        values = read_json(path, _MAX_BYTES) if path.is_file() else None
    except (ValueError, OSError):
        return False
    return isinstance(values, Mapping) and values.get("kind") == KIND


def describe_file(path: Path) -> StoredFile:
    """Return the size and the checksum of a file."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return StoredFile(path.stat().st_size, checksum.hexdigest())
