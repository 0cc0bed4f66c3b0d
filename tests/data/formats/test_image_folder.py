"""Image folders with metadata: texts, questions and boxes, and what is wrong with a line."""

import json

import pytest
from PIL import Image

from fiber.data.datasets.resolve import has_splits, open_source
from fiber.data.tools.discover import parts_of


def write(folder, rows, name="metadata.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(line + "\n" for line in lines))
    for row in rows:
        if isinstance(row, dict) and "file_name" in row:
            (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(folder / row["file_name"])


def texts(folder, split="train", source="captions"):
    return [record.text for record in open_source(source, folder, split)]


def test_texts_of_splits(tmp_path):
    for root in (tmp_path / "a", tmp_path / "b" / "data"):
        rows = [{"file_name": "1.png", "text": "a cup", "other": 3}, {"file_name": "2.png"}]
        write(root / "train", rows)
        write(root / "validation", [{"file_name": "1.png", "text": ["a mug", "one mug"]}])
    for folder in (tmp_path / "a", tmp_path / "b"):
        records = open_source("captions", folder, "train")
        assert [record.text for record in records] == ["a cup"]
        assert records.counts == {"images without captions": 1}
        assert records[0].images[0].endswith("train/1.png")
        assert texts(folder, "val") == ["a mug", "one mug"]
        assert [part[:2] for part in parts_of(folder)] == [
            ("captions", "train"),
            ("captions", "val"),
        ]
    with pytest.raises(
        FileNotFoundError, match="captions for split 'test'; available splits: train, val"
    ):
        open_source("captions", tmp_path / "a", "test")


def test_one_file_for_all_splits(tmp_path):
    names = ["train/1.png", "train/2.png", "test/1.png"]
    write(tmp_path, [{"file_name": name, "caption": f"a {name}"} for name in names])
    assert texts(tmp_path, "test") == texts(tmp_path / "metadata.jsonl", "test") == ["a test/1.png"]
    # "val" is a part of "train".
    both = [texts(tmp_path, split) for split in ("train", "val")]
    assert sorted(both[0] + both[1]) == ["a train/1.png", "a train/2.png"]


def test_a_table_without_splits(tmp_path):
    rows = ["file_name,text,question,answer", *(f"{n}.png,a cup {n},,,"[:-1] for n in range(4))]
    write(tmp_path, [*rows, '4.png,,what is it?,"a, cup"'], "metadata.csv")
    for number in range(5):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    file = tmp_path / "metadata.csv"
    assert sorted(texts(file) + texts(file, "val")) == [f"a cup {n}" for n in range(4)]
    assert [part[:2] for part in parts_of(file)] == [
        ("captions", "train"),
        ("questions", "train"),
        ("captions", "val"),
    ]
    (note,) = open_source("captions", file, "val").notes
    assert "1 of 4 records" in note and "held out as 'val'" in note
    assert has_splits("captions", file, "val")
    with pytest.raises(ValueError, match="too few images to hold out split 'val': 1"):
        open_source("questions", tmp_path, "val")
    (question,) = open_source("questions", tmp_path, "train")
    assert (question.text, question.answers) == ("what is it?", {"a, cup": 1.0})
    # A file in the folder of a split is that split.
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "metadata.csv").write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    for number in range(5):
        (tmp_path / f"{number}.png").rename(tmp_path / "val" / f"{number}.png")
    assert len(texts(tmp_path / "val" / "metadata.csv", "val")) == 4
    with pytest.raises(
        FileNotFoundError, match="captions for split 'train'; available splits: val"
    ):
        texts(tmp_path / "val" / "metadata.csv")


ROWS = {
    "gone": ({"file_name": "gone/2.png", "text": "x"}, r"line 1: image 'gone/2\.png' not found"),
    "no name": ({"text": "a"}, r"line 1 has no 'file_name'; available keys: text"),
    "number": ({"file_name": 3, "text": "x"}, r"line 1 has 'file_name' 3; expected str"),
    "JSON": ("{", "line 1 is not valid JSON"),
    "list": ('["file_name"]', "line 1 must contain a JSON object"),
    "text": ({"file_name": "1.png", "text": 3}, "line 1 has 'text' 3; expected a string"),
    "surrogate": ('{"file_name": "1.png", "text": "\\ud800"}', "line 1 has a lone surrogate"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_wrong_line_is_named(kind, tmp_path):
    row, said = ROWS[kind]
    other = {"file_name": "1.png", "text": "a cup"}
    write(tmp_path, [other])
    write(tmp_path, [json.dumps(row) if isinstance(row, dict) else row, json.dumps(other)])
    with pytest.raises((ValueError, FileNotFoundError), match=rf"metadata\.jsonl: {said}"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"bbox": [[1, 2, 20, 20]], "categories": [0]}, "names of the classes.*classes.json next"),
        ({"bbox": [[1, 2, 20, 20]]}, "one class per box"),
        ({"bbox": [[1, 2, 20]], "category": ["cup"]}, "box 0 .*four numbers"),
    ],
)
def test_wrong_objects_are_named(objects, said, tmp_path):
    write(tmp_path, [{"file_name": "1.png", "objects": objects}])
    with pytest.raises(ValueError, match=rf"metadata\.jsonl: line 1 has .*{said}"):
        open_source("detection", tmp_path, "train")


@pytest.mark.parametrize("names", ['["cup", "cup"]', '{"0": "cup"}', "[3]", '["cup", " "]'])
def test_a_wrong_list_of_classes_is_named(names, tmp_path):
    objects = {"bbox": [[1, 2, 20, 20]], "categories": [0]}
    write(tmp_path, [{"file_name": "1.png", "objects": objects}])
    (tmp_path / "classes.json").write_text(names)
    with pytest.raises(ValueError, match=r"classes\.json"):
        open_source("detection", tmp_path, "train")
