"""Rows in memory give the records that the same rows in a file give."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

import fiber
from fiber.data.datasets.resolve import has_splits, open_source
from fiber.data.image import load_image
from fiber.training.data import fingerprint

from .stand_ins import data_frame, dataset

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

CLASSES = ["mug", "cup"]
BBOXES = [[[5.0, 6.0, 20.0, 15.0]], [], [[1.0, 2.0, 30.0, 20.0], [3.0, 3.0, 8.0, 9.0]]]
NUMBERS = [[0], [], [1, 0]]


def encoded(number):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (60 * number, 10, 200)).save(file, "PNG")
    return file.getvalue()


def objects(names=True):
    return [
        {"bbox": boxes, "category": [CLASSES[n] for n in own] if names else own}
        for boxes, own in zip(BBOXES, NUMBERS, strict=True)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with three images and the rows as JSON lines."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    with (tmp_path / "mine.jsonl").open("w") as file:
        for number, (boxes, own) in enumerate(zip(BBOXES, NUMBERS, strict=True)):
            corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
            line = {"image": f"{number}.png", "boxes_xyxy": corners, "width": 40, "height": 30}
            file.write(json.dumps(line | {"labels": [CLASSES[n] for n in own]}) + "\n")
    return tmp_path


PICTURES = {
    "paths": lambda n: f"{n}.png",
    "bytes": encoded,
    "structs": lambda n: {"bytes": encoded(n), "path": None},
    "PIL images": lambda n: Image.open(io.BytesIO(encoded(n))),
    "arrays": lambda n: np.asarray(Image.open(io.BytesIO(encoded(n)))),
}


def column(kind):
    return [PICTURES[kind](number) for number in range(3)]


def dicts(kind="paths"):
    pairs = zip(column(kind), objects(), strict=True)
    return [{"image": image, "objects": own} for image, own in pairs]


TABLES = {
    **{f"dicts with {kind}": lambda kind=kind: dicts(kind) for kind in PICTURES},
    "arrays of boxes": lambda: [
        row | {"objects": {"bbox": np.array(boxes).reshape(-1, 4), "category": np.array(own)}}
        for row, boxes, own in zip(dicts(), BBOXES, [o["category"] for o in objects()], strict=True)
    ],
    "own names": lambda: [
        {
            "image_path": f"{n}.png",
            "labels": own["category"],
            "boxes_xyxy": [(x, y, x + w, y + h) for x, y, w, h in own["bbox"]],
        }
        for n, own in enumerate(objects())
    ],
    "pandas": lambda: data_frame({"file_name": column("paths"), "objects": objects()}),
    "pandas with images": lambda: data_frame(
        {"image": column("PIL images"), "objects": objects(), "note": [None, 3.0, None]}
    ),
    "pyarrow": lambda: arrow.table({"image": column("bytes"), "objects": objects()}),
    "datasets": lambda: dataset({"image": column("structs"), "objects": objects(False)}, CLASSES),
}


@pytest.mark.parametrize("kind", TABLES)
def test_rows_are_read_as_those_of_a_file(kind, folder):
    expected = open_source("detection", "mine.jsonl", "train")
    records = open_source("detection", TABLES[kind](), "train")
    names = CLASSES if kind == "datasets" else sorted(CLASSES)
    assert list(records.classes) == names and len(records) == 3
    for record, other in zip(records, expected, strict=True):
        assert record.boxes_xyxy == other.boxes_xyxy
        labels, others = ([r.labels[n] for n in r.box_labels] for r in (record, other))
        assert labels == others
        assert np.array_equal(load_image(record.images[0]), load_image(other.images[0]))
    if "paths" in kind:
        assert [record.image_id for record in records] == [f"{n}.png" for n in range(3)]
    assert pickle.loads(pickle.dumps(records[0].images[0])) == records[0].images[0]
    assert fingerprint(records) == fingerprint(open_source("detection", TABLES[kind](), "train"))


def test_texts_and_questions(folder):
    rows = [
        {"image": "0.png", "text": "a mug"},
        {"image": "0.png", "texts": ["a cup", "one cup"], "question": "what?", "answer": "cup"},
        {"image": "1.png", "text": None},
    ]
    records = open_source("captions", rows, "train")
    assert [record.text for record in records] == ["a mug", "a cup", "one cup"]
    assert {record.image_id for record in records} == {"0.png"}
    assert records.counts == {"rows without captions": 1}
    (question,) = open_source("questions", rows, "val")
    assert (question.text, question.answers) == ("what?", {"cup": 1.0})
    many = {"image": ["0.png"], "questions": [["what?"]], "answers": [[["cup"] * 10]]}
    (question,) = open_source("questions", arrow.table(many), "train")
    assert question.human_answers == ("cup",) * 10


def test_splits_of_rows(folder):
    rows = dicts()
    assert not has_splits("detection", rows, "val")
    # Without splits, rows are read as a whole, once.
    assert len(open_source("detection", rows, "train+val")) == 3
    marked = [rows[0] | {"split": "val"}, *(row | {"split": "train"} for row in rows[1:])]
    assert [len(open_source("detection", marked, s)) for s in ("train", "val", "train+val")] == [
        *(2, 1, 3)
    ]
    with pytest.raises(ValueError, match="split 'test'; available splits: val, train"):
        open_source("detection", marked, "test")
    with pytest.raises(ValueError, match="row 1 has 'split' None"):
        open_source("detection", [marked[0], rows[1]], "train")
    named = {
        "train": rows[:2],
        "validation": arrow.table({"image": ["2.png"], "objects": objects()[2:]}),
    }
    assert has_splits("detection", named, "val")
    assert [len(open_source("detection", named, s)) for s in ("train", "val")] == [2, 1]
    # "val" is a part of "train" if there is none.
    for only in ({"train": rows, "test": rows}, [row | {"split": "train"} for row in rows]):
        parts = [open_source("detection", only, split) for split in ("train", "val", "train+val")]
        assert [len(part) for part in parts] == [2, 1, 3]
        assert "1 of 3 records" in parts[0].notes[0]
        few = open_source("detection", only, "train", shots=1)
        assert len(few) <= 2


WRONG = {
    "no image": ([{"text": "a mug"}], "captions", "the list of dicts has no 'image' or"),
    "no text": ([{"image": "0.png"}], "captions", r"no 'caption' or .*rename a column \(image\)"),
    "gone": ([{"image": "gone.png", "text": "a"}], "captions", r"row 0: image 'gone\.png' not f"),
    "NUL": ([{"image": "a\0", "text": "a"}], "captions", "row 0 has in 'image' .*NUL"),
    "text": ([{"image": "0.png", "text": 3}], "captions", "row 0 has 'text' 3"),
    "number": (
        [{"image": "0.png", "objects": {"bbox": [[1, 2, 9, 9]], "category": [1]}}],
        "detection",
        "row 0 has box 0 with class 1.*ClassLabel",
    ),
    "box": (
        [{"image": "0.png", "objects": {"bbox": [[1, 2, 9]], "category": ["cup"]}}],
        "detection",
        "row 0 has box 0 .*four numbers",
    ),
    "no dict": (
        [{"image": "0.png", "text": "a"}, 3],
        "captions",
        "row 1 is a int; expected a dict",
    ),
    "source": ([{"image": "0.png", "text": "a"}], "reasoning", "'reasoning' is not read from rows"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_rows_are_named(kind, folder):
    rows, source, said = WRONG[kind]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=said):
        open_source(source, rows, "train")


def test_a_wrong_image_is_named_when_it_is_read(folder):
    records = open_source("captions", [{"image": np.zeros((3, 4)), "text": "a"}], "train")
    with pytest.raises(ValueError, match=r"data: row 0 has in 'image': image is an array"):
        records[0].images[0]


def test_names_of_classes_without_words_are_refused(folder):
    rows = dataset({"image": column("structs"), "objects": objects(False)}, ["mug", " "])
    with pytest.raises(ValueError, match="class 1 of the schema"):
        open_source("detection", rows, "train")


def test_rows_without_a_length_are_refused():
    class Stream:
        pass

    Stream.__module__, Stream.__name__ = "datasets.iterable_dataset", "IterableDataset"
    for call in (
        lambda: open_source("captions", Stream(), "train"),
        lambda: fiber.train("small_retrieval", data=Stream(), output="none"),
    ):
        with pytest.raises(TypeError, match=r"got a IterableDataset of datasets.*streaming=True"):
            call()
