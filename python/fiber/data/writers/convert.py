"""Write the boxes of a dataset, with its images, as a dataset of another tool."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fiber import _core
from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.data.datasets.resolve import holds_out
from fiber.data.formats.folders.image_folder import METADATA
from fiber.data.formats.folders.rows import CLASSES, size_of
from fiber.data.image_file import extension_of
from fiber.data.record import AnyPath, Record, StoredImage
from fiber.data.skip_report import classes_of, counted, skip_lines
from fiber.data.tools.discover import Part, parts_of
from fiber.data.writers import encode
from fiber.messages import shown, shown_names

_SOURCE = "detection"
#: EXIF tag of the orientation of an image, and its value for images that are upright.
_ORIENTATION, _UPRIGHT = 274, 1


class ImageBoxes(NamedTuple):
    """An image and its boxes."""

    image: StoredImage
    #: File name, which is unique in the split; so is its stem.
    name: str
    #: (height, width) in pixels, as stored.
    size: tuple[int, int]
    #: (x0, y0, x1, y1), half-open, in pixels.
    boxes: tuple[tuple[float, float, float, float], ...]
    #: Index of the class of each box.
    labels: tuple[int, ...]


@dataclass
class Converted:
    """What was written."""

    #: Class names, by index.
    classes: tuple[str, ...]
    #: Numbers of images by split.
    images: dict[str, int] = field(default_factory=dict)
    #: Number of boxes.
    boxes: int = 0
    #: What a user should know, as sentences.
    notes: list[str] = field(default_factory=list)


def convert(
    source: AnyPath,
    output: AnyPath,
    to: str,
    *,
    splits: Sequence[str] = (),
    on_error: str = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write the boxes of a folder or file, with copies of its images, in another format.

    Boxes are those that training reads: crowds and empty boxes are left out, and counted. A part
    that would be held out as "val" stays in "train".

    Args:
        source: folder or file that `open_source` reads.
        output: folder, which must be new or empty; written whole or not at all.
        to: a key of `FORMATS`.
        splits: splits to convert; default: all.
        on_error: "raise", or "skip" to drop and count invalid boxes.
        progress: called with the numbers of images written and in all.

    Raises:
        FileNotFoundError: if the source or an image does not exist.
        FileExistsError: if `output` exists and is not an empty folder.
        ValueError: if `to` is unknown, or the source has no boxes or is invalid.
        OSError: if a file cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"unknown format {shown(to)}; expected one of {', '.join(FORMATS)}")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output} already exists and is not an empty folder; expected a new or empty folder"
        )
    images, classes, notes = _read(source, splits, on_error)
    done = Converted(classes, {split: len(own) for split, own in images.items()}, notes=notes)
    done.boxes = sum(len(each.boxes) for own in images.values() for each in own)
    with explain_write_errors(output, DISK_FULL), new_directory(output) as folder:
        writer = _Writer(folder, output.name, classes, sum(done.images.values()), progress)
        FORMATS[to](writer, images)
    if writer.turned and to in _TURNING:
        done.notes.append(
            f"{counted(writer.turned, 'images')}, such as {shown(writer.first_turned)}, have an"
            f" EXIF orientation; boxes refer to the pixels as stored, but {_TURNING[to]} turns such"
            " images first: save them upright (PIL.ImageOps.exif_transpose) and label them again"
        )
    return done


def _read(
    source: AnyPath, splits: Sequence[str], on_error: str
) -> tuple[dict[str, list[ImageBoxes]], tuple[str, ...], list[str]]:
    """Read the images of each split, the classes of all, and notes."""
    there = parts_of(source, splits)
    parts = [part for part in there if part.source == _SOURCE]
    if not parts:
        have = shown_names(dict.fromkeys(part.source for part in there))
        raise ValueError(f"{source} has no boxes of classes to convert, but {have}")
    if {"train", "val"} <= {part.split for part in parts} and holds_out(_SOURCE, parts[0].data):
        parts = [part for part in parts if part.split not in ("train", "val")]
        parts.insert(0, Part(_SOURCE, "train+val", Path(there[0].data)))
    opened = {part.split.partition("+")[0]: part.open(on_error=on_error) for part in parts}
    classes = tuple(dict.fromkeys(name for own in opened.values() for name in classes_of(own)))
    index = {name: number for number, name in enumerate(classes)}
    images, notes = dict[str, list[ImageBoxes]](), dict[str, None]()
    for split, records in opened.items():
        names = _Names()
        own = [names.named(records[number], index) for number in range(len(records))]
        images[split] = sorted(own, key=lambda each: each.name)
        lines = skip_lines(records)
        notes |= dict.fromkeys(line for line in lines if "held out as" not in line)
    return images, classes, list(notes)


class _Names:
    """Unique names of image files."""

    def __init__(self) -> None:
        self._stems = set[str]()

    def named(self, record: Record, index: dict[str, int]) -> ImageBoxes:
        """Return the image and the boxes of a record; `index` has the classes of all splits."""
        (image,) = record.images
        size = record.image_size or _size_of(image)
        path = Path(record.image_id if isinstance(image, bytes) else image)
        suffix = path.suffix
        if isinstance(image, bytes):
            suffix = f".{extension_of(image)}"
        stem, number = path.stem or "image", 2
        while stem in self._stems:
            stem, number = f"{path.stem}-{number}", number + 1
        self._stems.add(stem)
        labels = tuple(index[record.labels[label]] for label in record.box_labels)
        return ImageBoxes(image, f"{stem}{suffix}", size, record.boxes_xyxy, labels)


def _size_of(image: StoredImage) -> tuple[int, int]:
    if not isinstance(image, bytes):
        return size_of(Path(image))
    height, width, _ = _core.probe_image(image)
    return height, width


class _Writer:
    """Writer of files into the new folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        classes: Sequence[str],
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        #: Name that the folder will have, and the classes, by index.
        self.name, self.classes = name, classes
        self._folder, self._total, self._progress = folder, total, progress
        self._done = self.turned = 0
        self.first_turned = ""

    def image(self, each: ImageBoxes, place: str) -> None:
        """Copy an image into a subfolder."""
        path = self._folder / place / each.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(each.image, bytes):
            path.write_bytes(each.image)
        else:
            shutil.copyfile(each.image, path)
        if _is_turned(each.image):
            self.turned += 1
            self.first_turned = self.first_turned or each.name
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.text(name, json.dumps(value, ensure_ascii=False) + "\n")

    def names(self, each: ImageBoxes) -> list[str]:
        """Return the class name of each box."""
        return [self.classes[label] for label in each.labels]


