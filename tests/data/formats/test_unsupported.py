"""Data that are not read: what is said of them, and mistakes in those that are."""

import pytest

from fiber.data.datasets.resolve import check_records, open_source
from fiber.data.record import Record
from fiber.data.tools.discover import parts_of

VOC = "<?xml version='1.0'?>\n<annotation>\n<filename>1.jpg</filename></annotation>"
YOLO = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['mug']\n"
LABEL = "0 0.5 0.5 0.1 0.2\n"
METADATA = '{"file_name": "1.jpg", "prompt": "a mug"}\n'
BOXES = r".*boxes of classes only \(source detection; see docs/data\.md\)"
NAMES = r".*missing: the names of the classes, in data\.yaml .*or in classes\.txt"
#: Files of a folder by name, and what is said of it.
LAYOUTS = {
    "YOLO of Roboflow": ({"data.yaml": YOLO, "train/labels/1.txt": LABEL}, "YOLO" + BOXES),
    "YOLO of Ultralytics": ({"labels/train/1.txt": LABEL, "images/1.jpg": ""}, "YOLO" + NAMES),
    "YOLO, labels only": ({"labels/1.txt": LABEL, "labels/notes.txt": "mug"}, "YOLO" + NAMES),
    "VOC": ({"Annotations/1.xml": VOC, "JPEGImages/1.jpg": ""}, "Pascal VOC" + BOXES),
    "VOC of Roboflow": ({"train/1.xml": VOC, "train/1.jpg": ""}, "Pascal VOC" + BOXES),
    "ImageFolder": (
        {"metadata.jsonl": METADATA, "1.jpg": ""},
        r"metadata\.jsonl .*missing: texts \(.*; its fields are file_name, prompt$",
    ),
    "ImageFolder of splits": (
        {"train/metadata.csv": "name,text\n1.jpg,a mug\n"},
        r"train/metadata\.csv .*missing: a field 'file_name'; its fields are name, text$",
    ),
    "COCO of another name": (
        {"boxes/x.txt": "", "mine.json": '{"images": [], "annotations": []}'},
        r"mine\.json is in COCO format.*name it annotations\.json",
    ),
    "COCO results": (
        {"train/seen.json": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'},
        r"train/seen\.json looks like results in COCO format, .*missing: the file of the images",
    ),
    "JSON-MIN": (
        {"export.json": '[{"image": "1.jpg", "label": [{"rectanglelabels": ["a"]}]}]'},
        'export it as "JSON"',
    ),
    "CreateML": (
        {"train/_annotations.createml.json": '[{"annotations": [{"coordinates": {"x": 1}}]}]'},
        "in CreateML format; export the boxes as COCO",
    ),
    "LabelMe": ({"1.json": '{"version": "5", "shapes": []}', "1.jpg": ""}, "LabelMe.*polygons"),
    "VIA": ({"boxes.json": '{"_via_settings": {}}'}, "VIA format; export"),
    "CSV of boxes": (
        {"_annotations.csv": "filename,class,xmin,ymin,xmax,ymax\n"},
        "a box a line, as of TensorFlow",
    ),
    "TFRecord": ({"train/a.tfrecord": ""}, "train has TFRecord files; export"),
    "Pascal VOC without boxes": (
        {"JPEGImages/1.jpg": "", "ImageSets/Main/train.txt": "1"},
        r"looks like Pascal VOC, of which one thing is missing: the boxes, in Annotations/\*\.xml",
    ),
    "images alone": ({"1.jpg": "", "2.PNG": ""}, "has images, .*missing: what is in them"),
    "images by class": (
        {"train/cat/1.jpg": "", "train/dog/2.jpg": ""},
        r"train has a folder of images for each class \(cat, dog\), as for classification",
    ),
    "save_to_disk": (
        {"dataset_info.json": "{}", "state.json": "{}", "data-00000-of-00001.arrow": ""},
        r"save_to_disk.*to_parquet\('train\.parquet'\)",
    ),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_in_a_known_format_is_answered_with_what_to_do(layout, tmp_path):
    files, said = LAYOUTS[layout]
    write(tmp_path, files)
    is_read = layout.startswith("VOC") or "data.yaml" in files
    for source in ("captions",) if is_read else ("captions", "detection"):
        with pytest.raises(
            FileNotFoundError, match=rf"has no {source} for split 'train': .*{said}"
        ):
            open_source(source, tmp_path, "train")
    if is_read:
        assert {part.source for part in parts_of(tmp_path)} == {"detection"}
        return
    with pytest.raises(ValueError, match=said):
        parts_of(tmp_path)


def test_a_file_in_a_known_format_is_answered_with_what_to_do(tmp_path):
    write(tmp_path, {"data.yaml": YOLO, "1.xml": VOC, "other.yaml": "a: b\n"})
    with pytest.raises(ValueError, match=rf"data\.yaml .*YOLO{BOXES}"):
        open_source("objects365", tmp_path / "data.yaml", "train")
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: no images of split 'train'; tried"):
        open_source("detection", tmp_path / "data.yaml", "train")
    with pytest.raises(ValueError, match=r"1\.xml .*Pascal VOC.*pass the folder"):
        open_source("detection", tmp_path / "1.xml", "train")
    with pytest.raises(ValueError, match=r"1\.xml.*Pascal VOC.*pass the folder"):
        parts_of(tmp_path / "1.xml")
    with pytest.raises(ValueError, match=r"other\.yaml lacks img, label, labelmap; .*got a$"):
        open_source("objects365", tmp_path / "other.yaml", "train")


def test_a_file_with_a_name_of_its_own_is_pointed_at(tmp_path):
    write(tmp_path, {"mine.jsonl": '{"image": "1.jpg", "text": "a mug"}\n', "1.jpg": ""})
    with pytest.raises(ValueError, match=r"mine\.jsonl has captions; pass .*name it train\.js"):
        parts_of(tmp_path)
    write(tmp_path, {"mine.jsonl": '{"image": "1.jpg", "caption": "a mug"}\n'})
    with pytest.raises(ValueError, match=r"unknown field 'caption'; did you mean 'text'\?"):
        parts_of(tmp_path)
    # Files of other splits and sources are no near misses.
    write(tmp_path, {"instances_test.json": '{"images": [], "annotations": []}'})
    with pytest.raises(FileNotFoundError, match=r"for split 'train'; available splits: test"):
        open_source("detection", tmp_path, "train")


@pytest.mark.parametrize(
    "files",
    [
        {"labels/1.txt": "a mug\n"},
        {"Annotations/1.xml": VOC, "Sentences/1.txt": ""},
        {"a.yaml": "names: x\n"},
        {"metadata.jsonl.gz": "[3]"},
        {"1.xml": "<html></html>"},
        {"dataset_info.json": "{}"},
        {"labels/1.txt": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")},
    ],
    ids=range(7),
)
def test_other_folders_are_not_taken_for_these_formats(files, tmp_path):
    write(tmp_path, files)
    with pytest.raises(FileNotFoundError, match=r"for split 'train'; it has .*instead of the fold"):
        open_source("captions", tmp_path, "train")


def test_an_object_without_a_first_item_is_refused():
    class Keyed(dict):
        pass

    with pytest.raises(
        TypeError, match=r"data: expected x; got Keyed, of which \[0\] fails with Key"
    ):
        check_records(Keyed(a=1), "data: expected x")
    check_records([Record(key="1", images=("1.jpg",), text="a")], "data")
    check_records([], "data")


# ---- boxes


SIZE = {"width": 640, "height": 480}


def coco(*boxes):
    return {
        "images": [{"id": 1, "file_name": "1.png", **SIZE}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "mug"}],
    }


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_normalized_boxes_are_named(data, on_error):
    (data.folder / "1.png").touch()
    boxes = [[0.5, 0.5, 0.1, 0.2], [0, 0, 1, 1]]
    line = {
        "image": "1.png",
        "labels": ["mug"] * 2,
        "boxes_xyxy": [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]],
    }
    for name, content, place in (
        ("a.json", coco(*boxes), r"annotations\[0\] has 'bbox' \[0\.5, 0\.5, 0\.1, 0\.2\]"),
        ("mine.jsonl", [line, line], "line 1 has box .* 4 of 4 "),
        ("b.jsonl", [{**line, "boxes_xyxy": [], "labels": []}, line], "line 2 has box .* 2 of 2 "),
    ):
        path = data(name, content)
        with pytest.raises(ValueError, match=rf"{name}: {place}.*normalized.*pixels.*multiply"):
            open_source("detection", path, "train", on_error=on_error)
    # Boxes in pixels are enough, and boxes of whole numbers may be of one pixel.
    for boxes in (
        [[0.5, 0.5, 0.1, 0.2], [0, 0, 9, 9]],
        [[0, 0, 1, 1]],
        [[0.5, 0.5, 1.2, 1.2]],
        [[0.5, 0.5, 0.1, 0.2], *[[100.5, 7, 0.5, 30]] * 2],
        [*[[0.5, 0.5, 0.1, 0.2]] * 9, [2.5, 1, 3, 3]],
        [],
    ):
        found = open_source("detection", data("a.json", coco(*boxes)), "train", on_error=on_error)
        assert found.counts.get("empty boxes", 0) == len(boxes) - len(found[0].boxes_xyxy)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    "stray", [[0.2, 0.1, 1.01, 0.9], [-0.0001, 0.1, 0.9, 0.9], [0.1, 0.1, 37, 0.2], [2, 2, 9, 9]]
)
def test_normalized_boxes_are_named_with_a_stray_value(stray, data, on_error):
    (data.folder / "1.png").touch()
    # A box that is large in pixels is an exception only among many.
    usual = [[0.1, 0.1, 0.5, 0.5]] * (10 if min(stray[2:]) > 1 else 1)
    boxes = [stray, *usual]
    line = {"image": "1.png", "labels": ["mug"] * len(boxes), "boxes_xyxy": boxes}
    path = data("a.json", coco(*boxes))
    with pytest.raises(ValueError, match=rf"a\.json: annotations\[\d\].* of {len(boxes)} .*norm"):
        open_source("detection", path, "train", on_error=on_error)
    for name, content in (
        ("a.jsonl", [line]),
        ("b.jsonl", [{**line, "labels": ["mug"], "boxes_xyxy": [box]} for box in boxes]),
    ):
        with pytest.raises(ValueError, match=rf"{name}: line \d has box .*normalized"):
            open_source("detection", data(name, content), "train", on_error=on_error)


