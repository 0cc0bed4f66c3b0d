"""Which reader a folder or a file gets, by the names of files."""

import json
import re
from types import SimpleNamespace

import pytest

from fiber.data.datasets.resolve import AmbiguousLayoutError, open_source
from fiber.data.record import ConcatRecords
from fiber.data.skip_report import counted, skip_counts, skip_lines
from fiber.data.tools.discover import parts_of

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


def test_layouts_of_captions_in_a_folder(folder):
    folder("train.jsonl", LINE)
    assert texts("captions", folder.folder) == ["mine"]
    folder("dataset_coco.json", karpathy("train"))
    with pytest.raises(ValueError, match=r"train\.jsonl.*dataset_coco\.json"):
        open_source("captions", folder.folder, "train")
    assert texts("coco_karpathy", folder.folder) == ["train"]
    assert texts("captions", folder.folder / "train.jsonl") == ["mine"]
    assert texts("captions", folder.folder / "dataset_coco.json") == ["train"]
    # What recipes and `fiber data` name comes first.
    folder("captions_train.json", coco("standard"))
    assert texts("captions", folder.folder) == ["standard"]


def test_several_layouts_are_reported_with_sources_that_select_one(folder):
    for name, content in (
        ("train.jsonl", LINE),
        ("dataset_coco.json", karpathy("train")),
        ("dataset_flickr30k.json", karpathy("train")),
    ):
        folder(name, content)
    with pytest.raises(AmbiguousLayoutError, match="pass one of") as error:
        open_source("captions", folder.folder, "train")
    assert error.value.sources == ("coco_karpathy", "flickr30k_karpathy")
    # Of two forms of one set the first is read by its name, and others are not told apart by it.
    folder("coco_caption_karpathy_train.arrow", "")
    assert texts("coco_karpathy", folder.folder) == ["train"]
    folder("f30k_caption_karpathy_train.arrow", "")
    (folder.folder / "dataset_flickr30k.json").unlink()
    (folder.folder / "karpathy").mkdir()
    folder("karpathy/dataset_flickr30k.json", karpathy("train"))
    for source, names in (("captions", ("coco_karpathy",)), ("flickr30k_karpathy", ())):
        with pytest.raises(AmbiguousLayoutError) as error:
            open_source(source, folder.folder, "train")
        assert error.value.sources == names


@pytest.mark.parametrize(
    ("count", "what", "said"),
    [
        (1, "pictures that are missing", "1 picture that is missing"),
        (1, "pictures without captions", "1 picture without captions"),
        (1, "empty captions", "1 empty caption"),
        (1, "crowd boxes", "1 crowd box"),
        (2, "crowd boxes", "2 crowd boxes"),
        (0, "pictures that are missing", "0 pictures that are missing"),
    ],
)
def test_one_is_no_plural(count, what, said):
    assert counted(count, what) == said


KARPATHY = "caption_datasets.zip of Karpathy and Fei-Fei (2015)"
COCO, VQAV2, NLVR2 = (
    "https://cocodataset.org",
    "https://visualqa.org",
    "https://lil.nlp.cornell.edu",
)


@pytest.mark.parametrize(
    ("source", "split", "names"),
    [
        (
            "questions",
            "val",
            [
                "vqa_questions_val.json with vqa_annotations_val.json (VQAv2 questions,",
                "val.jsonl (JSON lines",
                "v2_OpenEnded_mscoco_val20*_questions.json with v2_mscoco_val20*_annotations.json",
                VQAV2,
                "val.parquet (an Arrow or Parquet table)",
            ],
        ),
        (
            "reasoning",
            "test1",
            [
                "nlvr2_test1.jsonl (NLVR2,",
                NLVR2,
                "test1.json (NLVR2, original",
                "nlvr2_test1.arrow",
            ],
        ),
        (
            "coco_karpathy",
            "restval",
            [
                "dataset_coco.json (COCO, Karpathy's",
                KARPATHY,
                COCO,
                "coco_caption_karpathy_restval",
            ],
        ),
        ("flickr30k_karpathy", "val", ["dataset_flickr30k.json (Flickr30k,", KARPATHY]),
        ("captions", "val", ["captions_val.json (COCO captions,", COCO, "val.jsonl (JSON lines"]),
        ("detection", "val", ["instances_val.json (COCO instances", "(Roboflow)"]),
    ],
)
def test_a_missing_source_is_reported_with_what_to_do_first(source, split, names, folder):
    with pytest.raises(FileNotFoundError) as error:
        open_source(source, folder.folder, split)
    said = str(error.value).removeprefix(str(folder.folder))
    expected = [f" has no {source} for split {split!r}", "it has images, 1.png", "instead of the"]
    places = [said.index(part) for part in (*expected, "Known names", *names)]
    # First what is missing and what is there, then what to do; then few of the names.
    assert places[:5] == sorted(places[:5]) and min(places[4:]) > places[3]
    assert len(said) < 800 and said.count("(") < 10
    # What holds another split alone.
    for name in ("Train_GCC", "region_descriptions", "vg.arrow", "sbu_"):
        assert name not in said
    none = folder.folder / "none"
    with pytest.raises(FileNotFoundError, match=rf"^{none}.*exist.*folder"):
        open_source(source, none, split)


