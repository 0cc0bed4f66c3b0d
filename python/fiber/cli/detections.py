"""Detections in the formats of other tools: `fiber detect --format`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.atomic_io import check_target, made_folder, write_text
from fiber.data.writers import encode

if TYPE_CHECKING:
    from fiber.postprocess.detections import Detections

#: Format of a file for each image; those of the others are one JSON value for all images.
_LABELS = "yolo"


class DetectionWriter:
    """Boxes of all images of a command in one format; `close` writes what is left.

    Scores are written as `score`; label files of YOLO have none, since they are labels.

    Args:
        kind: "coco", "labelstudio" or "yolo".
        output: file to write, or the folder of YOLO; None prints to stdout.
        names: class names, by index.
        model: name of the model.

    Raises:
        ValueError: if YOLO has no folder.
        FileExistsError: if the folder is not empty.
        OSError: if the file or folder cannot be written.
    """

    def __init__(self, kind: str, output: Path | None, names: Sequence[str], model: str) -> None:
        self._kind, self._output, self._names, self._model = kind, output, names, model
        self._images: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        self._stems = set[str]()
        if output is None:
            if kind == _LABELS:
                raise ValueError("--format yolo writes files; pass a new folder as --output DIR")
        elif kind == _LABELS:
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise FileExistsError(
                    f"--output {output} already exists and is not an empty folder; expected a new"
                    " or empty folder"
                )
        else:
            check_target(output)

    def add(self, path: Path, found: Detections) -> None:
        """Add the boxes in an image."""
        boxes, labels = found.boxes_xyxy.tolist(), found.indices.tolist()
        if self._kind == _LABELS:
            self._write_labels(path, encode.yolo_lines(boxes, labels, found.image_size))
        elif self._kind == "coco":
            number = len(self._images) + 1
            self._images.append(encode.coco_image(number, str(path), found.image_size))
            for box, label, score in zip(boxes, labels, found.scores.tolist(), strict=True):
                entry = encode.coco_box(len(self._boxes) + 1, number, box, label)
                self._boxes.append({**entry, "score": score})
        else:
            scores = found.scores.tolist()
            task = encode.label_studio_task(
                str(path), boxes, found.labels, found.image_size, scores, self._model
            )
            self._images.append(task)

    def close(self) -> None:
        """Write the file, or print it; of label files, the names of the classes."""
        if self._kind == _LABELS:
            assert self._output is not None
            with made_folder(self._output):
                write_text(self._output / "data.yaml", encode.yolo_description(self._names, {}))
            return
        value: Any = self._images
        if self._kind == "coco":
            value = encode.coco_file(self._images, self._boxes, self._names)
        text = json.dumps(value, ensure_ascii=False)
        if self._output is None:
            print(text)
            return
        with made_folder(self._output.parent):
            write_text(self._output, text + "\n")

    def _write_labels(self, path: Path, lines: str) -> None:
        """Write a label file, named as its image; a second image of a name gets a number."""
        assert self._output is not None
        stem, number = path.stem, 2
        while stem in self._stems:
            stem, number = f"{path.stem}-{number}", number + 1
        self._stems.add(stem)
        folder = self._output / "labels"
        with made_folder(folder):
            write_text(folder / f"{stem}.txt", lines)
