"""COCO-format boxes with classes in the folder layouts of common tools.

    annotations/instances_train2017.json   train2017/1.jpg        COCO
    train/_annotations.coco.json           train/1.jpg            Roboflow
    train/annotations_without_background.json                     ODinW
    annotations.json                       images/1.jpg           one file for all images

"valid" and "mini_val" are aliases of "val". If there is no file for "val", a fifth of the training
images (at most 1,000), chosen by a hash of their names, is held out as "val". "train" contains the
remaining images, and "train+val" all of them. A note reports this. Roboflow's copies of an image
("dog_jpg.rf.0123.jpg") stay in the same split.

`instances_{split}.json` with `images`, as written by `fiber data`, has priority over all other
layouts and is never split.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data import sources
from fiber.data.datasets.registry import FILES, HELD_OUT, SPLIT_FILES, WHOLE_FILES
from fiber.data.formats.annotation_file import (
    AnnotationFile,
    RecordList,
    find_images_folder,
    images_folder,
    read_json,
)
from fiber.data.formats.json_values import id_key
from fiber.data.formats.line_reader import is_list
from fiber.data.record import AnyPath
from fiber.messages import shown

KIND = "COCO instances"
_SPLIT_ALIASES = {
    "val": ("val", "mini_val", "valid", "validation"),
    "train": ("train", "training"),
}
_HELD_OUT_FRACTION, _MAX_HELD_OUT = 0.2, 1000


class _Found(NamedTuple):
    """The annotation file of a split."""

    file: Path
    #: True if the file contains both training and held-out images.
    is_divided: bool = False


def coco_detection(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
    masks: bool = False,
) -> RecordList:
    """Read boxes with classes from a folder in any known layout, or from a file.

    Records are those of `sources.detection`. If `annotations` is given, the whole file is read, and
    its images are looked up in nearby folders. If `on_error` is "skip", boxes that exceed their
    images are clipped, invalid boxes are dropped, and both are counted. `shots` is the number of
    images per class (see `_choose_shots`); 0 means all images.

    Raises:
        FileNotFoundError: if the split has no file, or its images are not found.
        ValueError: if an entry is invalid (the error names the file, entry and key), or there are
            too few images to hold out a validation split.
    """
    found = _Found(Path(annotations)) if annotations is not None else find(Path(folder), split)
    if found is None:
        raise FileNotFoundError(f"{folder} has no detection annotations for split {shown(split)}")
    file, notes = read_json(found.file, KIND), []
    file.skips_errors = on_error == "skip"
    if _drop_placeholder(file):
        notes.append(
            f"the first category of {found.file} is a supercategory without boxes and is ignored"
        )
    root = _images_root(file, Path(folder), split)
    if found.is_divided:
        notes.append(_hold_out(file, split))
    if shots:
        notes.append(_choose_shots(file, shots))
    out = sources.detection_records(file, root, objects=objects, masks=masks)
    out.notes += notes
    return out


def instances(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    on_error: str = "raise",
    objects: bool = False,
) -> RecordList:
    """Read boxes and masks of COCO instances; see `coco_detection`."""
    return coco_detection(
        folder, split, annotations=annotations, on_error=on_error, objects=objects, masks=True
    )


def find(folder: Path, split: str) -> _Found | None:
    """Return the annotation file of a split in a data folder, or None if there is none.

    Raises:
        ValueError: if several files match one layout; the error lists them.
    """
    own = folder / FILES["detection"].format(split=split)
    if own.is_file():
        return _Found(own)
    file = _file_of_split(folder, split)
    if file is not None:
        return _Found(file, is_divided=split == "train" and _lacks_held_out(folder))
    if split not in ("train", HELD_OUT):
        return None
    training = _file_of_split(folder, "train") if split == HELD_OUT else None
    whole = [folder / name for name in WHOLE_FILES if may_be_coco(folder / name)]
    files = [training] if training else whole
    return _Found(files[0], is_divided=True) if files and _lacks_held_out(folder) else None


def _lacks_held_out(folder: Path) -> bool:
    own = (folder / FILES["detection"].format(split=HELD_OUT)).is_file()
    return not own and _file_of_split(folder, HELD_OUT) is None


def _file_of_split(folder: Path, split: str) -> Path | None:
    for name in _SPLIT_ALIASES.get(split, (split,)):
        for patterns in SPLIT_FILES.values():
            for pattern in patterns:
                matches = sorted(folder.glob(pattern.format(split=name)))
                files = [file for file in matches if may_be_coco(file)]
                if len(files) > 1:
                    named = ", ".join(str(file) for file in files)
                    raise ValueError(
                        f"boxes for split {shown(split)} are in several files; pass one of them:"
                        f" {named}"
                    )
                if files:
                    return files[0]
    return None


def may_be_coco(file: Path) -> bool:
    """Return whether a path is a file that is not a JSON list, as of Label Studio."""
    return file.is_file() and not is_list(file)


def _drop_placeholder(file: AnnotationFile) -> bool:
    """Drop Roboflow's category 0, the supercategory of the rest. Return True if it existed."""
    categories = list(file.walk("categories"))
    first = next((entry for entry in categories if entry.get("id") == 0), {})
    others = [entry for entry in categories if entry is not first]
    if (
        not others
        or first.get("supercategory") != "none"
        or any(entry.get("supercategory") != first.get("name") for entry in others)
        or any(entry.get("category_id") == 0 for entry in file.walk("annotations"))
    ):
        return False
    file.keep("categories", lambda entry: entry is not first)
    return True


