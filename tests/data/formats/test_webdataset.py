"""Samples of tar shards: as `webdataset` groups them, read in any order."""

import json
import random

import pytest

from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.data.skip_report import skip_counts, skip_lines
from tests.data.shards import picture, write_tar


def sample(name, shade, text=None, end="png", **fields):
    form = {"jpg": "JPEG", "webp": "WEBP"}.get(end, "PNG")
    members = [(f"{name}.{end}", picture(shade, form))]
    if text is not None:
        members.append((f"{name}.txt", text.encode()))
    if fields:
        members.append((f"{name}.json", json.dumps(fields).encode()))
    return members


def test_captions_of_a_folder_of_shards(tmp_path):
    write_tar(tmp_path / "train-000000.tar", sample("a", 10, "ten\n") + sample("b", 20, "twenty"))
    write_tar(tmp_path / "train-000001.tar", sample("a", 30, "thirty", "jpg"))
    write_tar(tmp_path / "val-000000.tar", sample("z", 90, "ninety", "webp"))
    records = open_source("captions", tmp_path, "train")
    assert [(r.key, r.text) for r in records] == [
        ("train-000000/a", "ten"),
        ("train-000000/b", "twenty"),
        ("train-000001/a", "thirty"),
    ]
    assert list(records[2].images) == [picture(30, "JPEG")]
    assert list(records[0].images) == [picture(10)] and records[0].image_id == "train-000000/a"
    assert [r.text for r in open_source("captions", tmp_path, "train+val")][-1] == "ninety"
    # A shard that is named is read alone.
    (record,) = open_source("captions", tmp_path / "train-000001.tar", "train")
    assert record.text == "thirty"


@pytest.mark.parametrize("name", ["00003.tar", "train.tar", "train/7.tar", "train_12.tar"])
def test_names_of_shards(tmp_path, name):
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / name, sample("a", 10, "ten"))
    assert [r.text for r in open_source("captions", tmp_path, "train")] == ["ten"]
    with pytest.raises(ValueError, match=r"too few images to hold out split 'val': 1"):
        open_source("captions", tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"captions.*split 'test'"):
        open_source("captions", tmp_path, "test")


def test_shards_follow_by_their_numbers(tmp_path):
    write_tar(tmp_path / "val-0.tar", sample("a", 1, "1"))
    for number in (10, 9, 0):
        write_tar(tmp_path / f"train-{number}.tar", sample("a", number, f"{number}"))
    assert [r.text for r in open_source("captions", tmp_path, "train")] == ["0", "9", "10"]


def test_json_next_to_images(tmp_path):
    people = ["dog"] * 3 + ["cat"]
    path = write_tar(
        tmp_path / "t.tar",
        sample("a", 1, "left aside", captions=["one", "two", " "], question="what?", answer="dog")
        + sample("b", 2, question="where?", answers=people, image_id="pic")
        + sample("c", 3, "three"),
    )
    found = open_source("captions", path, "train")
    assert [(r.key, r.text) for r in found] == [
        ("t/a-0", "one"),
        ("t/a-1", "two"),
        ("t/c", "three"),
    ]
    assert found[0].images == found[1].images != found[2].images
    assert skip_counts(found) == {"empty captions": 1, "samples without captions": 1}
    asked = open_source("questions", path, "train")
    assert [(r.text, r.answers) for r in asked] == [
        ("what?", {"dog": 1.0}),
        ("where?", {"dog": 1.0, "cat": 0.6}),
    ]
    assert asked[1].human_answers == tuple(people) and asked[1].image_id == "pic"
    with pytest.raises(ValueError, match=r"t\.tar.*sample.*(picture|image)"):
        open_source("detection", path, "train")


def test_boxes_next_to_images(tmp_path):
    boxes = {"boxes_xyxy": [[1, 2, 20, 22]], "labels": ["mug"], "height": 30, "width": 40}
    path = write_tar(
        tmp_path / "t.tar",
        sample("a", 1, **boxes) + sample("b", 2, objects=[{"bbox": [3, 4, 5, 6], "label": "cup"}]),
    )
    first, second = records = open_source("detection", path, "train")
    assert records.classes == ("cup", "mug") and first.text == "cup. mug"
    assert (first.boxes_xyxy, first.box_labels, first.image_size) == (
        ((1, 2, 20, 22),),
        (1,),
        (30, 40),
    )
    assert (second.boxes_xyxy, second.box_labels) == (((3, 4, 8, 10),), (0,))


