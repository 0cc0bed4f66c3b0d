"""Pictures with boxes of classes, in folders laid out as the tools that people use write them.

    annotations/instances_train2017.json   train2017/1.jpg        COCO
    train/_annotations.coco.json           train/1.jpg            Roboflow
    train/annotations_without_background.json                     ODinW
    annotations.json                       images/1.jpg           one file for all pictures

"valid" and "mini_val" are names for "val". A folder of these forms that has no file for "val" has
one all the same: a fifth of the training pictures (1,000 at most), chosen by a hash of their names,
is "val", and "train" is the rest; "train+val" are all of them. The choice is told. Copies of a
picture that Roboflow made ("dog_jpg.rf.0123.jpg") stay on one side.

What `fiber data` writes, `instances_{split}.json` with `images`, comes before all others and is
never divided.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fiber.data import sources
from fiber.data.formats.annotation_file import (
    FILES,
    RecordList,
    SourceFile,
    folder_with,
    images_folder,
    read_json,
    without_garbage_collection,
)

AnyPath = str | PathLike[str]

KIND = "COCO instances"
#: Files of one split, by who writes them; the first that is there counts. Where the name of a split
#: is not that of the folder, `_NAMES` has the others.
SPLIT_FILES = {
    "COCO, original files": (
        "annotations/instances_{split}.json",
        "annotations/instances_{split}20*.json",
    ),
    "ODinW": (
        "{split}/annotations_without_background.json",
        "{split}_annotations_without_background.json",
    ),
    "Roboflow": ("{split}/_annotations.coco.json",),
    "COCO format": (
        "annotations/{split}.json",
        "{split}/annotations.json",
        "{split}/labels.json",
        "{split}.json",
    ),
    "LVIS": (
        "lvis_v1_{split}.json",
        "annotations/lvis_v1_{split}.json",
        # As the published code names them.
        "lvis_od_{split}.json",
        "lvis_v1_{split}_inserted_image_name.json",
    ),
}
#: Files that hold all pictures of a folder, whatever their split.
WHOLE_FILES = (
    "annotations.json",
    "_annotations.coco.json",
    "annotations/annotations.json",
    "annotations/instances_default.json",
    "annotations/instances.json",
    "instances_default.json",
    "instances.json",
    "labels.json",
    "result.json",
    "coco.json",
)
_NAMES = {"val": ("val", "mini_val", "valid", "validation"), "train": ("train", "training")}
#: The part of the training pictures that is held out where a folder has no file for it.
HELD_OUT = "val"
_HELD_OUT_PART, _MOST_HELD_OUT = 0.2, 1000


class _Found(NamedTuple):
    """Where the records of a split come from."""

    file: Path
    #: Whether the file holds both the training pictures and those that are held out.
    is_divided: bool


@without_garbage_collection
def coco_detection(
    folder: AnyPath,
    split: str,
    *,
    annotations: AnyPath | None = None,
    on_error: str = "raise",
    shots: int = 0,
    objects: bool = False,
) -> RecordList:
    """Read boxes of classes from a folder of any known form, or from one file: `sources.detection`.

    Args:
        folder: a data folder.
        split: such as "train".
        annotations: a file that is read whole in place of the folder; its pictures are looked for
            around it.
        on_error: "raise", or "skip": boxes outside their pictures are cut, what is no box is left
            out, and both are counted.
        shots: pictures of each class, for training on few (`_choose_shots`); 0: all pictures.
        objects: see `sources.detection`.

    Raises:
        FileNotFoundError: if there is no file of this split, or none of its first pictures.
        ValueError: if an entry is not as expected, with file, entry and key; if too few pictures
            are there to hold some out.
    """
    if annotations is None:
        found = find(Path(folder), split)
        if found is None:
            raise FileNotFoundError(f"{folder} holds no boxes of split {split!r}")
    else:
        found = _Found(Path(annotations), is_divided=False)
    file = read_json(found.file, KIND)
    file.skips_errors = on_error == "skip"
    told = []
    if _drop_placeholder(file):
        told.append(
            f"the first category of {found.file} is a heading that no box has; it is no class"
        )
    root = _pictures_root(file, Path(folder), split)
    if found.is_divided:
        told.append(_divide(file, split))
    if shots:
        told.append(_choose_shots(file, shots))
    out = sources.detection_records(file, root, objects=objects)
    out.notes += told
    return out


def find(folder: Path, split: str) -> _Found | None:
    """Find the file of a split in a data folder; None where there is none.

    Raises:
        ValueError: if there are several of one form, with their names.
    """
    own = folder / FILES["detection"].format(split=split)
    if own.is_file():
        return _Found(own, is_divided=False)
    file = _file_of_split(folder, split)
    if file is not None:
        return _Found(file, is_divided=split == "train" and _lacks_held_out(folder))
    if split in ("train", HELD_OUT):
        training = _file_of_split(folder, "train") if split == HELD_OUT else None
        whole = training or next(
            (folder / name for name in WHOLE_FILES if (folder / name).is_file()), None
        )
        if whole is not None and _lacks_held_out(folder):
            return _Found(whole, is_divided=True)
    return None


def _lacks_held_out(folder: Path) -> bool:
    own = (folder / FILES["detection"].format(split=HELD_OUT)).is_file()
    return not own and _file_of_split(folder, HELD_OUT) is None


def _file_of_split(folder: Path, split: str) -> Path | None:
    for name in _NAMES.get(split, (split,)):
        for patterns in SPLIT_FILES.values():
            for pattern in patterns:
                files = sorted(folder.glob(pattern.format(split=name)))
                if len(files) > 1:
                    named = ", ".join(str(file.relative_to(folder)) for file in files)
                    raise ValueError(
                        f"{folder} holds boxes of split {split!r} in several files: {named}; name"
                        " one file instead of the folder"
                    )
                if files:
                    return files[0]
    return None


def _drop_placeholder(file: SourceFile) -> bool:
    """Drop the heading that Roboflow writes as category 0: the group of all others, without a box.

    Returns:
        Whether there was one.
    """
    categories = list(file.walk("categories"))
    first = next((entry for entry in categories if entry.get("id") == 0), None)
    others = [entry for entry in categories if entry is not first]
    if first is None or not others or first.get("supercategory") != "none":
        return False
    if any(entry.get("supercategory") != first.get("name") for entry in others):
        return False
    if any(entry.get("category_id") == 0 for entry in file.walk("annotations")):
        return False
    file.data["categories"] = others
    return True


def _pictures_root(file: SourceFile, folder: Path, split: str) -> str:
    """Find the folder that the file's names of pictures start from.

    Raises:
        FileNotFoundError: if no folder has any of those that were looked for.
    """
    names = [entry["file_name"] for entry in file.pictures()]
    beside = file.path.parent
    # "instances_train2017" -> "train2017"
    last = re.sub(r"^(instances|lvis_v1)_", "", file.path.stem)
    parts = dict.fromkeys([last, *_NAMES.get(split, (split,))])
    roots = [beside, beside / "images", beside / "data"]
    # Of a file that is named alone the folder is that in which it lies.
    bases = dict.fromkeys([folder, beside.parent])
    for base in bases:
        for part in parts:
            roots += [base / part, base / "images" / part, base / part / "images"]
    for base in bases:
        roots += [base / "images", base / "data", base]
    found = folder_with(names, roots)
    if found is not None:
        return str(found)
    if not names or file.path == folder / FILES["detection"].format(split=split):
        return images_folder(folder, None) if names else str(folder)
    looked_in = ", ".join(str(root) for root in dict.fromkeys(roots) if root.is_dir())
    raise FileNotFoundError(
        f"{file.path} names {len(names)} pictures, such as {names[0]!r}; those that were looked for"
        f" are not in {looked_in}"
    )


def _divide(file: SourceFile, split: str) -> str:
    """Keep the pictures of one side of a file without splits, and say what was done.

    Raises:
        ValueError: if the file has too few pictures for two sides.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for entry in file.pictures():
        # Roboflow's copies of one picture differ in what follows ".rf.".
        groups[entry["file_name"].partition(".rf.")[0]].append(entry["id"])
    total = len(file.data["images"])
    wanted = min(max(1, round(total * _HELD_OUT_PART)), _MOST_HELD_OUT)
    held_out: set[Any] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(held_out) < wanted:
            held_out.update(groups[name])
    if len(held_out) == total:
        raise ValueError(
            f"{file.path} has {total} pictures, of which none can be held out to measure by;"
            " expected two or more different ones"
        )
    ids = {entry["id"] for entry in file.data["images"]}
    _drop(file, held_out if split == "train" else ids - held_out)
    return (
        f"{file.path.name} is the only file, so {len(held_out)} of its {total} pictures, chosen by"
        f" their names, are held out as split {HELD_OUT!r}; {total - len(held_out)} are 'train'"
    )


