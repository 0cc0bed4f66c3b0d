"""What data hold is counted, and what is broken is named, by its kind."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fiber.data.datasets.resolve import open_source
from fiber.data.image_file import check_image, extension_of
from fiber.data.tools.discover import kinds_of, parts_of
from fiber.data.tools.inspect import Bar, histogram, inspect
from fiber.data.tools.pack import pack
from fiber.visualize import ContactSheet
from tests.data.shards import picture, write_tar


def encoded(form, size=(40, 30), **options):
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], []),
        ([3], [Bar(3, 3, 1)]),
        ([0, 1, 1.9, 4], [Bar(0, 0, 1), Bar(1, 1, 2), Bar(2, 2, 0), Bar(3, 3, 0), Bar(4, 4, 1)]),
        ([9, 10, 1009], [Bar(0, 199, 2), Bar(200, 399, 0), Bar(400, 599, 0), Bar(600, 799, 0)]),
    ],
)
def test_histogram(values, bars):
    found = histogram(values)
    assert found[:4] == bars[:4] and len(found) <= 8
    assert sum(bar.number for bar in found) == len(values)


JPEG, PNG = encoded("JPEG"), encoded("PNG")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (JPEG, "ok"),
        (PNG, "ok"),
        (encoded("WEBP"), "ok"),
        (b"", "corrupt"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "corrupt"),
        (encoded("WEBP", lossless=True)[:900], "corrupt"),
        (PNG[:60] + b"\0" * 40 + PNG[100:], "corrupt"),
        (b"no picture at all", "corrupt"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "unsupported"),
    ],
    ids=[
        *("jpeg", "png", "webp", "empty", "half jpeg", "half png", "part of webp"),
        *("png with zeros", "words", "heic"),
    ],
)
def test_status_of_a_picture(data, status, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    for stored in (data, str(path), path):
        checked = check_image(stored)
        assert checked.status == status, checked
        assert checked.size == ((30, 40) if status == "ok" else None)
        assert bool(checked.reason) == (status != "ok") and str(path) not in checked.reason
        is_cut = data in (PNG[: len(PNG) // 2], encoded("WEBP", lossless=True)[:900])
        assert checked.reason.endswith("; the end of the file is missing") is is_cut
    path.unlink()
    assert check_image(path).status == "missing"
    assert check_image(tmp_path).status == "missing"


def test_endings_by_content():
    assert [
        extension_of(encoded(form)) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    ] == [*("jpg", "png", "webp", "gif", "bmp", "tif")]
    assert extension_of(b"") == extension_of(b"words") == "bin"


@pytest.fixture
def boxes(data):
    """A folder in COCO's format with three pictures, one of them of another size."""
    for number, size in enumerate([(40, 30), (40, 30), (30, 40)]):
        Image.new("RGB", size, (60, 90, 120)).save(f"{data.images}/{number}.png")
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 3, 9 + i, 9]} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "star"}],
    }
    data("instances_train.json", coco)
    data("captions_train.json", {**coco, "annotations": [{"id": 1, "image_id": 0, "caption": "x"}]})
    return data


def test_sizes_that_annotations_tell_wrongly(boxes):
    report = inspect(boxes.folder)
    (pictures,) = report.images
    assert pictures.statuses == {"ok": 3}
    name = f"{boxes.images}/2.png"
    assert pictures.other_sizes == [{"picture": name, "size": [40, 30], "annotated": [30, 40]}]
    assert report.faults == [
        f"image {name} is 30 x 40 pixels, but its annotation says 40 x 30 (transposed), so"
        " its boxes do not fit"
    ]
    told = report.to_dict()
    assert told["pictures"][0]["other_sizes"] == [
        {"picture": name, "size": [40, 30], "annotated": [30, 40]}
    ]
    assert json.loads(json.dumps(told)) == told


