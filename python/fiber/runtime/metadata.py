"""metadata.json of a folder of exported graphs: what inference needs besides the graphs.

Shapes are lists of integers and of names of dimensions, as in ["batch", 3, "height", "width"];
"height/8" is an eighth of a height. What a dimension may be is in `dimensions`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fiber.atomic_io import read_json
from fiber.checkpoints.vocabulary.files import MAX_STRINGS, check_strings
from fiber.config_io import READ, check_ranges, from_dict
from fiber.data.texts.cleaning import CLEANERS
from fiber.messages import shown, shown_names
from fiber.metrics.presence import Presence

#: Formats of graphs.
Format = Literal["onnx", "torch", "openvino"]
#: Types in which the products with weights are computed.
Precision = Literal["float32", "int8"]
#: Names of the numpy dtypes of tensors.
DType = Literal["float32", "int64", "bool"]
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
_FILE_NAME = re.compile(r"[\w-][\w.-]{0,120}", re.ASCII)
#: A name of a graph, of a tensor, of a dimension or of a head.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
_TERM = re.compile(r"([a-z][a-z0-9_]{0,60})(?:/([1-9][0-9]{0,5}))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Maximum number of files and of graphs, and of tensors of a graph and sizes of a tensor.
_MAX_FILES, _MAX_TENSORS, _MAX_SIZES = 1000, 64, 16
#: Ranges of a size, of an id or a number of tokens, and of pixels.
_SIZE, _ID, _PIXELS = (1, 2**40), (0, 2**31), (1, 2**16)


def _read_values(value: Any, where: str) -> dict[str, Any]:
    """Check a field with values of any type, which its own reader checks."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {shown(value)}")
    return value


