"""Which reader a folder or a file gets, by the names of files."""

import json
from types import SimpleNamespace

import pytest

from fiber.data.opening import left_out, open_source
from fiber.data.records import ConcatRecords

LINE = json.dumps({"image": "1.png", "text": "mine"})


@pytest.fixture
def folder(data):
    (data.folder / "1.png").touch()
    return data


def karpathy(*splits):
    return {
        "images": [
            {
                "filename": "1.png",
                "split": split,
                "sentences": [{"raw": split, "sentid": number}],
            }
            for number, split in enumerate(splits)
        ]
    }


def coco(text):
    return {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": text}],
    }


def texts(source, path, split="train"):
    return [record.text for record in open_source(source, path, split)]


def test_forms_of_captions_in_a_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"captions_train\.json does not exist"):
        open_source("captions", folder.folder, "train")
    folder("train.jsonl", LINE)
    assert texts("captions", folder.folder) == ["mine"]
    folder("dataset_coco.json", karpathy("train"))
    with pytest.raises(ValueError, match=r"several forms: train\.jsonl, dataset_coco\.json; name"):
        open_source("captions", folder.folder, "train")
    assert texts("coco_karpathy", folder.folder) == ["train"]
    assert texts("captions", folder.folder / "train.jsonl") == ["mine"]
    assert texts("captions", folder.folder / "dataset_coco.json") == ["train"]
    # What recipes and `fiber data` name comes first.
    folder("captions_train.json", coco("standard"))
    assert texts("captions", folder.folder) == ["standard"]


def test_splits_are_joined(folder):
    folder("dataset_coco.json", karpathy("train", "val", "test"))
    found = open_source("captions", folder.folder, "train+val")
    assert [record.text for record in found] == ["train", "val"]
    assert isinstance(found, ConcatRecords)
    both = folder.folder / "dataset_coco.json"
    assert texts("captions", both, "train+val") == ["train", "val"]
    # What does not tell its splits is read once.
    assert texts("captions", folder("mine.jsonl", LINE), "train+val") == ["mine"]
    assert texts("captions", folder("captions_val2014.json", coco("val")), "train+val") == ["val"]


def test_a_file_of_another_name_is_told_by_its_end(folder):
    assert texts("captions", folder("mine.jsonl", LINE), "val") == ["mine"]
    assert texts("captions", folder("captions_val2014.json", coco("val"))) == ["val"]
    (folder.folder / "mine").mkdir()
    (folder.folder / "mine/2.png").touch()
    path = folder("cc.tsv", "a dog\tmine/2.png\n")
    assert texts("conceptual_captions", path) == texts("captions", path) == ["a dog"]
    with pytest.raises(ValueError, match=r"mine\.csv: a file of captions ends in \.jsonl, \.json,"):
        open_source("captions", folder("mine.csv", ""), "train")
    with pytest.raises(ValueError, match=r"a file of reasoning ends in \.jsonl, \.json, \.arrow"):
        open_source("reasoning", folder("mine.csv", ""), "train")


@pytest.mark.parametrize(
    ("split", "name", "subtype"),
    [
        ("val", "v2_OpenEnded_mscoco_val2014_questions.json", "val2014"),
        ("test", "v2_OpenEnded_mscoco_test2015_questions.json", "test2015"),
        ("test-dev", "v2_OpenEnded_mscoco_test-dev2015_questions.json", "test-dev2015"),
    ],
)
def test_the_original_files_of_vqa(split, name, subtype, folder):
    asked = {"image_id": 262148, "question": "Where is he?", "question_id": 7}
    folder(name, {"data_subtype": subtype, "questions": [asked]})
    year = subtype.replace("-dev", "")
    (folder.folder / year).mkdir()
    if split == "val":
        with pytest.raises(FileNotFoundError, match=r"v2_mscoco_val2014_annotations\.json"):
            open_source("questions", folder.folder, split)
        votes = [{"answer": "down", "answer_id": i + 1} for i in range(10)]
        answers = {"annotations": [{"question_id": 7, "answers": votes}]}
        folder("v2_mscoco_val2014_annotations.json", answers)
    (record,) = open_source("questions", folder.folder, split)
    assert record.images == (f"{folder.folder}/{year}/COCO_{year}_000000262148.jpg",)
    assert record.answers == ({"down": 1.0} if split == "val" else None)
    assert record.human_answers == (("down",) * 10 if split == "val" else ())
    (again,) = open_source("questions", folder.folder / name, split)
    assert again == record


def test_the_original_files_of_nlvr2(folder):
    entry = {"sentence": "x", "label": "True", "identifier": "train-10171-0-0", "directory": 55}
    folder("train.json", json.dumps(entry) + "\n" + json.dumps(entry))
    (folder.folder / "images/train").mkdir()
    (folder.folder / "dev").mkdir()
    first, _ = open_source("reasoning", folder.folder, "train")
    start = f"{folder.images}/train/55/train-10171-0"
    assert first.images == (f"{start}-img0.png", f"{start}-img1.png")
    del entry["directory"]
    folder("dev.json", json.dumps(entry | {"identifier": "dev-850-0-1"}))
    (record,) = open_source("reasoning", folder.folder, "dev")
    assert record.images[1] == f"{folder.folder}/dev/dev-850-0-img1.png"


def test_parts_of_an_arrow_set_follow_in_the_order_of_their_numbers(folder, monkeypatch):
    seen = []

    class Table:
        column_names = ("image", "caption", "image_id")

        def column(self, name):
            return SimpleNamespace(to_pylist=list)

    monkeypatch.setattr("fiber.data.arrow_files._open", lambda path: seen.append(path) or Table())
    paths = [folder(f"conceptual_caption_train_{number}.arrow", "") for number in (10, 9, 0)]
    assert len(open_source("conceptual_captions", folder.folder, "train")) == 0
    assert seen == paths[::-1]
    # A file that is named is read alone.
    for path in paths:
        open_source("conceptual_captions", path, "train")
    assert seen[3:] == paths
    open_source("captions", folder("mine.arrow", ""), "train")
    assert seen[6:] == [folder.folder / "mine.arrow"]


def test_what_readers_left_out_is_added_up(folder):
    folder(
        "captions_train.json",
        coco("x") | {"images": [{"id": i, "file_name": "1.png"} for i in (1, 2)]},
    )
    found = open_source("captions", folder.folder, "train+train")
    assert left_out(found) == {"pictures without captions": 2}
    assert left_out(ConcatRecords([found, found])) == {"pictures without captions": 4}
    assert left_out([]) == {}