def write_lines(folder, *lines: dict) -> None:
    (folder / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_boxes_outside_of_their_picture(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    labels = ["thing", "thing"]
    write_lines(
        tmp_path,
        {"image": "a.jpg", "boxes_xyxy": [[2, 3, 90, 33], [1, 1, 5, 5]], "labels": labels},
        {"image": "a.jpg", "boxes_xyxy": [[-1, 0, 64.5, 48.25], [1, 1, 5, 5]], "labels": labels},
    )
    report = inspect(tmp_path)
    assert report.images[0].statuses == {"ok": 1}
    assert report.faults == [
        "record 'train/1': a box exceeds its image of 64 x 48 pixels by 26 pixels; expected at most"
        " 1"
    ]
    told = report.to_dict()["pictures"][0]["boxes_outside"]
    assert [(each["record"], each["size"], each["pixels"]) for each in told] == [
        ("train/1", [48, 64], 26)
    ]


def test_every_record_of_a_picture_is_compared_also_in_a_pack(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    box = {"boxes_xyxy": [[1, 1, 5, 5]], "labels": ["thing"]}
    write_lines(
        tmp_path,
        {"image": "a.jpg", "text": "a cup"},
        {"image": "a.jpg", **box, "width": 64, "height": 48},
        {"image": "a.jpg", **box, "width": 100, "height": 100},
    )
    pack(tmp_path, tmp_path / "packed")
    for source in (tmp_path / "train.jsonl", tmp_path / "packed"):
        report = inspect(source)
        assert report.images[0].statuses == {"ok": 1}, source
        assert [fault.split("but its")[1] for fault in report.faults] == [
            " annotation says 100 x 100, so its boxes do not fit"
        ], source


def test_counts_of_a_folder(boxes):
    report = inspect(boxes.folder)
    by_source = {part.source: part.to_dict() for part in report.parts}
    assert by_source["captions"]["records"] == 1
    assert by_source["captions"]["left_out"] == {"pictures without captions": 2}
    found = by_source["detection"]
    assert found["classes"] == {"mug": 3, "star": 0}
    assert found["boxes"] == {
        "boxes": 3,
        "records_without": 0,
        "per_record_median": 1,
        "per_record_most": 1,
        "side_pixels_median": 9.5,
        "small": 3,
        "medium": 0,
        "large": 0,
    }
    assert found["words"] == [{"first": 2, "last": 2, "number": 3}]


def test_what_is_broken_is_named_by_its_kind(boxes):
    (boxes.folder / "images/0.png").write_bytes(PNG[:300])
    (boxes.folder / "images/1.png").unlink()
    (boxes.folder / "captions_train.json").write_text("{")
    report = inspect(boxes.folder)
    assert report.images[0].statuses == {"corrupt": 1, "missing": 1, "ok": 1}
    assert f"image {boxes.images}/1.png does not exist" in report.faults
    assert any(f"image {boxes.images}/0.png is corrupt: " in fault for fault in report.faults)
    assert "captions_train.json is not valid JSON" in report.faults[0]


def test_pictures_of_shards_are_looked_at_once(tmp_path):
    both = b'{"caption": "a dog", "question": "what?", "answer": "dog"}'
    members = [("a.png", picture(1)), ("a.json", both), ("b.png", PNG[:200]), ("b.json", both)]
    report = inspect(write_tar(tmp_path / "val-0.tar", members))
    assert [(part.source, part.split, part.records) for part in report.parts] == [
        ("captions", "val", 2),
        ("questions", "val", 2),
    ]
    assert report.images[0].statuses == {"ok": 1, "corrupt": 1}
    assert "image of record 'val-0/b' is corrupt: " in report.faults[0]


def test_a_packed_folder_is_as_its_source(scenes_folder, tmp_path):
    pack(scenes_folder, tmp_path / "packed")
    before, after = inspect(scenes_folder).to_dict(), inspect(tmp_path / "packed").to_dict()
    assert before.pop("source") != after.pop("source")
    assert before == after and before["faults"] == []


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("captions_train.json", {"captions"}),
        ("flickr_train.json", {"phrases"}),
        ("refcoco_train.json", {"referring"}),
        ("vqa_questions_train.json", {"questions"}),
        ("instances_train.json", {"detection"}),
        ("nlvr2_train.jsonl", {"reasoning"}),
        ("winoground_train.jsonl", {"swapped"}),
    ],
)
def test_single_files(name, kinds, scenes_folder, tmp_path):
    assert {part.source for part in parts_of(scenes_folder / name)} == kinds
    # Under a name that says nothing it is told by what is in it.
    other = tmp_path / f"refcoco_mine{name[-6:].lstrip('n')}" if "ref" in name else tmp_path / "m"
    other = other.with_suffix("." + name.rpartition(".")[2])
    shutil.copy(scenes_folder / name, other)
    assert kinds_of(other) == kinds


def test_files_of_ones_own(data):
    (data.folder / "1.png").write_bytes(picture(1))
    text, question = {"text": "a"}, {"question": "b?", "answer": "c"}
    lines = [{"image": "1.png", **rest} for rest in (text, question)]
    both = ["captions", "questions"]
    assert [p.source for p in parts_of(data("mine.jsonl", lines))] == both
    assert [p.source for p in parts_of(data("mine.json", json.dumps(lines)))] == both
    table = data("mine.csv", "image,question,answer\n1.png,what?,a dog\n")
    assert [part[:2] for part in parts_of(table)] == [("questions", "train")]
    split = [{**line, "split": "val"} for line in lines[:1]]
    assert [part[:2] for part in parts_of(data("s.jsonl", split))] == [("captions", "val")]
    data("train.json", json.dumps(lines[:1]))
    assert [part[:2] for part in parts_of(data.folder)] == [("captions", "train")]


def test_splits_of_karpathy(data):
    (data.folder / "1.png").touch()
    images = [
        {"filename": "1.png", "split": split, "sentences": [{"raw": split, "sentid": 1}]}
        for split in ("train", "test")
    ]
    path = data("dataset_coco.json", {"images": images})
    for source in (path, data.folder):
        assert [part[:2] for part in parts_of(source)] == [
            ("captions", "train"),
            ("captions", "test"),
        ]
        assert [r.text for part in parts_of(source) for r in part.open()] == ["train", "test"]


def test_several_forms_are_looked_into_by_their_names(data):
    (data.folder / "1.png").touch()
    images = [{"filename": "1.png", "split": "val", "sentences": [{"raw": "x", "sentid": 1}]}]
    for name in ("dataset_coco.json", "dataset_flickr30k.json"):
        data(name, {"images": images})
    assert [part[:2] for part in parts_of(data.folder) if part.split == "val"] == [
        ("coco_karpathy", "val"),
        ("flickr30k_karpathy", "val"),
    ]


def test_nothing_that_is_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        parts_of(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"has no known annotation files; it is empty.*train\.jsonl"
    ):
        parts_of(tmp_path)
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"a\.json.*records"):
        parts_of(tmp_path / "a.json")
    write_tar(tmp_path / "none.tar", [])
    with pytest.raises(ValueError, match=r"none\.tar.*none.*(picture|image)"):
        parts_of(tmp_path / "none.tar")


