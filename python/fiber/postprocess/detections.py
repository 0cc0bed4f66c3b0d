"""Detections in an image, as returned by `Model.detect` and `Model.ground`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fiber.config_io import nearest
from fiber.data.masks.codec import encode_rle
from fiber.messages import printable
from fiber.ops.arrays import functions_of
from fiber.postprocess.files import save_image
from fiber.postprocess.find import FoundBoxes
from fiber.postprocess.notebook import html_of, png_of
from fiber.postprocess.pictures import Picture, enlarged, open_picture
from fiber.postprocess.supervision import to_supervision
from fiber.visualize import draw_boxes, draw_masks

if TYPE_CHECKING:
    from PIL.Image import Image

#: Maximum number of characters of a label in `repr`.
_MAX_LABEL = 240


@dataclass(frozen=True)
class Detections:
    """Boxes, scores and labels in one image.

    A score is sqrt(p * c), where p is the mean probability of the label's tokens and c the
    centerness at the box's location. Scores rank the boxes of one label in one prompt; they are
    neither calibrated nor comparable across prompts, labels or models. The presence of a phrase or
    class is the probability that the image shows it, if the model was calibrated. See
    docs/grounding.md.

    Raises:
        ValueError: if the fields differ in length.
    """

    #: (n, 4) float32, half-open pixel coordinates, best first or grouped by phrase.
    boxes_xyxy: np.ndarray
    #: (n,) float32 in [0, 1]; not probabilities.
    scores: np.ndarray
    #: n class names or phrases.
    labels: list[str]
    #: (n,) int64, index into the phrases or classes passed to the call.
    indices: np.ndarray
    #: (height, width) in pixels.
    image_size: tuple[int, int]
    #: Path, encoded bytes or uint8 array (H, W, 3) of the image, for `draw` and `save`.
    picture: Picture | None = field(default=None, repr=False)
    #: (n, H, W) bool mask of each box, which may be empty; None if masks were not asked for.
    masks: np.ndarray | None = field(default=None, repr=False)
    #: (K,) float32 in [0, 1], presence of each of the K phrases or classes passed to the call, also
    #: of those without a box: `presence[indices]` is that of the boxes. None without a calibration.
    presence: np.ndarray | None = field(default=None, repr=False)
    #: The K phrases or classes, if `presence` is given.
    asked: list[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes_xyxy.shape != (count, 4) or len(self.scores) != count:
            raise ValueError(
                f"Detections: expected the same number of labels, boxes and scores, got {count}"
                f" labels, boxes_xyxy {self.boxes_xyxy.shape} and {len(self.scores)} scores"
            )
        if self.masks is not None and self.masks.shape != (count, *self.image_size):
            raise ValueError(
                f"Detections: masks have shape {self.masks.shape}, expected"
                f" {(count, *self.image_size)}"
            )
        if self.presence is not None and len(self.presence) != len(self.asked or ()):
            raise ValueError(
                f"Detections: presence has {len(self.presence)} values for"
                f" {len(self.asked or ())} phrases or classes (asked)"
            )

    @classmethod
    def from_found(
        cls,
        found: FoundBoxes,
        labels: Sequence[str],
        image_size: tuple[int, int],
        picture: Picture | None = None,
        masks: np.ndarray | None = None,
        presence: np.ndarray | None = None,
    ) -> Detections:
        """Attach labels to the boxes of `detect_boxes` or `ground_phrases`, and masks to boxes."""
        f = functions_of(found.scores)
        indices = f.as_numpy(found.label_indices)
        return cls(
            boxes_xyxy=f.as_numpy(f.float32(found.boxes_xyxy)),
            scores=f.as_numpy(f.float32(found.scores)),
            labels=[labels[int(index)] for index in indices],
            indices=indices,
            image_size=(int(image_size[0]), int(image_size[1])),
            picture=picture,
            masks=masks,
            presence=presence,
            asked=None if presence is None else list(labels),
        )

    if not TYPE_CHECKING:
        # Hidden from type checkers, which report unknown attributes themselves.
        def __getattr__(self, name: str) -> Any:
            # Those that Python and its tools look up have no hint.
            hint = _ALIASES.get(name) or nearest(name, _PUBLIC)
            hint = "" if name.startswith("_") else f"; {hint}"
            raise AttributeError(f"'Detections' object has no attribute {name!r}{hint}", name=name)

        # Without `__getitem__`, with which numpy would take detections for a sequence.
        def __iter__(self) -> Any:
            raise TypeError(
                "'Detections' object is not iterable; use its .labels, .scores and .boxes_xyxy, as"
                " in zip(found.labels, found.scores, found.boxes_xyxy)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_size
        lines = [f"Detections({len(self)} in {width} x {height} pixels)"]
        for box, score, label, index in zip(
            self.boxes_xyxy, self.scores, self.labels, self.indices, strict=True
        ):
            corners = ", ".join(f"{number:.1f}" for number in box)
            # A name of a class may be from a file.
            line = f"  {score:.3f}  [{corners}]  {printable(label, _MAX_LABEL)}"
            if self.presence is not None:
                line += f"  (presence {self.presence[index]:.2f})"
            lines.append(line)
        return "\n".join(lines)

    def to_dict(self, *, image: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Return the dict that the CLI prints as JSON; `image` defaults to the image path.

        Masks are COCO's compressed RLE, which pycocotools reads. With a calibration, boxes have the
        presence of their label, and "absent" lists the phrases or classes without a box.
        """
        if image is None and isinstance(self.picture, (str, os.PathLike)):
            image = os.fspath(self.picture)
        height, width = self.image_size
        segmentations: list[dict[str, Any]] = [{}] * len(self)
        if self.masks is not None:
            segmentations = [
                {
                    "area": int(mask.sum()),
                    "segmentation": {"size": [height, width], "counts": encode_rle(mask).counts},
                }
                for mask in self.masks
            ]
        presence = None if self.presence is None else [round(float(p), 4) for p in self.presence]
        absent: dict[str, Any] = {}
        if presence is not None and self.asked is not None:
            found = {int(index) for index in self.indices}
            absent["absent"] = [
                {"label": label, "index": index, "presence": presence[index]}
                for index, label in enumerate(self.asked)
                if index not in found
            ]
        return {
            "image": image,
            "width": width,
            "height": height,
            "model": model,
            **absent,
            "detections": [
                {
                    "box_xyxy": [round(float(number), 2) for number in box],
                    "score": round(float(score), 4),
                    "label": label,
                    "index": int(index),
                    **({} if presence is None else {"presence": presence[int(index)]}),
                    **segmentation,
                }
                for box, score, label, index, segmentation in zip(
                    self.boxes_xyxy,
                    self.scores,
                    self.labels,
                    self.indices,
                    segmentations,
                    strict=True,
                )
            ],
        }

    def to_supervision(self) -> Any:
        """Return the boxes as `supervision.Detections`: labels in `data["class_name"]`, and masks.

        Raises:
            ModuleNotFoundError: if supervision is not installed.
        """
        return to_supervision(self)

    def _repr_png_(self) -> bytes | None:
        return png_of(self.draw)

    def _repr_html_(self) -> str:
        height, width = self.image_size
        rows = [
            (label, f"{score:.3f}", ", ".join(f"{edge:.1f}" for edge in box))
            for label, score, box in zip(self.labels, self.scores, self.boxes_xyxy, strict=True)
        ]
        title = f"{len(self)} detections in {width} x {height} pixels"
        return html_of(title, self._repr_png_(), ("label", "score", "box (x0, y0, x1, y1)"), rows)

    def draw(self) -> Image:
        """Draw boxes, labels and masks with the best on top, enlarging small images first.

        Raises:
            ValueError: if the image is missing or its size is wrong.
        """
        image, scale = enlarged(open_picture("Detections", self.picture, self.image_size))
        if self.masks is not None:
            masks = self.masks.repeat(scale, 1).repeat(scale, 2)
            colors = [int(index) for index in self.indices]
            image = draw_masks(image, masks, [""] * len(self), colors)
        draw_boxes(
            image,
            [[float(number) * scale for number in box] for box in self.boxes_xyxy],
            [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)],
            [int(index) for index in self.indices],
        )
        return image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image with its boxes; the suffix of `path` selects the format.

        Raises:
            ValueError: if the image is missing, its size is wrong, or the suffix is unknown.
            OSError: if the file cannot be written; an existing file is unchanged.
        """
        save_image(self.draw, path)


#: Hints for names that other libraries have.
_ALIASES = {
    **dict.fromkeys(("bbox", "bboxes", "boxes", "box", "xyxy"), "did you mean boxes_xyxy?"),
    **dict.fromkeys(("plot", "show", "visualize", "render"), "did you mean draw or save?"),
    **dict.fromkeys(("confidence", "confidences", "conf", "score"), "did you mean scores?"),
    **dict.fromkeys(("names", "classes", "phrases", "label"), "did you mean labels?"),
    **dict.fromkeys(("class_id", "class_ids", "cls"), "did you mean indices?"),
    **dict.fromkeys(("json", "to_json", "tojson", "tolist"), "did you mean to_dict?"),
}
#: Fields and methods, for errors.
_PUBLIC = [
    *(each.name for each in fields(Detections)),
    *(name for name, value in vars(Detections).items() if name[0] != "_" and callable(value)),
]
