"""Fingerprints of records: what counts, what does not, and what is never read for them."""

import dataclasses
import itertools

import numpy as np
import pytest

from fiber.data import Record
from fiber.data.fingerprint import Fingerprint, fingerprint_of
from fiber.data.record import ConcatRecords, LazyImages


def record(index: int, **changes) -> Record:
    fields = {
        "key": f"r{index}",
        "images": (f"/data/images/{index % 3}/{index}.jpg",),
        "text": f"text {index}",
        "boxes_xyxy": ((1.0, 2.0, 20.0, 22.0), (0.0, 0.0, 4.0, 4.0)),
        "char_spans": (((0, 4),), ((0, 2),)),
        "box_labels": (0, 1),
        "labels": ("cup", "dog"),
        "label_spans": (((0, 4),), ((0, 2),)),
    }
    return Record(**{**fields, **changes})


RECORDS = [record(index) for index in range(1000)]


def changed(index: int, **changes) -> list[Record]:
    return [*RECORDS[:index], record(index, **changes), *RECORDS[index + 1 :]]


def test_no_records_have_a_fingerprint():
    assert fingerprint_of([]) == fingerprint_of([]) != fingerprint_of(RECORDS)


CHANGES = [
    {"key": "other"},
    {"text": "text other"},
    {"images": ("/data/images/other.jpg",)},
    {"images": (b"1",)},
    {"images": (b"2",)},
    {"images": ("/data/images/0/0.jpg",) * 2},
    {"image_id": "other"},
    {"image_size": (3, 4)},
    {"boxes_xyxy": ((1.0, 2.0, 20.0, 22.5), (0.0, 0.0, 4.0, 4.0))},
    {"boxes_xyxy": ((0.0, 0.0, 4.0, 4.0), (1.0, 2.0, 20.0, 22.0))},
    {"char_spans": (((0, 3),), ((0, 2),))},
    {"box_labels": (1, 0)},
    {"labels": ("cup", "cat")},
    {"label_spans": (((0, 3),), ((0, 2),))},
    {"answers": {"yes": 1.0}},
    {"answers": {"yes": 0.5}},
    {"human_answers": ("yes",)},
    {"truth": True},
    {"truth": False},
    {"group": "other"},
]


# Each field once, at the first and the last record and some between.
@pytest.mark.parametrize(
    ("index", "changes"),
    list(zip(itertools.cycle([0, 1, 7, 498, 999]), CHANGES, strict=False)),
    ids=str,
)
def test_every_field_of_every_record_counts(index, changes):
    assert fingerprint_of(changed(index, **changes)) != fingerprint_of(RECORDS)


def test_the_order_counts():
    swapped = [*RECORDS]
    swapped[500], swapped[501] = swapped[501], swapped[500]
    assert fingerprint_of(swapped) != fingerprint_of(RECORDS)


def test_equal_records_have_equal_fingerprints():
    """Whoever made them: numbers of NumPy, labels that are shared or not, mappings in any order."""
    again = [
        dataclasses.replace(
            one,
            boxes_xyxy=tuple(map(tuple, np.array(one.boxes_xyxy, dtype=np.float32))),
            box_labels=tuple(np.array(one.box_labels)),
            labels=(*one.labels,),
        )
        for one in RECORDS
    ]
    assert fingerprint_of(again) == fingerprint_of(tuple(RECORDS))
    answers = [changed(3, answers=found) for found in ({"a": 1.0, "b": 0.5}, {"b": 0.5, "a": 1.0})]
    assert fingerprint_of(answers[0]) == fingerprint_of(answers[1])


def test_a_folder_of_data_may_be_moved():
    def below(folder):
        paths = [one.images[0].replace("/data", folder) for one in RECORDS]
        return [
            dataclasses.replace(one, images=(path,), image_id=path)
            for one, path in zip(RECORDS, paths, strict=True)
        ]

    assert fingerprint_of(below("/elsewhere/data")) == fingerprint_of(below("/data"))
    assert fingerprint_of(below("relative")) == fingerprint_of(below("/data"))
    other = below("/data")
    other[5] = dataclasses.replace(other[5], images=("/data/images/1/5.jpg",))
    assert fingerprint_of(other) != fingerprint_of(below("/data"))


def test_pictures_are_not_read():
    def refuse(place):
        raise AssertionError(place)

    def stored(shift=0):
        return [
            record(index, images=LazyImages(refuse, ((0, index + shift, "image"),)))
            for index in range(5)
        ]

    class Set:
        """Not a list."""

        def __init__(self, records):
            self.records = records

        def __len__(self):
            return len(self.records)

        def __getitem__(self, index):
            return self.records[index]

    assert fingerprint_of(Set(stored())) == fingerprint_of(stored())
    assert fingerprint_of(stored(1)) != fingerprint_of(stored())
    # Paths that are looked up later are paths all the same.
    paths = [LazyImages(refuse, (f"{folder}/1.jpg",)) for folder in ("/a", "/b")]
    moved = [[record(0, images=one, image_id=one.locations[0])] for one in paths]
    assert fingerprint_of(moved[0]) == fingerprint_of(moved[1])


class Counted:
    """A set of its own that brings pictures as bytes."""

    def __init__(self, count, **changes):
        self.count, self.changes, self.seen = count, changes, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.seen.append(index)
        return record(index, **{"images": (b"%d" % index,), **self.changes})


def test_sets_that_read_pictures_are_looked_at_here_and_there():
    fingerprint_of(records := Counted(6400))
    assert records.seen == list(range(0, 6400, 100))
    assert fingerprint_of(Counted(6400)) != fingerprint_of(Counted(6401))
    fingerprint_of(records := Counted(640, images=("1.jpg",)))
    assert records.seen == list(range(640))


def test_a_fingerprint_of_its_own_is_believed():
    def named(count, fingerprint, **changes):
        records = Counted(count, **changes)
        records.fingerprint = fingerprint
        return records

    own = fingerprint_of(records := named(640, "mine"))
    assert records.seen == [0, 639]
    assert fingerprint_of(named(640, "mine")) == own
    # One of a whole folder does not tell its splits apart; their records do.
    others = [named(640, "other"), named(641, "mine"), named(640, "mine", text="other")]
    assert own not in map(fingerprint_of, others)
    assert fingerprint_of(named(0, "mine")) != fingerprint_of(named(0, "other"))


def test_sets_behind_one_another_are_those_sets():
    parts = [RECORDS[:10], Counted(20)]
    found = fingerprint_of(ConcatRecords(parts))
    assert found == fingerprint_of(ConcatRecords(parts))
    assert found != fingerprint_of(ConcatRecords(parts[::-1]))
    assert found != fingerprint_of(ConcatRecords([changed(5, text="other")[:10], Counted(20)]))


def test_the_end_of_bytes_counts():
    one, other = Fingerprint(), Fingerprint()
    one.add(record(0, images=(b"\0" * 9999 + b"1",)))
    other.add(record(0, images=(b"\0" * 9999 + b"2",)))
    assert one.text() != other.text()