def _is_turned(image: StoredImage) -> bool:
    """Return whether an image has an EXIF orientation other than upright."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.getexif().get(_ORIENTATION, _UPRIGHT) not in (0, _UPRIGHT)
    except (OSError, ValueError, SyntaxError):
        # Pillow does not read it, so no other tool does by Pillow.
        return False


def _write_coco(writer: _Writer, images: dict[str, list[ImageBoxes]]) -> None:
    for split, own in images.items():
        entries, boxes = [], list[dict[str, Any]]()
        for number, each in enumerate(own, 1):
            writer.image(each, split)
            entries.append(encode.coco_image(number, each.name, each.size))
            for box, label in zip(each.boxes, each.labels, strict=True):
                boxes.append(encode.coco_box(len(boxes) + 1, number, box, label))
        name = f"annotations/instances_{split}.json"
        writer.json(name, encode.coco_file(entries, boxes, writer.classes))


def _write_yolo(writer: _Writer, images: dict[str, list[ImageBoxes]]) -> None:
    for split, own in images.items():
        for each in own:
            writer.image(each, f"images/{split}")
            lines = encode.yolo_lines(each.boxes, each.labels, each.size)
            writer.text(f"labels/{split}/{Path(each.name).stem}.txt", lines)
    folders = {split: f"images/{split}" for split in images}
    writer.text("data.yaml", encode.yolo_description(writer.classes, folders))


def _write_voc(writer: _Writer, images: dict[str, list[ImageBoxes]]) -> None:
    stems = set[str]()
    for split, own in images.items():
        listed = []
        for each in own:
            # Lists of VOC have a name and other words a line.
            first = "_".join(Path(each.name).stem.split())
            stem, number = first, 2
            while stem in stems:
                stem, number = f"{first}-{number}", number + 1
            stems.add(stem)
            listed.append(stem)
            named = each._replace(name=stem + Path(each.name).suffix)
            writer.image(named, "JPEGImages")
            text = encode.voc_xml(
                named.name, "JPEGImages", each.boxes, writer.names(each), each.size
            )
            writer.text(f"Annotations/{stem}.xml", text)
        writer.text(f"ImageSets/Main/{split}.txt", "".join(f"{stem}\n" for stem in listed))
    writer.json(CLASSES, list(writer.classes))


def _write_image_folder(writer: _Writer, images: dict[str, list[ImageBoxes]]) -> None:
    for split, own in images.items():
        lines = []
        for each in own:
            writer.image(each, split)
            row = encode.metadata_row(each.name, each.boxes, writer.names(each), each.size)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        writer.text(f"{split}/{METADATA[0]}", "".join(lines))
    writer.json(CLASSES, list(writer.classes))


def _write_label_studio(writer: _Writer, images: dict[str, list[ImageBoxes]]) -> None:
    for split, own in images.items():
        tasks = []
        for each in own:
            place = f"images/{split}"
            writer.image(each, place)
            # As Label Studio serves files of a folder in its root of local files.
            url = f"/data/local-files/?d={quote(f'{writer.name}/{place}/{each.name}')}"
            task = encode.label_studio_task(url, each.boxes, writer.names(each), each.size)
            tasks.append(task)
        writer.json(f"{split}.json", tasks)
    writer.text("labels.xml", encode.label_studio_config(writer.classes))
    writer.json(CLASSES, list(writer.classes))


#: Formats that are written, by name, and their writers.
FORMATS: dict[str, Callable[[_Writer, dict[str, list[ImageBoxes]]], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
    "imagefolder": _write_image_folder,
    "labelstudio": _write_label_studio,
}
#: Formats whose tools turn images by their EXIF orientation.
_TURNING = {"yolo": "Ultralytics", "imagefolder": "datasets", "labelstudio": "Label Studio"}
