"""Hold out a part of the training images of data without a validation split.

A fifth of the images, at most 1,000, chosen by a hash of their names, is "val", the rest "train".
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fiber.data.record import Record, RecordSet, record_in_epoch
from fiber.data.storage.shard_order import ShardMap, shard_map_of

#: Part of the images that is held out, and the most images.
FRACTION, MOST = 0.2, 1000


class TooFewImagesError(ValueError):
    """Raised if there are too few images to hold out a part."""


class ChosenRecords:
    """The subset of a record set at the given indices."""

    def __init__(self, records: RecordSet, indices: Sequence[int]) -> None:
        self.records = records
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.records[self.indices[index]]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return the version of a record used in the given epoch."""
        return record_in_epoch(self.records, epoch, self.indices[index])

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if the records have no shards."""
        return shard_map_of(self.records).chosen(self.indices)


class DividedRecords(ChosenRecords):
    """A part of the records that a reader made, with its report."""

    def __init__(self, records: RecordSet, indices: Sequence[int], note: str) -> None:
        super().__init__(records, indices)
        self.counts: dict[str, int] = dict(getattr(records, "counts", {}))
        self.notes: list[str] = [*getattr(records, "notes", ()), note]
        self.classes: tuple[str, ...] = tuple(getattr(records, "classes", ()))


def is_divisible(records: RecordSet) -> bool:
    """Return whether there are enough images to hold out a part of a file without splits."""
    found = set[str]()
    for index in range(len(records)):
        found.add(_group_of(records[index]))
        if len(found) * FRACTION >= 1:
            return True
    return False


def divided(records: RecordSet, split: str, shots: int = 0) -> RecordSet:
    """Return the records of "train", or those that are held out as "val", with a note.

    Copies of an image by Roboflow ("dog_jpg.rf.0123.jpg") stay in one split, as do all records of
    an image. If there are too few images to divide, "train" has all.

    Args:
        records: all records.
        split: "train" or "val".
        shots: number of images of each class to keep, in order; 0 for all.

    Raises:
        TooFewImagesError: if "val" is asked for, and there are fewer than two images.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index in range(len(records)):
        record = records[index]
        groups[_group_of(record)].append(index)
    if len(groups) < 2:
        if split == "train":
            return records
        raise TooFewImagesError(
            f"too few images to hold out split 'val': {len(groups)}; expected at least 2"
        )
    held = chosen_names({name: len(indices) for name, indices in groups.items()}, len(records))
    parts: dict[bool, list[int]] = {False: [], True: []}
    for name, indices in groups.items():
        parts[name in held] += indices
    note = (
        f"there is no split 'val', so {len(parts[True])} of {len(records)} records, chosen by a"
        f" hash of the names of their images, are held out as 'val'; the other {len(parts[False])}"
        " are split 'train'"
    )
    indices = sorted(parts[split != "train"])
    if shots:
        indices = _with_shots(records, indices, shots)
        note += f"; kept {len(indices)} ({shots} images per class)"
    return DividedRecords(records, indices, note)


def _group_of(record: Record) -> str:
    return name_of(record).partition(".rf.")[0]


def name_of(record: Record) -> str:
    """Return the name of a record's image: that of its file, or else its id."""
    path = Path(record.image_id)
    return path.name if path.suffix and len(path.parts) > 1 else record.image_id


def chosen_names(sizes: dict[str, int], total: int) -> set[str]:
    """Choose the names of images to hold out, of which each has a number of entries."""
    count = min(max(1, round(total * FRACTION)), MOST)
    found, held = 0, set[str]()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if found >= count or len(held) == len(sizes) - 1:
            break
        held.add(name)
        found += sizes[name]
    return held


def _with_shots(records: RecordSet, indices: Sequence[int], shots: int) -> list[int]:
    """Keep an image if one of its classes has fewer than `shots` images so far."""
    counts, kept = Counter[int](), list[int]()
    for index in indices:
        classes = set(records[index].box_labels)
        if any(counts[each] < shots for each in classes):
            counts.update(classes)
            kept.append(index)
    return kept
