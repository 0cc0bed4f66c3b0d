"""The thirteen datasets of ODinW ("object detection in the wild") as used by GLIP.

    ROOT/Aquarium/Aquarium Combined.v2-raw-1024.coco/test/annotations_without_background.json
    ROOT/pistols/export/test_annotations_without_background.json

A dataset may also be in ROOT/NAME, in any COCO layout that `fiber.data.open_source` reads. Class
names are taken from GLIP's configurations, in order of category ids, and replace those in the
files. Only Aquarium's published prompt contains more than the class names.

Source: Li et al. 2022 (ELEVATER); `configs/odinw_13` of GLIP; FIBER's configuration for Aquarium.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from fiber.data.formats import coco_folders
from fiber.data.prompts.classes import ClassName
from fiber.data.record import AnyPath, RecordSet
from fiber.messages import shown_names


class OdinwSet(NamedTuple):
    """Folder and class names of an ODinW dataset."""

    #: Folder in the published archive.
    folder: str
    #: Class names, in order of the category ids.
    classes: tuple[str, ...]


ODINW_13 = {
    "AerialMaritimeDrone_large": OdinwSet(
        "AerialMaritimeDrone/large", ("boat", "car", "dock", "jetski", "lift")
    ),
    "Aquarium": OdinwSet(
        "Aquarium/Aquarium Combined.v2-raw-1024.coco",
        ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"),
    ),
    "CottontailRabbits": OdinwSet("CottontailRabbits", ("Cottontail-Rabbit",)),
    "EgoHands_generic": OdinwSet("EgoHands/generic", ("hand",)),
    "NorthAmericaMushrooms": OdinwSet(
        "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco", ("CoW", "chanterelle")
    ),
    "Packages": OdinwSet("Packages/Raw", ("package",)),
    "PascalVOC": OdinwSet(
        "PascalVOC",
        (
            *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
            *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
            *("sheep", "sofa", "train", "tvmonitor"),
        ),
    ),
    "Raccoon": OdinwSet("Raccoon/Raccoon.v2-raw.coco", ("raccoon",)),
    "ShellfishOpenImages": OdinwSet("ShellfishOpenImages/raw", ("Crab", "Lobster", "Shrimp")),
    "VehiclesOpenImages": OdinwSet(
        "VehiclesOpenImages/416x416", ("Ambulance", "Bus", "Car", "Motorcycle", "Truck")
    ),
    "pistols": OdinwSet("pistols/export", ("pistol",)),
    "pothole": OdinwSet("pothole", ("pothole",)),
    "thermalDogsAndPeople": OdinwSet("thermalDogsAndPeople", ("dog", "person")),
}
# Published prompts.
_PUBLISHED_PROMPTS = {
    "Aquarium": (
        ClassName("fish", prefix=" "),
        ClassName("jellyfish"),
        ClassName("penguin", suffix=" , which is black and white"),
        ClassName("puffin", suffix=" with orange beaks "),
        ClassName("shark"),
        ClassName("starfish"),
        ClassName("stingray", suffix=" which is flat and round"),
    )
}
_FILE = "annotations_without_background.json"


def find_set(root: AnyPath, name: str, split: str) -> Path | None:
    """Return the annotation file of a split, or None if there is none.

    Raises:
        ValueError: if several files match one layout; the error lists them.
    """
    names = ("val", "valid", "mini_val") if split == "val" else (split,)
    if (name, split) == ("PascalVOC", "test"):
        # PascalVOC has no test split; its validation split is used instead.
        names = ("test", "valid")
    for folder in (Path(root) / ODINW_13[name].folder, Path(root) / name):
        for part in names:
            for place in (folder / part / _FILE, folder / f"{part}_{_FILE}"):
                if place.is_file():
                    return place
        other = coco_folders.find(folder, split)
        # Images held out from a training split are not a benchmark split.
        if other is not None and not other.is_divided:
            return other.file
    return None


def open_set(root: AnyPath, name: str, split: str) -> RecordSet | None:
    """Read a dataset with the published class names, or return None if it is missing.

    Raises:
        ValueError: if the number of classes differs from the published one.
    """
    file = find_set(root, name, split)
    if file is None:
        return None
    records = coco_folders.coco_detection(file.parent, split, annotations=file, objects=True)
    names = ODINW_13[name].classes
    if len(records.classes) != len(names):
        raise ValueError(
            f"{file} has {len(records.classes)} classes ({shown_names(records.classes)});"
            f" expected the {len(names)} classes of {name} ({', '.join(names)})"
        )
    return [dataclasses.replace(record, labels=names) for record in records]


def published_words(name: str) -> list[ClassName]:
    """Return the published prompt of a dataset, or its plain class names if there is none."""
    return list(_PUBLISHED_PROMPTS.get(name) or map(ClassName, ODINW_13[name].classes))