def test_what_is_there_is_named_before_images(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.JPG").touch()
    for name in ("labels.csv", "zoo.json"):
        (tmp_path / name).touch()
    for read in (lambda: open_source("captions", tmp_path, "val"), lambda: parts_of(tmp_path)):
        with pytest.raises((FileNotFoundError, ValueError), match=r"has no .*; it has") as error:
            read()
        there = "it has labels.csv, zoo.json, 0.JPG, 1.JPG, 10.JPG, 11.JPG and 96 more"
        assert there in str(error.value)


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no captions for split 'val'; it is empty"):
        open_source("captions", tmp_path, "val")


@pytest.mark.parametrize(
    ("source", "files", "splits"),
    [
        ("captions", ["captions_train.json", "captions_val2.json"], "train, val2"),
        ("captions", ["Train_GCC-training.tsv", "images/captions_val.json"], "train"),
        ("captions", ["coco_caption_karpathy_val.arrow", "captions.jsonl"], "val"),
        ("questions", ["v2_OpenEnded_mscoco_test-dev2015_questions.json", "a.json"], "test-dev"),
        ("reasoning", ["dev.json", "test1.json", "dataset_coco.json"], "dev, test1"),
        ("conceptual_captions", ["conceptual_caption_train_0.arrow"], "train"),
    ],
)
def test_a_missing_split_lists_the_splits_that_exist(source, files, splits, folder):
    for name in files:
        folder(name, "")
    with pytest.raises(FileNotFoundError) as error:
        open_source(source, folder.folder, "novel")
    said = f"has no {source} for split 'novel'; available splits: {splits}. Ask for one of these"
    assert said in str(error.value)


def test_a_file_with_one_split_is_not_taken_for_another(folder):
    (folder.folder / "2.png").touch()
    folder("Train_GCC-training.tsv", "a dog\t2.png\n")
    assert texts("captions", folder.folder) == ["a dog"]
    for source in ("captions", "conceptual_captions"):
        with pytest.raises(FileNotFoundError, match="available splits: tr"):
            open_source(source, folder.folder, "val")
    folder("Validation_GCC-1.1.0-Validation.tsv", "a cat\t2.png\n")
    assert texts("captions", folder.folder, "val") == ["a cat"]
    assert texts("conceptual_captions", folder.folder, "train+val") == ["a dog", "a cat"]


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


def test_a_source_with_a_training_split_alone_gives_that_one(folder):
    for name in ("1.jpg", "3.jpg"):
        (folder.folder / name).touch()
    region = {"region_id": 7, "phrase": "a region"}
    genome = folder("region_descriptions.json", [{"id": 1, "regions": [region]}])
    sbu = folder("annot.json", [["3.jpg", "a sight"]])
    (folder.folder / "2.png").touch()
    folder("Train_GCC-training.tsv", "a dog\t2.png\n")
    folder("dataset_coco.json", karpathy("train", "restval", "val", "test"))
    found = {
        source: texts(source, folder.folder, "train+val")
        for source in ("coco_karpathy", "visual_genome", "sbu", "conceptual_captions")
    }
    assert found == {
        "coco_karpathy": ["train", "val"],
        "visual_genome": ["a region"],
        "sbu": ["a sight"],
        "conceptual_captions": ["a dog"],
    }
    # METER's training splits.
    assert texts("coco_karpathy", folder.folder, "train+restval") == ["train", "restval"]
    for source in ("visual_genome", "sbu", "conceptual_captions"):
        assert texts(source, folder.folder, "train+restval") == found[source]
    # The file that is named, and the same file as captions of any kind.
    assert texts("visual_genome", genome, "val+train") == ["a region"]
    assert texts("captions", sbu, "train+val") == ["a sight"]
    folder("Validation_GCC-1.1.0-Validation.tsv", "a cat\t2.png\n")
    assert texts("conceptual_captions", folder.folder, "train+val") == ["a dog", "a cat"]


def test_a_split_that_a_source_never_has(folder, monkeypatch):
    for source, name in (("visual_genome", "vg.arrow"), ("sbu", "sbu_0.arrow")):
        folder(name, "")
        with pytest.raises(ValueError) as error:
            open_source(source, folder.folder, "val")
        said = f"{source} has only a 'train' split, got split 'val'"
        assert str(error.value) == said
    # Nor are its Arrow files read for the same records a second time.
    read = []
    monkeypatch.setattr(
        "fiber.data.formats.arrow.open_table",
        lambda path, kind: read.append(path.name) or SimpleNamespace(path=path, columns=()),
    )
    for source in ("visual_genome", "sbu"):
        with pytest.raises(ValueError, match="column 'image'"):
            open_source(source, folder.folder, "train+val")
    assert read == ["vg.arrow", "sbu_0.arrow"]
    # A file of Conceptual Captions can be had.
    with pytest.raises(FileNotFoundError, match=r"conceptual_captions.*split 'val'"):
        open_source("conceptual_captions", folder.folder, "val")


def test_a_file_with_another_name_is_read_by_its_extension(folder):
    assert texts("captions", folder("mine.jsonl", LINE), "val") == ["mine"]
    assert texts("captions", folder("captions_val2014.json", coco("val"))) == ["val"]
    (folder.folder / "mine").mkdir()
    (folder.folder / "mine/2.png").touch()
    path = folder("cc.tsv", "a dog\tmine/2.png\n")
    assert texts("conceptual_captions", path) == texts("captions", path) == ["a dog"]
    with pytest.raises(ValueError, match=r"mine\.xls.*\.json, \.jsonl"):
        open_source("captions", folder("mine.xls", ""), "train")
    with pytest.raises(ValueError, match=r"\.jsonl.*\.json.*\.arrow"):
        open_source("reasoning", folder("mine.xls", ""), "train")


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

    def open_table(path, kind):
        seen.append(path)
        columns = ("image", "caption", "image_id")
        return SimpleNamespace(path=path, columns=columns, values=lambda name: [])

    monkeypatch.setattr("fiber.data.formats.arrow.open_table", open_table)
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
    assert skip_counts(found) == {"pictures without captions": 2}
    again = open_source("captions", folder.folder, "train+train")
    assert skip_counts(ConcatRecords([found, again])) == {"pictures without captions": 4}
    # A set that a run lists twice was read once.
    assert skip_counts(ConcatRecords([found, found])) == {"pictures without captions": 2}
    assert skip_counts([]) == {}
    assert skip_lines(found) == ["2 pictures without captions were skipped or changed"]
    once = open_source("captions", folder.folder, "train")
    assert skip_lines(once) == ["1 picture without captions was skipped or changed"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("capshuns", "did you mean captions?"),
        (7, "expected one of captions, coco_karpathy"),
    ],
)
def test_an_unknown_source_is_answered_with_those_there_are(source, said, folder):
    with pytest.raises(ValueError, match=rf"source.*{source!r}.*{re.escape(said)}"):
        open_source(source, folder, "train")


@pytest.mark.parametrize(
    ("data", "split", "error", "message"),
    [
        (None, "train", TypeError, r"data.*folder.*file.*None"),
        ("data", None, TypeError, r"split.*'train'.*None"),
        ("data", "", ValueError, "split.*'\\+'.*''"),
        ("data", "train+", ValueError, "split.*'train\\+'"),
    ],
)
def test_wrong_arguments_are_named(data, split, error, message):
    with pytest.raises(error, match=f"^{message}"):
        open_source("captions", data, split)