def _drop(file: SourceFile, ids: set[Any]) -> None:
    """Drop pictures with their boxes."""
    file.data["images"] = [entry for entry in file.data["images"] if entry["id"] not in ids]
    file.data["annotations"] = [
        entry for entry in file.walk("annotations") if entry.get("image_id") not in ids
    ]


def _choose_shots(file: SourceFile, shots: int) -> str:
    """Keep few pictures of each class, and say what was done.

    By ascending id a picture is kept if one of the classes in it has less than `shots` pictures so
    far; it then counts for all of its classes. So a class that stands beside others may get more,
    and pictures without boxes are never kept.

    Source: the published few-shot fine-tuning on ODinW.
    """
    classes: dict[Any, set[Any]] = defaultdict(set)
    for entry in file.walk("annotations"):
        classes[entry.get("image_id")].add(entry.get("category_id"))
    total, kept = len(file.data["images"]), set()
    counts: Counter[Any] = Counter()
    for entry in sorted(file.pictures(), key=lambda entry: (str(type(entry["id"])), entry["id"])):
        shown = classes[entry["id"]]
        if any(counts[category] < shots for category in shown):
            kept.add(entry["id"])
            counts.update(shown)
    _drop(file, {entry["id"] for entry in file.data["images"]} - kept)
    return f"{len(kept)} of {total} pictures are kept: {shots} of each class, as published"
