"""The thirteen data sets of ODinW ("object detection in the wild"), as GLIP uses them.

    ROOT/Aquarium/Aquarium Combined.v2-raw-1024.coco/test/annotations_without_background.json
    ROOT/pistols/export/test_annotations_without_background.json

A set's folder may also be ROOT/NAME itself, in any COCO layout that `fiber.data.open_source` reads.
The names of the classes are those of GLIP's configurations, which replace the files' own by their
order; the words around them are known for one set alone, since the others' were not published.

Source: Li et al. 2022 (ELEVATER); `configs/odinw_13` of GLIP; FIBER's configuration of Aquarium.
"""

from __future__ import annotations

import dataclasses
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from fiber.data.formats import coco_folders
from fiber.data.prompts.classes import ClassName
from fiber.data.record import Record, RecordSet


class OdinwSet(NamedTuple):
    """One of the sets."""

    #: Its folder below the root in the published archive.
    folder: str
    #: By the ids of the categories.
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
#: The words that were published; see `ClassName`.
PUBLISHED_WORDS = {
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
# What a split may be called on disk. The test of PascalVOC is what it has to validate by.
_SPLITS = {"val": ("val", "valid", "mini_val")}
_OWN_SPLITS = {("PascalVOC", "test"): ("test", "valid")}


def find_set(root: str | PathLike[str], name: str, split: str) -> Path | None:
    """Find the annotation file of a split of a set; None where there is none.

    Raises:
        ValueError: if a folder has several files of one form, with their names.
    """
    names = _OWN_SPLITS.get((name, split)) or _SPLITS.get(split, (split,))
    for folder in (Path(root) / ODINW_13[name].folder, Path(root) / name):
        for part in names:
            for place in (folder / part / _FILE, folder / f"{part}_{_FILE}"):
                if place.is_file():
                    return place
        other = coco_folders.find(folder, split)
        # A part of the training pictures is no split of a benchmark.
        if other is not None and not other.is_divided:
            return other.file
    return None


def open_set(root: str | PathLike[str], name: str, split: str) -> RecordSet | None:
    """Read a set, its classes named as published; None where it is not there.

    Raises:
        ValueError: if the file has another number of classes, with both lists.
    """
    file = find_set(root, name, split)
    if file is None:
        return None
    records = coco_folders.coco_detection(file.parent, split, annotations=file, objects=True)
    names = ODINW_13[name].classes
    if len(records.classes) != len(names):
        raise ValueError(
            f"{file} has {len(records.classes)} classes ({', '.join(records.classes)[:200]});"
            f" expected the {len(names)} of {name}: {', '.join(names)}"
        )
    return [_renamed(record, names) for record in records]


def _renamed(record: Record, names: tuple[str, ...]) -> Record:
    return dataclasses.replace(record, labels=names)


def published_words(name: str) -> list[ClassName]:
    """What the published prompt of a set says for its classes, or their names alone."""
    known = PUBLISHED_WORDS.get(name)
    return list(known) if known else [ClassName(label) for label in ODINW_13[name].classes]