def test_a_table_without_the_columns_is_answered_with_both(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(arrow.table({"a": [1], "b": ["x"]}), tmp_path / "train-0.parquet")
    message = (
        "its fields are a, b; expected an image in 'image' or 'image_path' or 'file_name', and"
        " captions in 'caption' or"
    )
    for data in (tmp_path / "train-0.parquet", tmp_path):
        with pytest.raises(ValueError, match=rf"train-0\.parquet: {message}"):
            parts_of(data)


def test_lines_of_ones_own_that_say_nothing_are_read_for_what_is_wrong(tmp_path):
    path = tmp_path / "mine.csv"
    for content, message in (
        (b"", r"mine\.csv is empty; expected a comma-separated UTF-8 table"),
        (b"image,wrong\na,b\n", r"mine\.csv: line 1 has unknown field 'wrong'"),
        (
            b"image,text\n\xff,b\n",
            r"mine\.csv is not UTF-8 text .* expected a comma-separated UTF-8 table",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            [part.open() for part in parts_of(path)]


def test_a_contact_sheet_shows_boxes_and_faults(boxes):
    (boxes.folder / "images/0.png").unlink()
    sheet = ContactSheet()
    with pytest.raises(ValueError, match="no record can be read"):
        sheet.draw()
    for part in parts_of(boxes.folder):
        sheet.add(part, part.open())
    image = np.asarray(sheet.draw())
    # Colours of the pictures, of their boxes' labels, of the field of the one that is missing.
    for color in ((60, 90, 120), (230, 25, 75), (235, 235, 235)):
        assert (image == color).all(2).sum() > 300
    assert open_source("detection", boxes.folder, "train")[1].image_size == (30, 40)