def test_skipped_members_are_counted(tmp_path):
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("README", b"no sample"),
            (".hidden", b""),
            *sample("a", 1, "one"),
            ("b.txt", b"no picture"),
            ("c.seg.png", picture(3)),
            ("d/x.y/e.jpg", picture(4, "JPEG")),
            ("d/x.y/e.txt", b"five"),
        ],
    )
    records = open_source("captions", path, "train")
    assert [(r.key, r.text) for r in records] == [("t/a", "one"), ("t/d/x.y/e", "five")]
    assert skip_counts(records) == {"members without an ending": 2, "samples without a picture": 2}
    assert "2 samples without a picture were skipped or changed" in skip_lines(records)


def test_samples_that_are_errors(tmp_path):
    def read(members):
        return open_source("captions", write_tar(tmp_path / "t.tar", members), "train")

    one = sample("a", 1, "one")
    with pytest.raises(ValueError, match=r"t\.tar: duplicate member 'a\.png'"):
        read([one[0], one[0], one[1]])
    with pytest.raises(ValueError, match=r"'a\.json' is not adjacent.*'a'"):
        read([*one, *sample("b", 2, "two"), ("a.json", b"{}")])
    with pytest.raises(ValueError, match=r"t\.tar: member 'a\.txt'.*UTF-8.*'utf-8'"):
        read([one[0], ("a.txt", b"caf\xe9")])
    with pytest.raises(ValueError, match=r"t\.tar: member 'a\.json'.*JSON"):
        read([one[0], ("a.json", b"{")])
    with pytest.raises(
        ValueError, match=r"t\.tar: member 'a\.json'.*JSON object, got a JSON array \[1\]"
    ):
        read([one[0], ("a.json", b"[1]")])
    with pytest.raises(ValueError, match=r"t\.tar: sample 'a'.*'caption' 5"):
        read([one[0], ("a.json", b'{"caption": 5}')])
    with pytest.raises(ValueError, match=r"t\.tar.*extensions cls, ppm"):
        read([("a.cls", b"1"), ("a.ppm", b"")])
    with pytest.raises(ValueError, match=r"t\.tar .*unsafe member name '\.\./b\.txt'"):
        read([*one, ("../b.txt", b"")])
    whole = write_tar(tmp_path / "t.tar", one).read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:600])
    with pytest.raises(ValueError, match=r"member 'a\.png'.*\d+ bytes"):
        open_source("captions", tmp_path / "t.tar", "train")


def test_batches_do_not_depend_on_threads(tmp_path):
    members = [m for i in range(30) for m in sample(f"{i:03}", 8 * i, f"shade {i}")]
    records = open_source("captions", write_tar(tmp_path / "t.tar", members), "train")

    def batches(threads):
        loader = DataLoader(
            records,
            "image_text",
            tokenizer=Tokenizer.train([r.text for r in records], 300),
            transform=ImageTransform.random_resized_crop(16),
            batch_size=8,
            max_tokens=16,
            shuffle=True,
            threads=threads,
        )
        return [(b.keys, b.images.sum(dim=(1, 2, 3)).tolist()) for b in loader.epoch(3)]

    assert batches(1) == batches(4)
    order = list(range(30))
    random.Random(1).shuffle(order)
    for index in order:
        assert list(records[index].images) == [picture(8 * index)]


def test_webdataset_groups_the_same(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    members = [*sample("a.b/c", 1, "one"), *sample("d", 2, "two", "jpg"), ("e.x.PNG", picture(3))]
    path = write_tar(tmp_path / "t.tar", members)
    theirs = {s["__key__"]: set(s) for s in webdataset.WebDataset(str(path), shardshuffle=False)}
    assert theirs["a.b/c"] >= {"png", "txt"} and theirs["d"] >= {"jpg", "txt"}
    records = open_source("captions", path, "train")
    assert [r.key for r in records] == ["t/a.b/c", "t/d"]
    assert set(theirs) == {"a.b/c", "d", "e"}
