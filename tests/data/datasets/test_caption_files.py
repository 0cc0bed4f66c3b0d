"""Caption datasets in their original formats, and their known defects."""

import json

import pytest

from fiber.data.datasets import caption_files
from fiber.data.datasets.resolve import open_source


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def sentences(*texts, first=0):
    return [
        {"tokens": text.split(), "raw": text, "imgid": 0, "sentid": first + i}
        for i, text in enumerate(texts)
    ]


def coco(data, *pictures):
    """Write dataset_coco.json: (file, split, captions) of each picture."""
    return data(
        "dataset_coco.json",
        {
            "images": [
                {
                    "filepath": "val2014",
                    "sentids": [],
                    "filename": name,
                    "imgid": number,
                    "split": split,
                    "sentences": sentences(*texts, first=100 * number),
                    "cocoid": 391895 + number,
                }
                for number, (name, split, texts) in enumerate(pictures)
            ],
            "dataset": "coco",
        },
    )


# ---- Karpathy's splits


def test_coco_of_each_split(data):
    names = [f"COCO_val2014_{n:012d}.jpg" for n in range(3)]
    touch(data.folder, *(f"val2014/{name}" for name in names))
    coco(
        data,
        (names[0], "test", ["A man on a bike.", "A man rides."]),
        (names[1], "restval", ["A dog."]),
        (names[2], "test", ["A cat."]),
    )
    found = open_source("coco_karpathy", data.folder, "test")
    keys = ["dataset_coco/0", "dataset_coco/1", "dataset_coco/200"]
    assert [r.key for r in found] == keys
    assert [r.text for r in found] == ["A man on a bike.", "A man rides.", "A cat."]
    assert found[0].images == (f"{data.folder}/val2014/{names[0]}",)
    assert found[0].image_id == found[1].image_id != found[2].image_id
    assert [r.text for r in open_source("coco_karpathy", data.folder, "restval")] == ["A dog."]
    with pytest.raises(ValueError, match=r"split 'val'.*: restval, test"):
        open_source("coco_karpathy", data.folder, "val")


def test_repeated_and_empty_captions_are_counted(data):
    touch(data.folder, "images/val2014/a.jpg", "images/val2014/b.jpg", "images/val2014/c.jpg")
    coco(
        data,
        ("a.jpg", "val", ["A dog.", "A cat.", "A dog.", " "]),
        ("b.jpg", "val", []),
        # Another picture may say the same.
        ("c.jpg", "val", ["A dog."]),
    )
    found = open_source("coco_karpathy", data.folder, "val")
    # The first of equal captions stays, so that every process has the same order.
    assert [r.text for r in found] == ["A dog.", "A cat.", "A dog."]
    assert [r.key.rpartition("/")[2] for r in found] == ["0", "1", "200"]
    assert found.counts == {
        "repeated captions": 1,
        "empty captions": 1,
        "pictures without captions": 1,
    }


def test_flickr30k_has_no_paths(data):
    touch(data.folder, "flickr30k-images/1000092795.jpg")
    content = {
        "images": [
            {
                "sentids": [0],
                "imgid": 0,
                "sentences": sentences("Two young guys."),
                "split": "train",
                "filename": "1000092795.jpg",
            }
        ],
        "dataset": "flickr30k",
    }
    data("dataset_flickr30k.json", content)
    (record,) = open_source("flickr30k_karpathy", data.folder, "train")
    assert record.images == (f"{data.folder}/flickr30k-images/1000092795.jpg",)
    # Where the file is named, it may be in a folder of its own.
    (data.folder / "karpathy").mkdir()
    (data.folder / "dataset_flickr30k.json").rename(data.folder / "karpathy/dataset_flickr30k.json")
    assert open_source("flickr30k_karpathy", data.folder, "train")[0].images == record.images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "DROP"}, r"images\[0\].*'split'"),
        ({"filename": 3}, r"images\[0\].*'filename' 3"),
        ({"sentences": "DROP"}, r"images\[0\].*'sentences'"),
        ({"sentences": ["A dog."]}, r"images\[0\].*'A dog.'.*'sentences'"),
        ({"sentences": [{"raw": "A dog."}]}, r"images\[0\].*'sentid'"),
        ({"sentences": [{"sentid": 1}]}, r"images\[0\].*'raw'"),
    ],
)
def test_entries_that_do_not_fit_are_named(change, message, data):
    entry = {"filename": "a.jpg", "split": "val", "sentences": sentences("A dog.")} | change
    entry = {key: value for key, value in entry.items() if value != "DROP"}
    touch(data.folder, "a.jpg")
    data("dataset_coco.json", {"images": [entry]})
    with pytest.raises(ValueError, match=rf"dataset_coco\.json: {message}"):
        open_source("coco_karpathy", data.folder, "val")


def test_a_missing_image_is_named(data):
    coco(data, ("a.jpg", "val", ["A dog."]))
    with pytest.raises(FileNotFoundError, match=r"images\[0\].*'val2014/a\.jpg'"):
        open_source("coco_karpathy", data.folder, "val")


@pytest.mark.parametrize(
    ("source", "split", "name", "origin"),
    [
        ("coco_karpathy", "train", "dataset_coco.json", "caption_datasets.zip of Karpathy"),
        ("flickr30k_karpathy", "train", "dataset_flickr30k.json", "caption_datasets.zip"),
        (
            "visual_genome",
            "train",
            "region_descriptions.json",
            "official page of Visual Genome",
        ),
        ("sbu", "train", "sbu-captions-all.json", "official page of the SBU"),
        (
            "conceptual_captions",
            "val",
            "Validation_GCC-1.1.0-Validation.tsv",
            "official page of C",
        ),
    ],
)
def test_a_missing_file_is_named_with_where_to_get_it(source, split, name, origin, data):
    with pytest.raises(FileNotFoundError) as error:
        open_source(source, data.folder, split)
    message = str(error.value)
    assert str(data.folder) in message and name in message
    assert f"from {origin}" in message or f"from the {origin}" in message
    assert "fiber data" not in message


