"""What can go wrong with sources while they are opened and while batches are made of them."""

import json
import os
import shutil

import pytest
from PIL import Image

from fiber.data import DataLoader, ImageTransform, Record, Tokenizer
from fiber.data.datasets.resolve import open_source
from tests.data.shards import picture, write_tar


def loader(records, **options):
    return DataLoader(
        records,
        "image_text",
        tokenizer=Tokenizer.train(["a dog runs"] * 9, 300),
        transform=ImageTransform.squash(16),
        batch_size=2,
        max_tokens=16,
        threads=2,
        prefetch=1,
        **options,
    )


LATIN = "café".encode("latin-1")


@pytest.mark.parametrize(
    ("source", "name", "content"),
    [
        ("captions", "captions_train.json", b'{"images": [], "annotations": ["' + LATIN + b'"]}'),
        ("captions", "train.jsonl", b'{"image": "1.png", "text": "' + LATIN + b'"}\n'),
        ("captions", "train.csv", b"image,text\n1.png," + LATIN + b"\n"),
        ("captions", "mine.json", b'[{"image": "1.png", "text": "' + LATIN + b'"}]'),
        ("captions", "Train_GCC-training.tsv", LATIN + b"\t1.png\n"),
        ("questions", "vqa_questions_train.json", b'{"questions": ["' + LATIN + b'"]}'),
        ("detection", "instances_train.json", b'{"images": ["' + LATIN + b'"]}'),
        ("reasoning", "nlvr2_train.jsonl", b'{"sentence": "' + LATIN + b'"}'),
        ("phrases", "flickr_train.json", b'{"images": ["' + LATIN + b'"]}'),
        ("objects365", "objects365_train.yaml", b"img: " + LATIN),
    ],
)
def test_text_that_is_not_utf_8_names_its_file(source, name, content, data):
    (data.folder / "1.png").write_bytes(picture(1))
    path = data.folder / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*'utf-8'"):
        open_source(source, path, "train")


@pytest.fixture
def lines(tmp_path):
    """Eight pictures with captions."""
    entries = []
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(picture(20 * number))
        entries.append({"image": f"{number}.png", "text": "a dog runs"})
    for split in ("train", "val"):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return tmp_path


def test_an_image_that_vanishes_in_mid_epoch(lines):
    records = open_source("captions", lines, "train")
    batches = loader(records).epoch()
    assert next(batches).keys == ("train/1", "train/2")
    (lines / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"record 'train/8'.*7\.png"):
        list(batches)
    skipping = loader(records, on_error="skip")
    with pytest.warns(RuntimeWarning, match="'train/8'"):
        assert sum(len(batch) for batch in skipping.epoch()) == 7
    ((key, status, reason),) = skipping.skipped
    assert (key, status) == ("train/8", "missing") and str(lines / "7.png") in reason


def samples(count):
    members = []
    for number in range(count):
        members += [(f"{number}.png", picture(9 * number)), (f"{number}.txt", b"a dog runs")]
    return members


def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"record '0'.*'.*/pipe'"):
        list(loader([Record(key="0", images=(str(pipe),), text="a")]))


def test_a_shard_that_vanishes_or_changes_in_mid_epoch(tmp_path):
    path = write_tar(tmp_path / "train.tar", samples(8))
    write_tar(tmp_path / "val.tar", samples(1))
    records = open_source("captions", tmp_path, "train")
    epoch = loader(records).epoch()
    next(epoch)
    # What is open stays readable, as with any file.
    path.unlink()
    assert sum(len(batch) for batch in epoch) == 6
    write_tar(path, samples(9))
    again = open_source("captions", tmp_path, "train")
    write_tar(path, samples(3))
    with pytest.raises(ValueError, match=r"train\.tar.*changed"):
        list(loader(again).epoch())
    skipping = loader(again, on_error="skip")
    with pytest.warns(RuntimeWarning, match="has changed since it was opened"):
        assert sum(len(batch) for batch in skipping.epoch()) == 0
    assert len(skipping.skipped) == 9


def test_a_table_that_is_cut_in_mid_epoch(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "train.parquet"
    columns = {"image": [picture(i) for i in range(6)], "text": ["a dog runs"] * 6}
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    parquet.write_table(arrow.table(columns), tmp_path / "val.parquet")
    records = open_source("captions", tmp_path, "train")
    # Another file under the name: the one that was opened is read to its end.
    other = tmp_path / "other"
    parquet.write_table(arrow.table({"text": ["x"]}), other)
    shutil.move(other, path)
    assert [record.images[0] for record in records] == columns["image"]
    with pytest.raises(ValueError, match="column 'image'"):
        open_source("captions", tmp_path, "train")


def test_annotations_of_another_size_than_the_image(data):
    """It stops the loader, or is counted; see also `fiber data inspect`."""
    Image.new("RGB", (20, 15)).save(f"{data.images}/1.png")
    coco = {
        "images": [{"id": 1, "file_name": "1.png", "height": 30, "width": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [25, 3, 9, 9]}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    data("instances_train.json", coco)
    records = open_source("detection", data.folder, "train")
    assert records[0].image_size == (30, 40)
    batches = DataLoader(
        records,
        "grounding",
        tokenizer=Tokenizer.train(["dog"] * 9, 300),
        transform=ImageTransform.shorter_side([16], 32),
        batch_size=1,
        max_tokens=16,
    ).epoch()
    with pytest.raises(ValueError, match=r"record 'instances_train/1': image_size.*30 x 40"):
        next(batches)
