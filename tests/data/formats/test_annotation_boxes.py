"""Readers of boxes: phrases, referring expressions and classes, and boxes that do not fit."""

import pytest

from fiber.data import sources
from fiber.data.datasets.resolve import AmbiguousLayoutError, open_source

PICTURE = {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640}


# ---- phrases and referring expressions


def flickr(boxes, caption="A man and a dog near water", **image):
    return {
        "images": [
            {
                "file_name": "1007129816.jpg",
                "height": 500,
                "width": 333,
                "id": 12,
                "caption": caption,
                "dataset_name": "flickr",
                "tokens_negative": [[0, 26]],
                "sentence_id": 0,
                "original_img_id": 1007129816,
                "tokens_positive_eval": [[[0, 5]], [[10, 15]], [[21, 26]]],
                **image,
            }
        ],
        "annotations": [
            {"id": i, "image_id": 12, "area": 1, "iscrowd": 0, "category_id": 1, **box}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
    }


def test_flickr_phrases(data):
    both = [[0, 5], [10, 15]]
    data(
        "flickr_val.json",
        flickr(
            [
                {"bbox": [10, 20, 30, 40], "tokens_positive": [[10, 15]]},
                # One box of two phrases, as in the files where equal boxes were merged.
                {"bbox": [5, 6, 100, 200], "tokens_positive": both},
            ]
        ),
    )
    (record,) = sources.phrases(data.folder, "val")
    assert record.key == "flickr_val/12"
    assert record.boxes_xyxy == ((10, 20, 40, 60), (5, 6, 105, 206))
    assert record.char_spans == (((10, 15),), ((0, 5), (10, 15)))
    # A phrase may have no box at all.
    assert record.labels == ("A man", "a dog", "water")
    assert record.label_spans == (((0, 5),), ((10, 15),), ((21, 26),))
    assert record.box_labels == (1, 0)
    assert sources.label_boxes(record) == [[1], [0, 1], []]


def test_spans_that_split_a_character_are_widened_and_counted(data):
    wave = "\U0001f44b\U0001f3fd"
    caption = f"a {wave} man and e\u0301clairs"
    boxes = [
        {"bbox": [10, 20, 30, 40], "tokens_positive": [[3, 8]]},
        {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 3], [13, 14]]},
        {"bbox": [10, 20, 30, 40], "tokens_positive": [[5, 8]]},
    ]
    data("flickr_val.json", flickr(boxes, caption, tokens_positive_eval=[[[3, 8]]]))
    records = sources.phrases(data.folder, "val")
    assert records[0].char_spans == (((2, 8),), ((0, 4), (13, 15)), ((5, 8),))
    assert records[0].label_spans[0] == ((2, 8),)
    assert records.counts == {"spans that split a character": 4}


def test_phrases_without_the_list_of_evaluated_ones(data):
    """The mixed training file of MDETR has no tokens_positive_eval."""
    content = flickr(
        [
            {"bbox": [10, 20, 30, 40], "tokens_positive": [[10, 15]]},
            {"bbox": [1, 2, 30, 40], "tokens_positive": [[10, 15]]},
            {"bbox": [5, 6, 100, 200], "tokens_positive": [[0, 5], [21, 26]]},
        ]
    )
    del content["images"][0]["tokens_positive_eval"]
    data("flickr_val.json", content)
    (record,) = sources.phrases(data.folder, "val")
    assert record.labels == ("a dog", "A man water")
    assert record.box_labels == (0, 0, 1)


def test_crowds_and_empty_boxes_are_dropped_and_counted(data):
    data(
        "flickr_val.json",
        flickr(
            [
                {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]], "iscrowd": 1},
                {"bbox": [10, 20, 1, 40], "tokens_positive": [[0, 5]]},
                {"bbox": [10, 20, 40, 0], "tokens_positive": [[0, 5]]},
                {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]]},
            ]
        ),
    )
    found = sources.phrases(data.folder, "val")
    assert len(found[0].boxes_xyxy) == 1
    assert (found.counts.get("crowd boxes", 0), found.counts.get("empty boxes", 0)) == (1, 2)
    assert found.counts.get("clipped boxes", 0) == 0


