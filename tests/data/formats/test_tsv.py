"""Boxes in TSV files, as Objects365 is published: lines found by number, pictures in base64."""

import base64
import copy
import gc
import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.objects365 import Objects365Records
from fiber.data.datasets.resolve import open_source
from fiber.data.formats.tsv import TsvFile
from fiber.data.prompts.rules import PromptRules
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.skip_report import classes_of, skip_counts, skip_lines

CLASSES = {"mug": 1, "__background__": 0, "traffic light": 3, "dog_(animal)": 2}
OBJECTS = [
    [{"class": "mug", "rect": [2, 3, 22, 13]}, {"class": "traffic light", "rect": [0, 0, 9, 9]}],
    {"objects": [{"class": "dog_(animal)", "rect": [10.5, 4, 30, 20]}]},
    [],
    [
        {"class": "mug", "rect": [-5, 3, 22, 13]},
        {"class": "mug", "rect": [9, 9, 9.5, 20]},
        {"class": "mug", "rect": [20, 9, 10, 20]},
        {"class": "mug", "rect": [0, 0, 30, 20], "iscrowd": 1},
    ],
]


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 90, 90)).save(file, "PNG")
    return file.getvalue()


def write_tsv(path, rows, *, index=True):
    lines = ["\t".join(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    if index:
        starts = [sum(len(line.encode()) for line in lines[:i]) for i in range(len(lines))]
        path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))


@dataclass
class Writer:
    """Writes a set, with what is given in place of its parts."""

    folder: Path

    def __call__(self, objects=OBJECTS, *, index=True, lines=None, sizes=True, **files):
        tmp_path = self.folder
        count = range(len(objects))
        keys = [f"é{i}" for i in count]
        pictures = [base64.b64encode(picture(40 * i)).decode() for i in count]
        write_tsv(
            tmp_path / "train.images.tsv",
            [[key, "old column", text] for key, text in zip(keys, pictures, strict=True)],
            index=index,
        )
        labels = [[key, json.dumps(each)] for key, each in zip(keys, objects, strict=True)]
        write_tsv(tmp_path / "train.label.tsv", labels, index=index)
        size = json.dumps([{"height": 30, "width": 40}])
        write_tsv(tmp_path / "train.hw.tsv", [[key, size] for key in keys], index=index)
        (tmp_path / "map.json").write_text(json.dumps(CLASSES))
        names = {"img": "train.images.tsv", "label": "train.label.tsv", "labelmap": "map.json"}
        names |= {"hw": "train.hw.tsv"} if sizes else {}
        if lines is not None:
            (tmp_path / "train.lines.tsv").write_text("".join(f"{line}\n" for line in lines))
            names["linelist"] = '"train.lines.tsv"'
        names |= files
        text = "# a comment: of the file\n" + "".join(f"{k}: {v}\n" for k, v in names.items() if v)
        path = tmp_path / "objects365_train_vgoiv6.cas2000.yaml"
        path.write_text(text)
        return path


@pytest.fixture
def write(tmp_path):
    return Writer(tmp_path)


@pytest.mark.parametrize("index", [True, False], ids=["lineidx", "found"])
def test_records_of_all_lines(write, index):
    path = write(index=index)
    for data in (write.folder, path):
        records = open_source("objects365", data, "train")
        assert len(records) == 4
        assert classes_of(records) == ("mug", "dog_(animal)", "traffic light")
        first, second, third, fourth = records
        assert first.text == "mug. dog . traffic light" and first.labels == classes_of(records)
        assert first.boxes_xyxy == ((2, 3, 22, 13), (0, 0, 9, 9))
        assert first.box_labels == (0, 2)
        assert [first.text[slice(*s[0])] for s in first.char_spans] == ["mug", "traffic light"]
        assert second.boxes_xyxy == ((10.5, 4, 30, 20),) and second.box_labels == (1,)
        assert third.boxes_xyxy == () and third.text == first.text
        # As published: cut to the picture, and what is left of a box must be more than a line.
        assert fourth.boxes_xyxy == ((0, 3, 22, 13),)
        assert skip_counts(records) == {
            "clipped boxes": 1,
            "empty boxes": 1,
            "reversed boxes": 1,
            "crowd boxes": 1,
        }
        assert skip_lines(records) == []
        assert "1 crowd box was skipped or changed" in skip_lines(records, while_reading=True)
        assert [list(record.images) for record in records] == [[picture(40 * i)] for i in range(4)]
        assert len({record.key for record in records}) == 4


def test_copies_do_not_close_files_of_each_other(write):
    # In a state in which file numbers are known: it has been read.
    records = open_source("objects365", write(), "train")
    expected = [(r.boxes_xyxy, list(r.images)) for r in records]
    copies = [copy.deepcopy(records), pickle.loads(pickle.dumps(records))]
    assert all([(r.boxes_xyxy, list(r.images)) for r in each] == expected for each in copies)
    del copies
    gc.collect()
    # Would take a number that a copy had closed.
    with (write.folder / "other").open("w+b") as other:
        other.write(b"x" * 10**5)
        other.flush()
        assert [(r.boxes_xyxy, list(r.images)) for r in records] == expected


