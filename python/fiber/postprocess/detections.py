"""What was found in a picture, as a user reads, draws and saves it."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fiber.postprocess.files import save_picture
from fiber.postprocess.find import FoundBoxes
from fiber.visualize import draw_boxes

if TYPE_CHECKING:
    from PIL.Image import Image

#: Shorter side that a small picture is enlarged to before it is drawn on, in pixels.
MIN_DRAWN_SIDE = 384
#: Longer side that a picture is enlarged to at most, in pixels; a row of pixels stays one.
MAX_DRAWN_SIDE = 4096


@dataclass(frozen=True)
class Detections:
    """What was found in one picture.

    A score is sqrt(p * c): p is the mean probability of the tokens that name the label, c the
    centerness of the place that the box comes from. It orders the boxes of one label in one text;
    it is not calibrated, and cannot be compared between texts, labels or models: docs/grounding.md.

    Raises:
        ValueError: if the parts differ in length.
    """

    #: (n, 4) float32, half-open pixels of the picture, best first or phrase by phrase.
    boxes_xyxy: np.ndarray
    #: (n,) float32 in [0, 1]; no probabilities, see above.
    scores: np.ndarray
    #: (n,) what each box shows.
    labels: list[str]
    #: (n,) int64, which of the phrases or classes that were asked for.
    indices: np.ndarray
    #: (height, width) in pixels.
    image_size: tuple[int, int]
    #: The picture itself, a path or a uint8 array (H, W, 3), for `save`.
    picture: str | os.PathLike[str] | bytes | np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes_xyxy.shape != (count, 4) or len(self.scores) != count:
            raise ValueError(
                f"Detections: {count} labels, boxes_xyxy {self.boxes_xyxy.shape} and"
                f" {len(self.scores)} scores; expected as many of each"
            )

    @classmethod
    def from_found(
        cls,
        found: FoundBoxes,
        labels: Sequence[str],
        image_size: tuple[int, int],
        picture: str | os.PathLike[str] | bytes | np.ndarray | None = None,
    ) -> Detections:
        """Name what `detect_boxes` or `ground_phrases` found by the labels asked for."""
        indices = found.label_indices.cpu().numpy()
        return cls(
            boxes_xyxy=found.boxes_xyxy.float().cpu().numpy(),
            scores=found.scores.float().cpu().numpy(),
            labels=[labels[int(index)] for index in indices],
            indices=indices,
            image_size=(int(image_size[0]), int(image_size[1])),
            picture=picture,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_size
        lines = [f"Detections({len(self)} in {width} x {height} pixels)"]
        for box, score, label in zip(self.boxes_xyxy, self.scores, self.labels, strict=True):
            corners = ", ".join(f"{number:.1f}" for number in box)
            lines.append(f"  {score:.3f}  [{corners}]  {label}")
        return "\n".join(lines)

    def to_dict(self, *, image: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Give the JSON object that the command line prints.

        Args:
            image: name of the picture; default its path, if it came as one.
            model: name of the model.
        """
        if image is None and isinstance(self.picture, (str, os.PathLike)):
            image = os.fspath(self.picture)
        height, width = self.image_size
        return {
            "image": image,
            "width": width,
            "height": height,
            "model": model,
            "detections": [
                {
                    "box_xyxy": [round(float(number), 2) for number in box],
                    "score": round(float(score), 4),
                    "label": label,
                    "index": int(index),
                }
                for box, score, label, index in zip(
                    self.boxes_xyxy, self.scores, self.labels, self.indices, strict=True
                )
            ],
        }

    def draw(self) -> Image:
        """Draw boxes and labels on the picture; a small picture is enlarged first.

        The best box lies on top. No label covers another one, unless there are too many for the
        picture.

        Raises:
            ValueError: if the picture is not known or has another size.
        """
        image = self._open()
        scale = math.ceil(MIN_DRAWN_SIDE / min(image.size))
        scale = max(1, min(scale, MAX_DRAWN_SIDE // max(image.size)))
        image = image.resize((image.width * scale, image.height * scale))
        draw_boxes(
            image,
            [[float(number) * scale for number in box] for box in self.boxes_xyxy],
            [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)],
            [int(index) for index in self.indices],
        )
        return image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture with its boxes; the name's ending says in which format.

        Raises:
            ValueError: if the picture is not known or has another size, or the ending is unknown.
            OSError: if it cannot be written; what bore the name is as it was.
        """
        save_picture(self.draw, path)

    def _open(self) -> Image:
        from PIL import Image as PilImage
        from PIL import ImageOps

        if self.picture is None:
            raise ValueError("Detections: the picture is not known; pass picture= to draw on it")
        if isinstance(self.picture, np.ndarray):
            image = PilImage.fromarray(self.picture)
        else:
            source = io.BytesIO(self.picture) if isinstance(self.picture, bytes) else self.picture
            image = ImageOps.exif_transpose(PilImage.open(source))
        if (image.height, image.width) != self.image_size:
            raise ValueError(
                f"Detections: the picture is {image.width} x {image.height} pixels, the boxes"
                f" belong to {self.image_size[1]} x {self.image_size[0]}"
            )
        return image.convert("RGB")
