"""Segments of an image, as returned by `Model.segment`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fiber.config_io import nearest
from fiber.data.masks.codec import encode_rle
from fiber.messages import printable
from fiber.postprocess.files import save_image
from fiber.postprocess.notebook import html_of, png_of
from fiber.postprocess.pictures import Picture, enlarged, open_picture
from fiber.postprocess.supervision import to_supervision
from fiber.visualize import draw_masks

if TYPE_CHECKING:
    from PIL.Image import Image

#: Kinds of results. Segments of the first two do not overlap.
Kind = Literal["panoptic", "semantic", "instance", "phrases"]
#: Maximum number of characters of a label in `repr`.
_MAX_LABEL = 240


class LabeledSegment(NamedTuple):
    """Segment of an image."""

    #: Value of its pixels in `Segmentation.ids`, from 1.
    id: int
    #: Class name or phrase, and its index in those that were passed to the call.
    label: str
    label_index: int
    #: False for stuff, whose parts are one segment.
    is_thing: bool
    #: See `Segmentation`.
    score: float


@dataclass(frozen=True)
class Segmentation:
    """Segments of one image, with labels and scores.

    A score depends on the kind. "panoptic": probability of the class. "instance": that probability
    times the mean probability of the mask's pixels. "semantic": mean, over the pixels, of the sum
    that they were labeled by, which is no probability. "phrases": probability of the mask among all
    masks for its phrase, which also a phrase without an object has.

    Raises:
        ValueError: if the fields differ in size, or `ids` has an id without a segment.
    """

    #: How the image was segmented.
    kind: Kind
    #: (H, W) int32, id of the segment of each pixel; 0 is none. Where instances or phrases overlap,
    #: the first has the pixel.
    ids: np.ndarray
    #: n segments: of instances best first, of phrases in the order of the call.
    segments: tuple[LabeledSegment, ...]
    #: (n, H, W) bool masks if segments overlap; None if `ids` has all of them.
    overlapping: np.ndarray | None = field(default=None, repr=False)
    #: Path, encoded bytes or uint8 array (H, W, 3) of the image, for `draw` and `save`.
    picture: Picture | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise ValueError(f"Segmentation: ids has shape {self.ids.shape}, expected (H, W)")
        shape = (len(self.segments), *self.ids.shape)
        if self.overlapping is not None and self.overlapping.shape != shape:
            raise ValueError(
                f"Segmentation: masks have shape {self.overlapping.shape}, expected {shape}"
            )
        known = {0, *(each.id for each in self.segments)}
        if unknown := sorted(set(np.unique(self.ids).tolist()) - known):
            raise ValueError(f"Segmentation: ids has {unknown[:4]}, which are of no segment")

    if not TYPE_CHECKING:
        # Hidden from type checkers, which report unknown attributes themselves.
        def __getattr__(self, name: str) -> Any:
            # Those that Python and its tools look up have no hint.
            hint = "" if name.startswith("_") else f"; {nearest(name, _PUBLIC)}"
            raise AttributeError(
                f"'Segmentation' object has no attribute {name!r}{hint}", name=name
            )

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool mask of each segment."""
        if self.overlapping is not None:
            return self.overlapping
        ids = np.array([each.id for each in self.segments], self.ids.dtype)
        return self.ids == ids[:, None, None]

    @property
    def labels(self) -> list[str]:
        """Class name or phrase of each segment."""
        return [each.label for each in self.segments]

    @property
    def scores(self) -> np.ndarray:
        """(n,) float32 scores."""
        return np.array([each.score for each in self.segments], np.float32)

    @property
    def indices(self) -> np.ndarray:
        """(n,) int64, index of each label in the classes or phrases passed to the call."""
        return np.array([each.label_index for each in self.segments], np.int64)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """(n, 4) float32 half-open boxes of the masks in pixels; zeros for an empty mask."""
        return _boxes(self.masks)

    def __repr__(self) -> str:
        height, width = self.image_size
        lines = [f"Segmentation({self.kind}, {len(self)} in {width} x {height} pixels)"]
        for each, area in zip(self.segments, _areas(self), strict=True):
            # A name of a class may be from a file.
            label = printable(each.label, _MAX_LABEL)
            lines.append(f"  {each.id:3}  {each.score:.3f}  {area:8} pixels  {label}")
        return "\n".join(lines)

    def to_dict(self, *, image: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Return the dict that the CLI prints as JSON; `image` defaults to the image path.

        Masks are COCO's compressed RLE, which pycocotools reads.
        """
        if image is None and isinstance(self.picture, (str, os.PathLike)):
            image = os.fspath(self.picture)
        height, width = self.image_size
        masks = self.masks
        return {
            "image": image,
            "width": width,
            "height": height,
            "model": model,
            "kind": self.kind,
            "segments": [
                {
                    "id": each.id,
                    "label": each.label,
                    "index": each.label_index,
                    "is_thing": each.is_thing,
                    "score": round(each.score, 4),
                    "area": int(mask.sum()),
                    "box_xyxy": [float(edge) for edge in box],
                    "segmentation": {"size": [height, width], "counts": encode_rle(mask).counts},
                }
                for each, mask, box in zip(self.segments, masks, _boxes(masks), strict=True)
            ],
        }

    def to_supervision(self) -> Any:
        """Return the segments as `supervision.Detections`, with class names in `data`.

        Raises:
            ModuleNotFoundError: if supervision is not installed.
        """
        return to_supervision(self)

    def _repr_png_(self) -> bytes | None:
        return png_of(self.draw)

    def _repr_html_(self) -> str:
        height, width = self.image_size
        rows = [
            (each.label, f"{each.score:.3f}", f"{area:,}")
            for each, area in zip(self.segments, _areas(self), strict=True)
        ]
        title = f"{len(self)} {self.kind} segments in {width} x {height} pixels"
        return html_of(title, self._repr_png_(), ("label", "score", "pixels"), rows)

    def draw(self) -> Image:
        """Draw masks and labels on the image, enlarging small images first.

        Raises:
            ValueError: if the image is missing or its size is wrong.
        """
        image, scale = enlarged(open_picture("Segmentation", self.picture, self.image_size))
        return draw_masks(
            image,
            self.masks.repeat(scale, 1).repeat(scale, 2),
            [f"{each.label} {each.score:.2f}" for each in self.segments],
            # Instances and phrases of one label are told apart by their colors.
            [each.id - 1 if each.is_thing else each.label_index for each in self.segments],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image with its masks; the suffix of `path` selects the format.

        Raises:
            ValueError: if the image is missing, its size is wrong, or the suffix is unknown.
            OSError: if the file cannot be written; an existing file is unchanged.
        """
        save_image(self.draw, path)


def paint(masks: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Make the (H, W) int32 map of (n, H, W) masks, of which the first has a pixel of several."""
    painted = np.zeros(masks.shape[1:], np.int32)
    for mask, number in reversed(list(zip(masks, ids, strict=True))):
        painted[mask] = number
    return painted


def _areas(found: Segmentation) -> list[int]:
    if found.overlapping is not None:
        return found.overlapping.sum((1, 2)).tolist()
    ids, counts = np.unique(found.ids, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return [areas.get(each.id, 0) for each in found.segments]


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


#: Fields and methods, for errors.
_PUBLIC = [
    *(each.name for each in fields(Segmentation)),
    *(name for name in vars(Segmentation) if name[0] != "_"),
]