def test_boxes_a_pixel_outside_are_clipped(data):
    box = {"bbox": [-0.5, 0, 334.4, 501], "tokens_positive": [[0, 5]]}
    data("flickr_val.json", flickr([box]))
    found = sources.phrases(data.folder, "val")
    assert found[0].boxes_xyxy == ((0, 0, 333, 500),)
    assert found.counts.get("clipped boxes", 0) == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"bbox": [320, 20, 30, 40]}, r"record 'flickr_val/12': box 1.*17"),
        ({"bbox": [-1.5, 7, 30, 40]}, r"record 'flickr_val/12': box 1.*1.5"),
        ({"bbox": [10, -7, 30, 40]}, r"record 'flickr_val/12': box 1.*7"),
        ({"bbox": [10, 20, 30]}, r"annotations\[1\].*'bbox' \[10, 20, 30\].*\[x"),
        ({"bbox": [0, 0, 30, float("nan")]}, r"annotations\[1\].*'bbox'.*nan"),
        ({"bbox": None}, r"annotations\[1\].*'bbox' None"),
        ({"tokens_positive": [0, 5]}, r"'tokens_positive' \[0, 5\].*\[start"),
        ({"tokens_positive": [[20, 40]]}, r"span \[20.*40\).*26"),
        ({"tokens_positive": "DROP"}, r"has no 'tokens_positive'"),
        ({"image_id": 13}, r"annotations\[1\].*image_id 13.*'images'"),
    ],
    ids=["right", "left", "above", "three", "nan", "null", "flat", "beyond", "none", "unknown"],
)
def test_boxes_that_do_not_fit_are_named(box, message, data):
    good = {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]]}
    bad = {key: value for key, value in {**good, **box}.items() if value != "DROP"}
    path = data("flickr_val.json", flickr([good, bad]))
    with pytest.raises(ValueError, match=message) as error:
        sources.phrases(data.folder, "val")
    assert str(path) in str(error.value)