def _images_root(file: AnnotationFile, folder: Path, split: str) -> str:
    """Return the image folder; raise FileNotFoundError if no candidate contains any image."""
    names = [entry["file_name"] for entry in file.images()]
    parent = file.path.parent
    # "instances_train2017" -> "train2017"
    last = re.sub(r"^(instances|lvis_v1)_", "", file.path.stem)
    parts = dict.fromkeys([last, *_SPLIT_ALIASES.get(split, (split,))])
    # For a file named by the user, the data folder is the file's folder.
    bases = dict.fromkeys([folder, parent.parent])
    roots = [parent, parent / "images", parent / "data"]
    roots += [
        base / name
        for base in bases
        for part in parts
        for name in (part, f"images/{part}", f"{part}/images")
    ]
    roots += [base / name for base in bases for name in ("images", "data", "")]
    found = find_images_folder(names, roots)
    if found is not None:
        return str(found)
    if not names:
        return str(folder)
    if file.path == folder / FILES["detection"].format(split=split):
        return images_folder(folder, None)
    folders = ", ".join(str(root) for root in dict.fromkeys(roots) if root.is_dir())
    raise FileNotFoundError(
        f"{file.path}: no folder found for the {len(names)} images, such as {shown(names[0])};"
        f" tried {folders}"
    )


def _hold_out(file: AnnotationFile, split: str) -> str:
    """Keep the training or the held-out images of a file without splits, and return a note."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for entry in file.images():
        # The names of Roboflow's copies of an image differ only after ".rf.".
        groups[entry["file_name"].partition(".rf.")[0]].append(id_key(entry["id"]))
    total = len(file.data["images"])
    count = min(max(1, round(total * _HELD_OUT_FRACTION)), _MAX_HELD_OUT)
    held_out: set[Any] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(held_out) < count:
            held_out.update(groups[name])
    if len(held_out) == total:
        raise ValueError(
            f"{file.path} has too few distinct images to hold out split {HELD_OUT!r}:"
            f" {len(groups)} among {total} images"
        )
    ids = {id_key(entry["id"]) for entry in file.data["images"]}
    _drop(file, held_out if split == "train" else ids - held_out)
    return (
        f"{file.path.name} is the only annotation file, so {len(held_out)} of its {total} images,"
        f" chosen by a hash of their names, are held out as split {HELD_OUT!r}; the other"
        f" {total - len(held_out)} are split 'train'"
    )


def _drop(file: AnnotationFile, ids: set[Any]) -> None:
    """Drop images, given by the `id_key` of their ids, and their boxes."""
    file.keep("images", lambda entry: id_key(entry["id"]) not in ids)
    file.keep("annotations", lambda entry: file.id_key(entry, "image_id") not in ids)


def _choose_shots(file: AnnotationFile, shots: int) -> str:
    """Keep a few images of each class, and return a note.

    In id order, an image is kept if one of its classes has fewer than `shots` images so far. It
    then counts for all of its classes, so some classes may get more than `shots` images. Images
    without boxes are never kept.

    Source: the published code for few-shot fine-tuning on ODinW.
    """
    classes: dict[Any, set[Any]] = defaultdict(set)
    for entry in file.walk("annotations"):
        category = file.id_key(entry, "category_id")
        classes[file.id_key(entry, "image_id")].add(category)
    total, kept = len(file.data["images"]), set()
    counts: Counter[Any] = Counter()
    for entry in sorted(file.images(), key=lambda entry: (str(type(entry["id"])), entry["id"])):
        shown_classes = classes[id_key(entry["id"])]
        if any(counts[category] < shots for category in shown_classes):
            kept.add(id_key(entry["id"]))
            counts.update(shown_classes)
    _drop(file, {id_key(entry["id"]) for entry in file.data["images"]} - kept)
    return f"kept {len(kept)} of {total} images ({shots} per class, as in the published code)"