def test_corners_in_the_place_of_sizes_are_named(data):
    path = data("a.json", coco([10, 20, 630, 470]))
    (data.folder / "1.png").touch()
    with pytest.raises(ValueError, match=r"annotations\[0\].*box 0.*beyond its image") as error:
        open_source("detection", path, "train")
    said = "[10, 20, 630, 470] would fit as corners [x0, y0, x1, y1], but 'bbox' is [x, y, width, h"
    assert said in str(error.value)
    # Neither these nor those.
    with pytest.raises(ValueError, match="beyond its image") as error:
        open_source("detection", data("a.json", coco([10, 20, 700, 470])), "train")
    assert "fit as corners" not in str(error.value)
    line = {"image": "1.png", "labels": ["mug"], "boxes_xyxy": [[300, 200, 30, 40]]}
    with pytest.raises(
        ValueError, match=r"if it is x, y, width, height, write \[300\.0, 200\.0, 3"
    ):
        open_source("detection", data("mine.jsonl", [line]), "train")


def test_corners_in_the_objects_of_a_table_are_named(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    objects = [{"bbox": [[10.0, 20.0, 630.0, 470.0]], "category": ["mug"]}]
    size = {key: [value] for key, value in SIZE.items()}
    table = arrow.table({"image": [b""], "objects": objects, **size})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 0 has box 0.*would fit as corners"):
        open_source("detection", tmp_path / "a.parquet", "train")