#: Metadata of such a field.
_VALUES = {READ: _read_values}


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a graph."""

    name: str
    dtype: DType
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
                f" {shown(self.step)} from {shown(self.least)} to {shown(self.most)}"
            )
        most = self.least if self.most is None else self.most
        if max(self.step, most) > _SIZE[1]:
            raise ValueError(
                f"dimensions: expected at most {_SIZE[1]}, got {shown(max(self.step, most))}"
            )


@dataclass(frozen=True)
class StoredFile:
    """Size and checksum of a file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Limits and cleaning of texts."""

    max_tokens: int
    vocab_size: int
    #: How texts are cleaned before they are tokenized: a name of
    #: `fiber.data.texts.cleaning.CLEANERS`, or "".
    cleaning: str = ""

    def __post_init__(self) -> None:
        if self.cleaning and self.cleaning not in CLEANERS:
            raise ValueError(
                f"text.cleaning: expected '' or one of {', '.join(map(repr, CLEANERS))}, got"
                f" {shown(self.cleaning)}"
            )
        check_ranges(self, "text.", dict.fromkeys(("max_tokens", "vocab_size"), _ID))


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """Anchors and coding of the boxes of a detector."""

    #: Pixels for each row and column of a level of the pyramid.
    strides: tuple[int, ...]
    #: Side of an anchor, as a multiple of the stride.
    anchor_scale: float
    #: Number that divides the height and width of padded images.
    size_divisor: int
    #: `fiber.ops.boxes.DELTA_WEIGHTS` and `MAX_LOG_SCALE` of the version that wrote the graphs.
    delta_weights: tuple[float, ...]
    max_log_scale: float
    #: Pixels for each row and column of mask features; None without masks.
    mask_stride: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.strides) <= _MAX_SIZES:
            raise ValueError(
                f"detector.strides: expected 1 to {_MAX_SIZES} strides, got {shown(self.strides)}"
            )
        ranges = {"strides": _PIXELS, "anchor_scale": (1e-6, 1e6), "size_divisor": _PIXELS}
        check_ranges(self, "detector.", ranges)
        if self.mask_stride is not None:
            check_ranges(self, "detector.", {"mask_stride": _PIXELS})


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Texts that classes of masks are encoded by; see `fiber.models.masks.class_texts`."""

    templates: tuple[str, ...]
    background: str
    removed: tuple[str, ...] = ()
    #: Checksum of the weights of texts, which saved vectors of classes have.
    text_checksum: str = ""

    def __post_init__(self) -> None:
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ValueError(
                "masks.templates: expected texts with {} in the place of the name, got"
                f" {shown(self.templates)}"
            )
        if not self.background.strip() or not all(self.removed):
            raise ValueError(
                "masks: expected a background and removed parts that are not empty, got"
                f" {shown(self.background)} and {shown(self.removed)}"
            )
        if max(len(self.templates), len(self.removed)) > _MAX_FILES:
            raise ValueError(f"masks: expected at most {_MAX_FILES} templates and removed parts")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Ids and limits of writing captions."""

    start_id: int
    end_id: int
    pad_id: int
    #: Id of <mask>, which is never written.
    mask_id: int
    #: Maximum number of tokens, including the first and the last one.
    longest: int
    beams: int

    def __post_init__(self) -> None:
        ids = dict.fromkeys(("start_id", "end_id", "pad_id", "mask_id"), _ID)
        check_ranges(self, "caption.", {**ids, "longest": (2, 2**20), "beams": (1, 2**20)})


@dataclass(frozen=True, kw_only=True)
class RankingSettings:
    """How pairs are ranked for retrieval."""

    heads: tuple[str, ...]
    scores_are_log_odds: bool = True


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
    #: The same for tasks that have another one: "caption", "image_text", "instances".
    task_transforms: dict[str, Any] = field(default_factory=dict, metadata=_VALUES)
    text: TextSettings
    #: File of the tokenizer in the folder; None if the model has none.
    tokenizer: str | None = None
    #: Answers in the order of the outputs of the graph "head_vqa".
    answers: tuple[str, ...] = ()
    #: Default classes of detection.
    classes: tuple[str, ...] = ()
    #: Labels in the order of the outputs of the graph "head_snli".
    entailment: tuple[str, ...] = ()
    detector: DetectorSettings | None = None
    masks: MaskSettings | None = None
    caption: CaptionSettings | None = None
    ranking: RankingSettings | None = None
    #: Calibrations of boxes.
    presence: Presence | None = None

    def __post_init__(self) -> None:
        _match("fingerprint", [self.fingerprint], _SHA256, "64 hexadecimal digits")
        _match("heads", self.heads, _NAME, "names of heads", most=_MAX_TENSORS)
        _match("files", self.files, _FILE_NAME, "the name of a file", most=_MAX_FILES)
        _match("graphs", self.graphs, _NAME, "names of graphs", most=_MAX_FILES)
        _match("dimensions", self.dimensions, _NAME, "names", most=_MAX_TENSORS)
        for name in ("answers", "classes", "entailment"):
            strings = check_strings(getattr(self, name), name)
            if len(strings) > MAX_STRINGS:
                raise ValueError(
                    f"{name}: expected at most {MAX_STRINGS:,}, got {len(strings):,} strings"
                )
        for name, file in self.files.items():
            _match(f"files.{name}.sha256", [file.sha256], _SHA256, "64 hexadecimal digits")
            if not 0 <= file.bytes < 2**63:
                raise ValueError(
                    f"files.{name}.bytes: expected a number of bytes, got {shown(file.bytes)}"
                )
        # Its checksum is that of the export, which has checked it for the model.
        if self.tokenizer is not None and self.tokenizer not in self.files:
            raise ValueError(f"tokenizer: files has no {shown(self.tokenizer)}")
        for name, graph in self.graphs.items():
            if graph.file not in self.files:
                raise ValueError(f"graphs.{name}: files has no {shown(graph.file)}")
            for side in ("inputs", "outputs"):
                self._check_tensors(getattr(graph, side), f"graphs.{name}.{side}")

    def _check_tensors(self, tensors: tuple[TensorSpec, ...], where: str) -> None:
        names = [each.name for each in tensors]
        _match(where, names, _NAME, "names of tensors", most=_MAX_TENSORS)
        if len(set(names)) < len(names):
            raise ValueError(f"{where}: expected names that differ, got {shown_names(names)}")
        for each in tensors:
            if len(each.shape) > _MAX_SIZES:
                raise ValueError(
                    f"{where}.{each.name}.shape: expected at most {_MAX_SIZES} sizes, got"
                    f" {shown(each.shape)}"
                )
            for size in each.shape:
                self._check_size(size, f"{where}.{each.name}.shape")

    def _check_size(self, size: int | str, where: str) -> None:
        if isinstance(size, int):
            is_size = _SIZE[0] <= size <= _SIZE[1]
        else:
            found = _TERM.fullmatch(size)
            is_size = found is not None and found[1] in self.dimensions
        if not is_size:
            raise ValueError(
                f"{where}: expected an integer or one of {shown_names(self.dimensions)}, got"
                f" {shown(size)}"
            )


def _match(
    where: str,
    names: Collection[str],
    pattern: re.Pattern[str],
    expected: str,
    *,
    most: int = 1,
) -> None:
    """Check the form and the number of names of a field."""
    if len(names) > most:
        raise ValueError(f"{where}: expected at most {most} entries, got {len(names)}")
    for name in names:
        if not pattern.fullmatch(name):
            raise ValueError(f"{where}: expected {expected}, got {shown(name)}")


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