def test_images_without_a_size_are_named(data):
    content = flickr([{"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]]}])
    del content["images"][0]["width"]
    data("flickr_val.json", content)
    with pytest.raises(ValueError, match="has no 'width'"):
        sources.phrases(data.folder, "val")


def test_refcoco_expressions(data):
    content = flickr(
        [{"bbox": [103.5, 300.25, 134.0, 178.75], "tokens_positive": [[4, 9]], "original_id": 7}],
        caption="the woman left of the dog",
        dataset_name="refcoco",
    )
    path = data("finetune_refcoco_val.json", content)
    where = {"annotations": path, "images": data.images}
    (record,) = sources.referring(data.folder, "val", **where)
    assert record.key == "finetune_refcoco_val/12"
    assert record.boxes_xyxy == ((103.5, 300.25, 237.5, 479.0),)
    assert record.labels == ("the woman left of the dog",)
    assert record.char_spans == record.label_spans == (((4, 9),),)
    (record,) = sources.referring(data.folder, "val", **where, whole_expression=True)
    assert record.char_spans == record.label_spans == (((0, 25),),)


def test_expressions_that_lost_their_box_are_counted(data):
    data("refcoco_val.json", flickr([{"bbox": [1, 2, 1, 1], "tokens_positive": [[0, 5]]}]))
    found = sources.referring(data.folder, "val")
    assert found == [] and found.counts.get("expressions without a box", 0) == 1


# ---- detection


def test_coco_instances(data):
    data(
        "instances_val.json",
        {
            "images": [PICTURE, {**PICTURE, "id": 5, "file_name": "b.jpg"}],
            "annotations": [
                {"id": 1, "image_id": 391895, "category_id": 13, "bbox": [10, 20, 30, 40.5]},
                {"id": 2, "image_id": 391895, "category_id": 2, "bbox": [0, 0, 640, 360]},
            ],
            # By id, whatever the order in the file; ids have gaps.
            "categories": [
                {"id": 13, "name": "stop sign", "supercategory": "outdoor"},
                {"id": 2, "name": "hair_drier"},
            ],
        },
    )
    first, second = sources.detection(data.folder, "val")
    assert first.text == "hair drier. stop sign"
    assert first.labels == ("hair_drier", "stop sign")
    assert first.label_spans == (((0, 10),), ((12, 21),))
    assert first.boxes_xyxy == ((10, 20, 40, 60.5), (0, 0, 640, 360))
    assert first.box_labels == (1, 0)
    assert first.char_spans == (((12, 21),), ((0, 10),))
    assert second.boxes_xyxy == () and second.text == first.text


def test_lvis_names_images_by_their_address(data):
    picture = {"id": 5, "height": 10, "width": 10, "coco_url": "http://x.org/val2017/0005.jpg"}
    content = {"images": [picture], "annotations": [], "categories": [{"id": 1, "name": "mug"}]}
    data("instances_val.json", content)
    (record,) = sources.detection(data.folder, "val")
    assert record.images == (f"{data.images}/val2017/0005.jpg",)


def test_unknown_categories_are_named(data):
    box = {"id": 1, "image_id": 391895, "category_id": 9, "bbox": [10, 20, 30, 40]}
    content = {
        "images": [PICTURE],
        "annotations": [box],
        "categories": [{"id": 1, "name": "mug"}],
    }
    data("instances_val.json", content)
    with pytest.raises(ValueError, match=r"entry 1.*category_id 9"):
        sources.detection(data.folder, "val")


# ---- MDETR's own files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


BOX = {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]]}


@pytest.mark.parametrize("below", ["", "mdetr_annotations/"])
def test_the_published_files_of_flickr(data, below):
    (data.folder / "mdetr_annotations").mkdir()
    path = data(f"{below}final_flickr_separateGT_train.json", flickr([BOX]))
    touch(data.folder, "flickr30k/flickr30k_images/train/1007129816.jpg")
    where = f"{data.folder}/flickr30k/flickr30k_images/train/1007129816.jpg"
    for named in (data.folder, path):
        (record,) = open_source("phrases", named, "train")
        assert record.images == (where,) and record.image_id == where
    with pytest.raises(FileNotFoundError, match="available splits: train"):
        open_source("phrases", data.folder, "val")


def mixed(*sources):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, source in enumerate(sources):
        own = flickr([BOX], data_source=source, file_name=f"{source}{number}.jpg", id=number)
        del own["images"][0]["tokens_positive_eval"]
        content["images"] += own["images"]
        content["annotations"].append({**own["annotations"][0], "image_id": number, "id": number})
    return content


def test_the_mixed_set_has_two_folders_of_images(data):
    path = data("final_mixed_train_no_coco.json", mixed("coco", "vg", "coco"))
    with pytest.raises(FileNotFoundError, match=r"2.*data_source 'coco'"):
        open_source("mixed", data.folder, "train")
    touch(data.folder, "refcoco/train2014/coco0.jpg", "gqa/images/vg1.jpg")
    for named in (data.folder, path):
        found = open_source("mixed", named, "train+val")
        assert [record.images[0] for record in found] == [
            f"{data.folder}/refcoco/train2014/coco0.jpg",
            f"{data.folder}/gqa/images/vg1.jpg",
            f"{data.folder}/refcoco/train2014/coco2.jpg",
        ]
        assert {record.labels for record in found} == {("A man",)}
    with pytest.raises(ValueError, match=r"mixed.*split.*'val'"):
        open_source("mixed", data.folder, "val")
    content = mixed("coco")
    del content["images"][0]["data_source"]
    data("final_mixed_train_no_coco.json", content)
    with pytest.raises(ValueError, match=r"images\[0\].*'data_source'"):
        open_source("mixed", data.folder, "train")


def test_three_sets_of_expressions_are_distinguished(data):
    touch(data.folder, "refcoco/train2014/1007129816.jpg")
    names = {
        "refcoco": "finetune_refcoco_testA.json",
        "refcocoplus": "finetune_refcoco+_testA.json",
        "refcocog": "finetune_refcocog_testA.json",
    }
    for source, name in names.items():
        data(name, flickr([BOX], caption=f"a man of {source}"))
    for source, name in names.items():
        for found in (
            open_source(source, data.folder, "testA"),
            open_source("referring", data.folder / name, "testA"),
        ):
            assert [record.text for record in found] == [f"a man of {source}"]
            assert found[0].images == (f"{data.folder}/refcoco/train2014/1007129816.jpg",)
    with pytest.raises(
        AmbiguousLayoutError, match=r"in several layouts.*finetune_refcoco_testA"
    ) as error:
        open_source("referring", data.folder, "testA")
    assert error.value.sources == tuple(names)
    # The corrected file of RefCOCOg comes before the other one.
    data("finetune_refcocog_test.json", flickr([BOX], caption="a man as it was"))
    data("finetune_refcocog_test_corrected.json", flickr([BOX], caption="a man corrected"))
    (record,) = open_source("refcocog", data.folder, "test")
    assert record.text == "a man corrected"


def test_boxes_of_phrases_that_do_not_fit_are_counted_where_asked_for(data):
    bad = {**BOX, "bbox": [320, 20, 30, 40]}
    data("flickr_val.json", flickr([BOX, bad]))
    found = sources.phrases(data.folder, "val", on_error="skip")
    assert found[0].boxes_xyxy == ((10, 20, 40, 60), (320, 20, 333, 60))
    assert found.counts.get("clipped boxes", 0) == 1
    data("refcoco_val.json", flickr([{**BOX, "bbox": [400, 20, 30, 40]}]))
    found = sources.referring(data.folder, "val", on_error="skip")
    assert found == [] and found.counts.get("expressions without a box", 0) == 1


def test_objects_are_as_the_file_has_them(data):
    boxes = [
        {"bbox": [10, 20, 30, 40.5], "category_id": 13, "area": 700.5, "iscrowd": 0},
        {"bbox": [0, 0, 100, 50], "category_id": 2, "area": 9, "iscrowd": 1},
        {"bbox": [5, 5, 0.5, 9], "category_id": 2, "iscrowd": 0},
        {"bbox": [-0.5, 0, 20, 9], "category_id": 13, "area": 1},
    ]
    known = {"neg_category_ids": [2], "not_exhaustive_category_ids": [13]}
    content = {
        "images": [PICTURE | known, PICTURE | {"id": 7}],
        "annotations": [{"id": i, "image_id": 391895} | box for i, box in enumerate(boxes)],
        "categories": [
            {"id": 13, "name": "stop sign", "frequency": "r"},
            {"id": 2, "name": "bicycle", "frequency": "f"},
        ],
    }
    data("instances_val.json", content)
    records = sources.detection(data.folder, "val", objects=True)
    objects = records[0].objects
    expected = ((10, 20, 40, 60.5), (0, 0, 100, 50), (5, 5, 5.5, 14), (-0.5, 0, 19.5, 9))
    assert objects.boxes_xyxy == expected
    assert objects.labels == (1, 0, 0, 1) and objects.crowd == (False, True, False, False)
    # The area of the thing, or that of its box.
    assert objects.areas == (700.5, 9, 4.5, 1)
    assert objects.absent == {0} and objects.incomplete == {1}
    assert records[1].objects.absent is None and records[1].objects.boxes_xyxy == ()
    assert records[0].label_ids == (2, 13) and records[0].label_groups == ("f", "r")
    # Thousands of classes are kept once, and not for each picture.
    for field in ("labels", "label_spans", "label_ids", "label_groups"):
        assert getattr(records[0], field) is getattr(records[1], field)
    # Nothing was left out of what is measured; training says what it does without.
    assert records.counts == {}
    trained_on = sources.detection(data.folder, "val")
    assert trained_on[0].objects is None and len(trained_on[0].boxes_xyxy) == 2
    assert trained_on.counts == {"crowd boxes": 1, "empty boxes": 1, "clipped boxes": 1}
    content["images"][0]["neg_category_ids"] = [4]
    data("instances_val.json", content)
    with pytest.raises(ValueError, match=r"neg_category_ids 4.*'categories'"):
        sources.detection(data.folder, "val", objects=True)