def test_a_list_of_lines_chooses_and_repeats(write):
    records = Objects365Records(write.folder, "train", annotations=write(lines=[1, 0, 1]))
    assert [record.images[0] for record in records] == [picture(40), picture(0), picture(40)]
    assert records[-1].key == records[0].key
    assert [record.key for record in records[1:]] == [records[1].key, records[2].key]
    with pytest.raises(IndexError):
        records[3]


def test_classes_of_a_prompt_are_sampled(write):
    write()
    records = open_source("objects365", write.folder, "train")
    tokenizer = Tokenizer.train([records[0].text] * 9, 300)
    rules = PromptRules(max_classes=2)
    drawn = SampledPrompts(records, tokenizer, max_tokens=32, rules=rules, seed=3)
    assert [len(record.labels) for record in drawn] == [2] * 4
    assert set(drawn[0].labels) == {"mug", "traffic light"}
    assert "dog_(animal)" in drawn[1].labels
    # What is counted while records are read is found behind the drawn texts.
    assert skip_lines(drawn, while_reading=True) == skip_lines(records, while_reading=True)
    assert skip_lines(records, while_reading=True)


def test_batches_of_it(write):
    write()
    records = open_source("objects365", write.folder, "train+val")
    loader = DataLoader(
        records,
        "grounding",
        tokenizer=Tokenizer.train([records[0].text] * 9, 300),
        transform=ImageTransform.shorter_side([32], 64),
        batch_size=4,
        max_tokens=32,
        threads=2,
    )
    (batch,) = loader.epoch()
    assert batch.boxes_per_image.tolist() == [2, 1, 0, 1]
    assert batch.original_sizes.tolist() == [[30, 40]] * 4


def test_a_fork_reads_too(write):
    write()
    file = TsvFile(write.folder / "train.label.tsv")
    first = file.row(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if file.row(0) == first and file.row(2)[0] == "é2" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.row(0) == first


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            [[{"class": "cup", "rect": [1, 2, 9, 9]}]],
            r"object 0.*class 'cup'",
        ),
        ([[{"class": "mug", "rect": [1, 2, 9]}]], r"object 0.*'rect' \[1, 2, 9\]"),
        ([[{"class": "mug", "rect": [1, 2, float("nan"), 9]}]], r"object 0.*'rect'"),
        ([[{"class": "mug"}]], r"object 0.*'rect' None"),
        (["words"], "list of objects.*words"),
    ],
    ids=["class", "three", "nan", "none", "words"],
)
def test_objects_that_do_not_fit(write, objects, message):
    path = write(objects)
    with pytest.raises(ValueError, match=rf"train\.label\.tsv: line 1.*{message}"):
        Objects365Records(write.folder, "train", annotations=path)[0]
    if objects != ["words"]:
        skipping = Objects365Records(write.folder, "train", annotations=path, on_error="skip")
        assert skipping[0].boxes_xyxy == ()
        assert skipping.counts == {"objects that are no boxes of a class": 1}


def test_files_that_do_not_fit(write):
    def read(**settings):
        return Objects365Records(write.folder, "train", annotations=write(**settings))

    with pytest.raises(ValueError, match=r"img, label.*img, label, labelmap"):
        read(img="", label="")
    with pytest.raises(FileNotFoundError, match=r"none\.tsv.*exist.*file"):
        read(img="none.tsv")
    with pytest.raises(ValueError, match=r"line number 4.*0 to 3"):
        read(lines=[0, 4])
    assert len(read(lines=[0, 2, 1, 3] * 100)) == 400
    with pytest.raises(
        ValueError, match=r"train\.lines\.tsv lists .*train\.label\.tsv.* 100 times"
    ):
        read(lines=[0] * 400)
    with pytest.raises(ValueError, match=r"train\.lines\.tsv must contain line numbers"):
        read(lines=["one"])
    (write.folder / "few.tsv").write_text("a\t[]\n")
    with pytest.raises(ValueError, match=r"few\.tsv.*1.*train\.images\.tsv has 4"):
        read(label="few.tsv")
    with pytest.raises(ValueError, match=r"list\.json.*array"):
        read(labelmap="list.json") if (write.folder / "list.json").write_text("[1]") else None
    path = write()
    (write.folder / "train.label.lineidx").write_text("0\n9999999\n")
    with pytest.raises(ValueError, match=r"train\.label\.lineidx.*offsets"):
        Objects365Records(write.folder, "train", annotations=path)
    path = write()
    write_tsv(write.folder / "train.images.tsv", [["a", "no base64!"]] * 4)
    with pytest.raises(ValueError, match=r"train\.images\.tsv: line 3"):
        Objects365Records(write.folder, "train", annotations=path)[2].images[0]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_source("objects365", write.folder / "nowhere", "train")
    with pytest.raises(ValueError, match=r"objects365.*'val'"):
        open_source("objects365", write.folder, "val")
