"""YOLO and Pascal VOC: the same boxes as in COCO format, and what is wrong with a folder."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from fiber.data.datasets.resolve import open_source
from fiber.data.formats.folders import rows, yaml_file, yolo
from fiber.data.formats.folders.rows import images_in
from fiber.data.formats.folders.voc import read_xml, voc
from fiber.data.formats.folders.yaml_file import read_yaml
from fiber.data.skip_report import classes_of, skip_lines
from fiber.data.tools.discover import parts_of

CLASSES = ["cup", "mug"]
#: Boxes by image, x0, y0, x1, y1 and class.
BOXES = {
    f"{n}.jpg": [(5 + n, 6, 25 + n, 26, n % 2), (30, 8, 60, 40, 0)][: n % 3] for n in range(10)
}
WIDTH, HEIGHT = 64, 48


def images(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)


def yolo_line(box) -> str:
    x0, y0, x1, y1, category = box
    x, y = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT
    return f"{category} {x:.6f} {y:.6f} {(x1 - x0) / WIDTH:.6f} {(y1 - y0) / HEIGHT:.6f}\n"


def write_yolo(root: Path, layout: str, boxes=BOXES, **other: str) -> None:
    places = {
        "roboflow": ("train/images", "train/labels"),
        "ultralytics": ("images/train", "labels/train"),
        "flat": ("images", "labels"),
    }
    pictures, labels = (root / name for name in places[layout])
    images(pictures, boxes)
    labels.mkdir(parents=True)
    for name, own in boxes.items():
        if own:
            (labels / name.replace(".jpg", ".txt")).write_text("".join(map(yolo_line, own)))
    for name, text in other.items():
        (root / name.replace("_", ".")).write_text(text)


def voc_xml(name, boxes, start=1) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[c]}</name><bndbox><xmin>{x0 + start}</xmin>"
        f"<ymin>{y0 + start}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1, c in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def write_voc(root: Path, annotations: str, pictures: str, boxes=BOXES, start=1) -> None:
    images(root / pictures, boxes)
    (root / annotations).mkdir(parents=True, exist_ok=True)
    for name, own in boxes.items():
        path = root / annotations / name.replace(".jpg", ".xml")
        path.write_text(voc_xml(name, own, start))


def write_coco(root: Path) -> None:
    images(root / "images", BOXES)
    names = list(BOXES)
    content = {
        "images": [
            {"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate(names)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": c, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for n, name in enumerate(names)
            for k, (x0, y0, x1, y1, c) in enumerate(BOXES[name])
        ],
    }
    (root / "annotations.json").write_text(json.dumps(content))


def label_studio_task(name, boxes, start="/data/upload/1/0123abcd-"):
    results = [
        {
            "type": "rectanglelabels",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "value": {
                "x": 100 * x0 / WIDTH,
                "y": 100 * y0 / HEIGHT,
                "width": 100 * (x1 - x0) / WIDTH,
                "height": 100 * (y1 - y0) / HEIGHT,
                "rotation": 0,
                "rectanglelabels": [CLASSES[category]],
            },
        }
        for x0, y0, x1, y1, category in boxes
    ]
    own = [{"was_cancelled": True, "result": []}, {"result": results}]
    return {"data": {"image": start + name}, "annotations": own}


def write_label_studio(root: Path, name: str, boxes=BOXES) -> None:
    images(root / "images", boxes)
    (root / name).write_text(json.dumps([label_studio_task(*item) for item in boxes.items()]))


def write_image_folder(root: Path, place: str, boxes=BOXES, names=CLASSES) -> None:
    """Write `objects` with the names of classes, or with numbers and a list of the names."""
    folder = root / place
    images(folder, boxes)
    rows = [
        {
            "file_name": name,
            "objects": {
                "bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1, _ in own],
                "categories": [names[box[4]] if names else box[4] for box in own],
            },
        }
        for name, own in boxes.items()
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines)
    if not names:
        (root / "classes.json").write_text(json.dumps(CLASSES))


NAMES = "nc: 2\nnames: ['cup', 'mug']\n"
FORMATS = {
    "YOLO of Roboflow": lambda root: write_yolo(
        root, "roboflow", data_yaml="train: ../train/images\nval: ../valid/images\n" + NAMES
    ),
    "YOLO of Ultralytics": lambda root: write_yolo(
        root,
        "ultralytics",
        own_yaml="path: .\ntrain: images/train\nnames:\n  0: cup\n  1: mug # x\n",
    ),
    "YOLO of supervision": lambda root: write_yolo(
        root, "flat", data_yaml="names:\n- cup\n- mug\nnc: 2\n"
    ),
    "YOLO of Label Studio": lambda root: write_yolo(root, "flat", classes_txt="cup\nmug\n"),
    "YOLO with a list": lambda root: write_yolo(
        root,
        "flat",
        data_yaml="train: list.txt\n" + NAMES,
        list_txt="".join(f"images/{name}\n" for name in BOXES),
    ),
    "VOC": lambda root: write_voc(root, "Annotations", "JPEGImages"),
    "VOC of Roboflow": lambda root: write_voc(root, "train", "train"),
    "VOC of supervision": lambda root: write_voc(root, "annotations", "images"),
    "Label Studio": lambda root: write_label_studio(root, "project-1-at-2026.json"),
    "image folder": lambda root: write_image_folder(root, "."),
    "image folder of a split": lambda root: write_image_folder(root, "train", names=None),
    "VOC from 0": lambda root: write_voc(
        root, "Annotations", "images", BOXES | {"0.jpg": [(0, 0, 20, 20, 1)]}, 0
    ),
}


def found(records):
    return {
        Path(str(record.images[0])).name: [
            (*box, record.labels[label])
            for box, label in zip(record.boxes_xyxy, record.box_labels, strict=True)
        ]
        for record in records
    }


@pytest.mark.parametrize("layout", FORMATS)
def test_boxes_are_those_of_coco_format(layout, tmp_path):
    write_coco(tmp_path / "coco")
    FORMATS[layout](tmp_path / "other")
    for split in ("train", "val", "train+val"):
        expected = open_source("detection", tmp_path / "coco", split)
        records = open_source("detection", tmp_path / "other", split)
        assert classes_of(records) == classes_of(expected) == ("cup", "mug")
        own, wanted = found(records), found(expected)
        assert own.keys() == wanted.keys()
        for name in set(own) - ({"0.jpg"} if layout == "VOC from 0" else set()):
            assert [box[4] for box in own[name]] == [box[4] for box in wanted[name]]
            for box, other in zip(own[name], wanted[name], strict=True):
                assert box[:4] == pytest.approx(other[:4], abs=0.01)
        said = skip_lines(records)
        assert any("2 of 10 records" in line and "held out as 'val'" in line for line in said)
        assert any("begin at 0" in line for line in said) == (layout == "VOC from 0")
    assert [part[:2] for part in parts_of(tmp_path / "other")] == [
        ("detection", "train"),
        ("detection", "val"),
    ]


def test_copies_of_an_image_are_in_one_split(tmp_path):
    boxes = {f"{n}_jpg.rf.{copy}.jpg": [(5, 6, 25, 26, 0)] for n in range(6) for copy in range(4)}
    write_yolo(tmp_path, "roboflow", boxes, data_yaml="names: [cup, mug]\n")
    photographs = []
    for split in ("train", "val"):
        records = open_source("detection", tmp_path, split)
        names = [Path(records[index].image_id).name for index in range(len(records))]
        photographs.append({name.partition("_jpg")[0] for name in names})
    train, val = photographs
    assert not train & val and len(train | val) == 6


def test_splits_of_a_dataset(tmp_path):
    data = tmp_path / "data.yaml"
    write_yolo(tmp_path, "roboflow", data_yaml="train: train/images\nval: valid/images\n" + NAMES)
    for name in ("images", "labels"):
        (tmp_path / "valid" / name).mkdir(parents=True)
    images(tmp_path / "valid" / "images", ["v.jpg"])
    for path in (tmp_path, data):
        assert len(open_source("detection", path, "train")) == 10
        (record,) = open_source("detection", path, "val")
        assert record.boxes_xyxy == () and record.image_size == (HEIGHT, WIDTH)
        assert {part.split for part in parts_of(path)} == {"train", "val"}
    voc = tmp_path / "voc"
    write_voc(voc, "Annotations", "JPEGImages")
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n2\n")
    (lists / "val.txt").write_text("3 1\n")
    assert list(found(open_source("detection", voc, "train"))) == ["1.jpg", "2.jpg"]
    assert list(found(open_source("detection", voc, "val"))) == ["3.jpg"]


LINES = {
    "0 .5 .5 .1": r"1\.txt: line 1 has 4 columns; expected class",
    "0 .5 .5 .1 .1 .9": "6 columns, a prediction with its confidence",
    "0 .1 .1 .2 .1 .2 .2 .1 .2": "9 columns, an oriented box or a polygon",
    "0 .1 .1 .2 .1 .2 .2": "7 columns, a polygon",
    "2 .5 .5 .1 .1": r"class '2'; expected 0 to 1, as there are 2 names",
    "-1 .5 .5 .1 .1": "class '-1'; expected 0 to 1",
    "0 30 20 10 10": "fractions of the image from 0 to 1, not pixels",
    "0 nan .5 .1 .1": "fractions",
    "cup .5 .5 .1 .1": "five numbers",
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_is_named(line, tmp_path):
    boxes = {"1.jpg": [(1, 2, 30, 40, 0)], "2.jpg": [(1, 2, 30, 40, 0)]}
    write_yolo(tmp_path, "flat", boxes, data_yaml=NAMES)
    (tmp_path / "labels" / "1.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=LINES[line]):
        open_source("detection", tmp_path, "train+val")
    records = open_source("detection", tmp_path, "train+val", on_error="skip")
    assert sum(len(record.boxes_xyxy) for record in records) == 1
    assert any("1 line that is no box" in each or "lines" in each for each in skip_lines(records))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nc: 2\n", "no 'names'.*YOLO.*missing"),
        ("names: [a, b\n", "not valid YAML"),
        ("names: [a, a]\n", "name 'a' in 'names'"),
        ("names: {0: a, 2: b}\n", "names of 0, 2; expected 0 to 1"),
        ("nc: 3\nnames: [a, b]\n", "nc '3', but 2 names"),
        ("names: &x [a, *x]\n", "alias"),
        ("names: " + "[" * 5000 + "\n", "not valid YAML"),
        ("names: " + "[" * 40 + "]" * 40 + "\n", "line 1 has more than 32 levels"),
        ("names: [a, b]\nnames: [a, b]\n", "line 2 has the key 'names' twice"),
        ("names: [a, b]\n[c]: d\n", "line 2 has the key .* is no text"),
        (NAMES + "train: {a: b}\n", r"'train' \{'a': 'b'\}; expected a folder of images"),
        (NAMES + 'val: "a\\0b"\n', "'val'.*; expected a folder of images"),
        (NAMES + "val:\n" + "- images\n" * 1001, "1,001 places of images in 'val'"),
    ],
)
def test_a_wrong_description_is_named(text, said, tmp_path):
    write_yolo(tmp_path, "flat")
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"data.yaml.*{said}"):
        open_source("detection", path, "train")


def test_a_place_of_many_names_is_read_once(tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr(yolo, "images_in", lambda path: listed.append(path) or images_in(path))
    counts = []
    for count in (1, 1000):
        root = tmp_path / str(count)
        places = "".join(f"- {'./' * number}images\n" for number in range(count))
        write_yolo(root, "flat", data_yaml=f"{NAMES}train:\n{places}")
        listed.clear()
        assert len(open_source("detection", root / "data.yaml", "train+val")) == 10
        counts.append(len(listed))
    assert counts[0] == counts[1]


def test_an_image_of_many_files_is_measured_once(tmp_path, monkeypatch):
    write_voc(tmp_path, "Annotations", "images")
    for number in range(10):
        path = tmp_path / "Annotations" / f"{number}.xml"
        path.write_text(re.sub("<size>.*</size>", "", voc_xml(f"{number % 2}.jpg", [])))
    measured = []
    monkeypatch.setattr(rows, "size_of", lambda path: measured.append(path) or (HEIGHT, WIDTH))
    voc(tmp_path, "train", annotations=tmp_path / "Annotations")
    assert sorted(path.name for path in measured) == ["0.jpg", "1.jpg"]


def test_a_list_that_names_an_image_twice(tmp_path):
    write_voc(tmp_path, "Annotations", "JPEGImages")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n\n2\n../Annotations/1\n2\n")
    with pytest.raises(ValueError, match=r"train\.txt: line 4 names '\.\./Annotations/1' again"):
        open_source("detection", tmp_path, "train")
    records = open_source("detection", tmp_path, "train+val", on_error="skip")
    assert sorted(found(records)) == ["1.jpg", "2.jpg"] and len(records) == 2
    assert any("names of images that are listed again" in line for line in skip_lines(records))


def test_a_yaml_of_too_many_values_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "data.yaml"
    path.write_text("names:\n- a\n- b\n")
    # Two names, the list, its key and the whole.
    monkeypatch.setattr(yaml_file, "_MAX_VALUES", 5)
    assert read_yaml(path) == {"names": ["a", "b"]}
    monkeypatch.setattr(yaml_file, "_MAX_VALUES", 4)
    with pytest.raises(ValueError, match=r"data\.yaml: line 4 has more than 4 values"):
        read_yaml(path)


def test_a_yaml_of_another_tool_is_no_dataset(tmp_path):
    (tmp_path / "config.yaml").write_text("model: small\nsteps: 3\n")
    assert read_yaml(tmp_path / "config.yaml") == {"model": "small", "steps": "3"}
    with pytest.raises(FileNotFoundError, match="no detection for split 'train'"):
        open_source("detection", tmp_path, "train")
    with pytest.raises(ValueError, match=r"config\.yaml is not a detection file"):
        open_source("detection", tmp_path / "config.yaml", "train")


def test_labels_without_names_say_what_is_missing(tmp_path):
    write_yolo(tmp_path, "flat")
    with pytest.raises(FileNotFoundError, match=r"YOLO.*missing: the names of the classes"):
        open_source("detection", tmp_path, "train")


def test_labels_without_an_image_are_named(tmp_path):
    write_yolo(tmp_path, "flat", data_yaml=NAMES)
    (tmp_path / "images" / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4\.txt has no image"):
        open_source("detection", tmp_path, "train")
    assert len(open_source("detection", tmp_path, "train+val", on_error="skip")) == 9


def test_two_formats_in_one_folder_are_named(tmp_path):
    write_coco(tmp_path)
    write_yolo(tmp_path, "flat", data_yaml=NAMES)
    with pytest.raises(ValueError, match=r"several formats.*annotations\.json.*data\.yaml"):
        open_source("detection", tmp_path, "train")
    (tmp_path / "annotations.json").unlink()
    write_voc(tmp_path, "Annotations", "images")
    with pytest.raises(ValueError, match="several layouts"):
        open_source("detection", tmp_path, "train")


OBJECTS = {
    "<robndbox/>": "oriented box",
    "<polygon/>": "a polygon",
    "": "no box",
    "<bndbox><xmin>a</xmin></bndbox>": "xmin 'a'",
    "<bndbox><xmin>inf</xmin></bndbox>": "xmin 'inf'",
}


@pytest.mark.parametrize("inner", OBJECTS)
def test_a_wrong_object_is_named(inner, tmp_path):
    write_voc(tmp_path, "Annotations", "images")
    path = tmp_path / "Annotations" / "1.xml"
    path.write_text(
        voc_xml("1.jpg", []).replace("</size>", f"</size><object><name>cup</name>{inner}</object>")
    )
    with pytest.raises(ValueError, match=rf"1\.xml: object 0 .*{OBJECTS[inner]}"):
        open_source("detection", tmp_path, "train")
    assert len(open_source("detection", tmp_path, "train+val", on_error="skip")) == 10


def test_a_missing_image_of_voc_is_named(tmp_path):
    write_voc(tmp_path, "Annotations", "images")
    (tmp_path / "images" / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4\.xml: its image '4\.jpg' is not in"):
        open_source("detection", tmp_path, "train")


LAUGHS = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
HOSTILE = {
    "entities": f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><annotation>&a9;</annotation>',
    "outside": '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>',
    "deep": "<annotation>" + "<a>" * 100_000,
    "open": "<annotation>",
    "other": "<html/>",
    "entity": "<annotation>&a;</annotation>",
    # Codecs of Python's, of which expat asks for every byte.
    "multi-byte": '<?xml version="1.0" encoding="utf-7"?><annotation/>',
    "no text": '<?xml version="1.0" encoding="rot13"?><annotation/>',
    "long": "<annotation>" + " " * (1 << 22) + "</annotation>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_annotation_is_refused(kind, tmp_path):
    for encoding in ("utf-8", "utf-16"):
        path = tmp_path / "1.xml"
        path.write_bytes(HOSTILE[kind].encode(encoding))
        with pytest.raises(ValueError, match=r"1\.xml"):
            read_xml(path)