# ---- Visual Genome


def test_phrases_of_regions_are_captions(data):
    touch(data.folder, "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    region = {"x": 1, "y": 2, "width": 3, "height": 4}
    content = [
        {
            "id": 1,
            "regions": [
                {"region_id": 1382, "image_id": 1, "phrase": "the clock is green", **region},
                {"region_id": 1383, "image_id": 1, "phrase": "", **region},
            ],
        },
        {"id": 2, "regions": [{"region_id": 9, "image_id": 2, "phrase": "a tree", **region}]},
    ]
    data("region_descriptions.json", content)
    found = open_source("visual_genome", data.folder, "train")
    assert [(r.key, r.text) for r in found] == [
        ("region_descriptions/1382", "the clock is green"),
        ("region_descriptions/9", "a tree"),
    ]
    assert found[1].images == (f"{data.folder}/VG_100K_2/2.jpg",)
    assert found.counts == {"empty captions": 1}
    with pytest.raises(ValueError, match=r"split 'val'.*: train"):
        open_source("visual_genome", data.folder / "region_descriptions.json", "val")
    data("region_descriptions.json", [{"id": 1, "regions": [{"region_id": 3}]}])
    with pytest.raises(ValueError, match=r"entries\[0\].*'phrase'"):
        open_source("visual_genome", data.folder, "train")
    data("region_descriptions.json", {"images": []})
    with pytest.raises(
        ValueError, match=r"must contain a JSON array, got .*'images'.*\(read as Visual Genome"
    ):
        open_source("visual_genome", data.folder, "train")


# ---- lists of addresses


def test_sbu_lists(data):
    touch(data.folder, "4385058960_b0f291553e.jpg", "00000/000000002.jpg")
    content = {
        "image_urls": [
            "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
            "http://static.flickr.com/1/gone.jpg",
            "http://static.flickr.com/1/other.jpg",
        ],
        "user_ids": ["a", "b", "c"],
        "captions": ["a wooden chair", "gone", "a dog"],
    }
    data("sbu-captions-all.json", content)
    found = open_source("sbu", data.folder, "train")
    assert [(r.key, r.text) for r in found] == [
        ("sbu-captions-all/0", "a wooden chair"),
        ("sbu-captions-all/2", "a dog"),
    ]
    assert found[0].images == (f"{data.folder}/4385058960_b0f291553e.jpg",)
    assert found[1].images == (f"{data.folder}/00000/000000002.jpg",)
    assert found.counts == {"pictures that are missing": 1}
    data("sbu-captions-all.json", content | {"captions": ["a"]})
    with pytest.raises(ValueError, match=r"3 'image_urls'.*1 'captions'"):
        open_source("sbu", data.folder, "train")
    data("sbu-captions-all.json", {"captions": ["a"]})
    with pytest.raises(ValueError, match=r"file.*'image_urls'"):
        open_source("sbu", data.folder, "train")


def test_paths_with_captions(data):
    """The form that the published code takes SBU and Conceptual Captions in."""
    touch(data.folder, "a/1.jpg")
    rows = [["a/1.jpg", "a dog"], ["a/2.jpg", "gone"]]
    for name, source in (
        ("annot.json", "sbu"),
        ("train_annot.json", "conceptual_captions"),
    ):
        data(name, rows)
        found = open_source(source, data.folder, "train")
        assert [r.images for r in found] == [(f"{data.folder}/a/1.jpg",)]
        assert found.counts == {"pictures that are missing": 1}
        data(name, [["a/1.jpg"]])
        with pytest.raises(ValueError, match=r"entry 0.*\[path, caption\]"):
            open_source(source, data.folder, "train")


@pytest.mark.parametrize("header", ["", "caption\turl\n"], ids=["original", "with a header"])
def test_conceptual_captions(header, data):
    touch(data.folder, "images/00000/000000000.jpg", "images/mine/3.jpg")
    rows = [
        "a very typical bus station\thttp://lh6.ggpht.com/a.jpg",
        "gone\thttp://x/y.jpg",
        "a dog\tmine/3.jpg",
    ]
    path = data("Train_GCC-training.tsv", header + "\n".join(rows) + "\n")
    found = open_source("conceptual_captions", data.folder, "train")
    assert [(r.key, r.text) for r in found] == [
        ("Train_GCC-training/0", "a very typical bus station"),
        ("Train_GCC-training/2", "a dog"),
    ]
    assert found[0].images == (f"{data.images}/00000/000000000.jpg",)
    assert found.counts == {"pictures that are missing": 1}
    path.write_text(header + "one column\n")
    line = 2 if header else 1
    with pytest.raises(ValueError, match=rf"\.tsv: line {line}.*1"):
        open_source("conceptual_captions", data.folder, "train")
    with pytest.raises(FileNotFoundError, match=r"split 'test'.*train"):
        open_source("conceptual_captions", data.folder, "test")


def test_rows_are_named_as_img2dataset_does():
    assert caption_files.row_name(120345) == "00012/000120345.jpg"


def test_a_set_without_any_image_is_refused(data):
    data("Train_GCC-training.tsv", "a dog\thttp://x/y.jpg\n")
    with pytest.raises(FileNotFoundError, match=r"none.*1 (picture|image)s"):
        open_source("conceptual_captions", data.folder, "train")
    data("sbu-captions-all.json", json.dumps({"image_urls": [], "captions": []}))
    assert open_source("sbu", data.folder, "train") == []
