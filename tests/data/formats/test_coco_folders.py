"""Boxes of classes in folders as people have them: every layout, and the part that is held out."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.formats.coco_folders import coco_detection
from fiber.data.skip_report import classes_of, skip_counts, skip_lines

SIZE = {"height": 40, "width": 60}
CLASSES = [{"id": 1, "name": "mug"}, {"id": 2, "name": "traffic light"}]


def instances(names, classes=CLASSES, boxes=None):
    """COCO instances with one box a picture, of the classes in turn."""
    ids = [entry["id"] for entry in classes]
    return {
        "images": [{"id": i, "file_name": name, **SIZE} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": ids[i % len(ids)], "bbox": [5, 6, 20, 10]}
            for i in range(len(names))
        ]
        if boxes is None
        else boxes,
        "categories": classes,
    }


@dataclass
class Folder:
    """Writes annotations, and empty files in place of images, into a folder."""

    path: Path

    def __call__(self, annotations, content, images=""):
        path = self.path / annotations
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for entry in content["images"]:
            picture = self.path / images / entry["file_name"]
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.touch()
        return path


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


LAYOUTS = {
    "own": ("instances_{}.json", "images", "train", "val"),
    "coco": ("annotations/instances_{}2017.json", "{}2017", "train", "val"),
    "coco-in-images": ("annotations/instances_{}.json", "images/{}", "train", "val"),
    "coco-flat": ("annotations/instances_{}2017.json", "images", "train", "val"),
    "roboflow": ("{}/_annotations.coco.json", "{}", "train", "valid"),
    "odinw": ("{}/annotations_without_background.json", "{}", "train", "mini_val"),
    "fiftyone": ("{}/labels.json", "{}/data", "train", "validation"),
    "beside": ("{}.json", "", "train", "val"),
    "lvis": ("lvis_v1_{}.json", "images", "train", "val"),
    "lvis-published": ("lvis_od_{}.json", "images", "train", "val"),
    "odinw-flat": ("{}_annotations_without_background.json", "", "train", "val"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_splits_of_a_layout(layout, folder):
    file, images, *names = LAYOUTS[layout]
    for split, name in zip(("train", "val"), names, strict=True):
        folder(file.format(name), instances([f"{split}.jpg"]), images.format(name))
    for split, name in zip(("train", "val"), names, strict=True):
        found = open_source("detection", folder.path, split)
        (record,) = found
        assert record.images == (f"{folder.path / images.format(name)}/{split}.jpg",)
        assert record.text == "mug. traffic light" and record.boxes_xyxy == ((5, 6, 25, 16),)
        assert classes_of(found) == ("mug", "traffic light")
        # Nothing is held out of a folder that has both.
        assert skip_lines(found) == []
    both = open_source("detection", folder.path, "train+val")
    assert len(both) == 2 and classes_of(both) == ("mug", "traffic light")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations.json", "images"),
        ("_annotations.coco.json", ""),
        ("annotations/instances_default.json", "images"),
        ("result.json", ""),
        ("labels.json", "data"),
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
    ],
)
def test_without_a_validation_split_a_part_is_held_out(file, images, folder):
    names = [f"{i}.jpg" for i in range(20)]
    path = folder(file, instances(names), images)
    parts = {split: open_source("detection", folder.path, split) for split in ("train", "val")}
    seen = {split: {r.images[0] for r in records} for split, records in parts.items()}
    assert (len(seen["train"]), len(seen["val"])) == (16, 4)
    assert not seen["train"] & seen["val"]
    assert seen["train"] | seen["val"] == {str(folder.path / images / name) for name in names}
    (said,) = skip_lines(parts["train"])
    assert said == skip_lines(parts["val"])[0]
    assert (
        "so 4 of its 20 images, chosen by a hash of their names, are held out as split 'val'"
        in said
    )
    # Records keep their boxes.
    assert all(len(r.boxes_xyxy) == 1 for records in parts.values() for r in records)
    # The file itself is read whole.
    assert len(open_source("detection", path, "train")) == 20
    # Another picture changes the side of few.
    folder(file, instances([*names, "new.jpg"]), images)
    again = {r.images[0] for r in open_source("detection", folder.path, "val")}
    assert len(again & seen["val"]) >= 3


def test_what_fiber_writes_is_never_divided(folder):
    folder("instances_train.json", instances([f"{i}.jpg" for i in range(5)]), "images")
    assert len(open_source("detection", folder.path, "train")) == 5
    with pytest.raises(FileNotFoundError, match=r"detection.*split 'val'"):
        open_source("detection", folder.path, "val")


def test_copies_of_an_image_stay_on_one_side(folder):
    names = [f"{i % 4}_jpg.rf.{i:04d}.jpg" for i in range(20)]
    folder("train/_annotations.coco.json", instances(names), "train")
    sides = [
        {Path(str(r.images[0])).name[0] for r in open_source("detection", folder.path, split)}
        for split in ("train", "val")
    ]
    assert len(sides[0]) == 3 and len(sides[1]) == 1 and not sides[0] & sides[1]


def test_one_image_cannot_be_divided(folder):
    folder("annotations.json", instances(["1.jpg"]), "images")
    with pytest.raises(ValueError, match=r"annotations\.json.*images.*1"):
        open_source("detection", folder.path, "train")


def test_roboflows_supercategory_is_no_class(folder):
    heading = {"id": 0, "name": "vehicles", "supercategory": "none"}
    classes = [{"id": 1, "name": "car", "supercategory": "vehicles"}]
    boxes = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 9, 9]}]
    folder("val/labels.json", instances(["1.jpg"], [heading, *classes], boxes), "val")
    found = open_source("detection", folder.path, "val")
    assert found[0].labels == ("car",)
    assert "is a supercategory without boxes" in skip_lines(found)[0]
    # With a box of its own it is one.
    boxes[0]["category_id"] = 0
    folder("val/labels.json", instances(["1.jpg"], [heading, *classes], boxes), "val")
    assert open_source("detection", folder.path, "val")[0].labels == ("vehicles", "car")
    # So is a group that is in a group itself.
    heading["supercategory"] = "vehicles"
    boxes[0]["category_id"] = 1
    folder("val/labels.json", instances(["1.jpg"], [heading, *classes], boxes), "val")
    assert open_source("detection", folder.path, "val")[0].labels == ("vehicles", "car")
    heading["supercategory"] = "none"
    # A first class of many groups is one too.
    classes[0]["supercategory"] = "other"
    boxes[0]["category_id"] = 1
    folder("val/labels.json", instances(["1.jpg"], [heading, *classes], boxes), "val")
    assert open_source("detection", folder.path, "val")[0].labels == ("vehicles", "car")


def test_missing_images_are_named(folder):
    path = folder("annotations/instances_val2017.json", instances(["1.jpg", "2.jpg"]), "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        open_source("detection", folder.path, "val")
    assert f"{path}: no folder found for the 2 images, such as '1.jpg'; tried" in str(error.value)
    assert str(folder.path / "annotations") in str(error.value)


def test_two_years_are_two_files(folder):
    for year in (2014, 2017):
        folder(f"annotations/instances_train{year}.json", instances(["1.jpg"]), f"train{year}")
    with pytest.raises(ValueError, match=r"files.*/annotations/instances_train2014"):
        open_source("detection", folder.path, "train")
    (record,) = open_source(
        "detection", folder.path / "annotations/instances_train2014.json", "train"
    )
    assert record.images == (f"{folder.path}/train2014/1.jpg",)


def test_another_split_lists_the_splits_that_exist(folder):
    folder("train/_annotations.coco.json", instances(["1.jpg", "2.jpg"]), "train")
    folder("valid/_annotations.coco.json", instances(["1.jpg"]), "valid")
    with pytest.raises(FileNotFoundError) as error:
        open_source("detection", folder.path, "test")
    assert "available splits: train, val" in str(error.value)
    assert "test/_annotations.coco.json (Roboflow)" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"detection annotations.*split 'test'"):
        coco_detection(folder.path, "test")


# ---- few images of each class


def published_selection(file, shots):
    """What the published loop keeps, with the boxes of the file as they are."""
    budget = {entry["id"]: shots for entry in file["categories"]}
    kept = []
    for number in sorted(entry["id"] for entry in file["images"]):
        shown = {a["category_id"] for a in file["annotations"] if a["image_id"] == number}
        if sum(budget[category] > 0 for category in shown):
            kept.append(number)
            for category in shown:
                budget[category] -= 1
    return kept


def test_a_few_images_of_each_class(folder):
    classes = [{"id": i, "name": f"thing {i}"} for i in (3, 5, 9)]
    names = [f"{i}.jpg" for i in range(12)]
    # Pictures 0 and 7 show nothing, some show two classes; the file is not in the order of ids.
    shown = {1: [3], 2: [3, 5], 3: [3], 4: [3, 5], 5: [5], 6: [9, 5], 8: [9], 9: [9], 10: [9, 3]}
    boxes = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [5, 6, 20, 10]}
        for n, (image, category) in enumerate((i, c) for i in reversed(shown) for c in shown[i])
    ]
    # A crowd counts too, though its box is not trained on.
    boxes.append({**boxes[0], "id": 99, "image_id": 11, "category_id": 5, "iscrowd": 1})
    content = instances(names, classes, boxes)
    content["images"].reverse()
    folder("train.json", content)
    folder("val.json", content)
    for shots in (1, 2, 3, 20):
        found = open_source("detection", folder.path, "train", shots=shots)
        kept = sorted(int(Path(str(record.images[0])).stem) for record in found)
        assert kept == published_selection(content, shots)
        said = f"kept {len(kept)} of 12 images ({shots} per class, as in the published code)"
        assert skip_lines(found)[0] == said
    assert published_selection(content, 1) == [1, 2, 6]
    assert len(open_source("detection", folder.path, "train")) == 12


# ---- what does not fit


BAD_BOXES = {
    "outside": ([70, 50, 5, 5], "boxes outside their pictures", "pixels beyond its image"),
    "beyond": ([50, 30, 30, 30], "clipped boxes", "40 pixels|20 pixels beyond its image"),
    "negative": ([-30, 6, 20, 10], "boxes outside their pictures", "30 pixels beyond"),
    "reversed": ([30, 20, -20, 10], "reversed boxes", None),
    "no-area": ([5, 6, 0, 10], "empty boxes", None),
    "nan": ([5, float("nan"), 20, 10], "boxes that are no four numbers", "expected [x, y, width"),
    "infinite": ([5, 6, float("inf"), 10], "boxes that are no four numbers", "expected [x, y, wid"),
    "three": ([5, 6, 20], "boxes that are no four numbers", "expected [x, y, width, height]"),
    "words": (["a", 6, 20, 10], "boxes that are no four numbers", "expected [x, y, width, height]"),
}


@pytest.mark.parametrize("case", BAD_BOXES)
def test_boxes_that_do_not_fit_stop_or_are_counted(case, folder):
    box, counted_as, message = BAD_BOXES[case]
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 6, 20, 10]},
        {"id": 2, "image_id": 0, "category_id": 2, "bbox": box},
    ]
    path = folder("val.json", instances(["1.jpg"], boxes=boxes))
    skipped = open_source("detection", folder.path, "val", on_error="skip")
    assert skip_counts(skipped) == {counted_as: 1}
    kept = {"beyond": ((5, 6, 25, 16), (50, 30, 60, 40))}
    assert skipped[0].boxes_xyxy == kept.get(case, ((5, 6, 25, 16),))
    if message is None:
        found = open_source("detection", folder.path, "val")
        assert found == skipped and skip_counts(found) == skip_counts(skipped)
        return
    with pytest.raises(ValueError) as error:
        open_source("detection", folder.path, "val")
    assert str(path) in str(error.value)
    assert any(part in str(error.value) for part in message.split("|"))


def test_crowds_and_masks(folder):
    run = {"counts": [0, 5, 2395], "size": [40, 60]}
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"id": 2, "image_id": 0, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": run},
    ]
    boxes[0]["segmentation"] = run
    folder("val.json", instances(["1.jpg"], boxes=boxes))
    found = open_source("detection", folder.path, "val")
    assert found[0].boxes_xyxy == ((1, 2, 4, 6),)
    assert skip_counts(found) == {"crowd boxes": 1}


def test_duplicate_ids_and_names_are_rejected(folder):
    content = instances(["1.jpg", "2.jpg"])
    content["images"][1]["id"] = 0
    folder("val.json", content)
    with pytest.raises(ValueError, match=r"images\[1\].*id 0.*images\[0\]"):
        open_source("detection", folder.path, "val")
    for classes, said in (
        (
            [{"id": 1, "name": "mug"}, {"id": 1, "name": "cup"}],
            "has duplicate id 1, already used by 'mug'",
        ),
        ([{"id": 1, "name": "mug"}, {"id": 2, "name": "mug"}], "has duplicate name 'mug'"),
    ):
        folder("val.json", instances(["1.jpg"], classes))
        with pytest.raises(ValueError, match=said):
            open_source("detection", folder.path, "val")


def test_no_boxes_at_all(folder):
    folder("val.json", instances(["1.jpg", "2.jpg"], boxes=[]))
    found = open_source("detection", folder.path, "val")
    assert [r.boxes_xyxy for r in found] == [(), ()]
    assert found[0].labels == ("mug", "traffic light")
