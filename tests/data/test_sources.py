"""Readers of annotation files: real formats in, records out, and errors that say where."""

import json

import pytest

from fiber.data import sources


@pytest.fixture
def data(tmp_path):
    """A folder with `images`, and a function that writes JSON files into it."""
    (tmp_path / "images").mkdir()

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list) and name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    write.folder = tmp_path
    write.images = str(tmp_path / "images")
    return write


PICTURE = {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640}
READERS = {
    "captions": "captions_val.json",
    "phrases": "flickr_val.json",
    "referring": "refcoco_val.json",
    "detection": "instances_val.json",
    "questions": "vqa_questions_val.json",
    "reasoning": "nlvr2_val.jsonl",
    "swapped": "winoground_val.jsonl",
}


# ---- empty, missing, foreign


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_is_named_with_where_to_get_it(reader, data):
    with pytest.raises(FileNotFoundError) as error:
        getattr(sources, reader)(data.folder, "val")
    assert str(data.folder / READERS[reader]) in str(error.value)
    assert "fiber data scenes" in str(error.value)
    assert "https://" in str(error.value) or "mdetr_annotations" in str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "content",
    ["", "not json", "[1, 2]", '"text"', '{"images": 3, "annotations": {}}', "\x00\x01"],
    ids=["empty", "words", "numbers", "string", "wrong-lists", "binary"],
)
def test_a_file_of_another_format_is_named(reader, content, data):
    path = data(READERS[reader], content)
    data("vqa_annotations_val.json", {"annotations": []})
    if content == "" and path.suffix == ".jsonl":
        assert getattr(sources, reader)(data.folder, "val") == []
        return
    with pytest.raises(ValueError, match=str(path)):
        getattr(sources, reader)(data.folder, "val")


def test_a_file_with_other_encodings_is_named(data):
    path = data.folder / "captions_val.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"captions_val\.json is not text"):
        sources.captions(data.folder, "val")


def test_a_missing_folder_of_pictures_is_named(data):
    data("captions_val.json", {"images": [], "annotations": []})
    assert sources.captions(data.folder, "val") == []
    (data.folder / "images").rmdir()
    with pytest.raises(FileNotFoundError, match=r"images is no folder"):
        sources.captions(data.folder, "val")


# ---- captions


def test_coco_captions(data):
    path = data(
        "captions_val2014.json",
        {
            "info": {"year": 2014},
            "licenses": [],
            "images": [{**PICTURE, "license": 3, "flickr_url": "http://x"}],
            "annotations": [
                {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet."},
                {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike."},
            ],
        },
    )
    found = sources.captions("unused", "val", annotations=path, images=data.images)
    assert [r.key for r in found] == ["captions_val2014/770337", "captions_val2014/771687"]
    assert found[0].text == "A man with a red helmet."
    assert found[0].images == (f"{data.images}/COCO_val2014_000000391895.jpg",)
    assert found[0].image_id == found[1].image_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": None}, r"annotations\[0\] has 'caption' 'None'; expected str"),
        ({"caption": "  "}, r"annotations\[0\] has an empty 'caption'"),
        ({"image_id": 5}, r"annotations\[0\] has image_id 5, which is not in 'images'"),
        ({"id": "DROP"}, r"annotations\[0\] has no 'id'"),
        ({"caption": "DROP"}, r"annotations\[0\] has no 'caption'"),
    ],
    ids=["null", "empty", "unknown-picture", "no-id", "no-caption"],
)
def test_captions_that_do_not_fit_are_named(change, message, data):
    entry = {"image_id": 391895, "id": 1, "caption": "A man.", **change}
    entry = {key: value for key, value in entry.items() if value != "DROP"}
    data("captions_val.json", {"images": [PICTURE], "annotations": [entry]})
    with pytest.raises(ValueError, match=message):
        sources.captions(data.folder, "val")


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
    assert (found.count("crowd boxes"), found.count("empty boxes")) == (1, 2)
    assert found.count("clipped boxes") == 0


def test_boxes_a_pixel_outside_are_clipped(data):
    box = {"bbox": [-0.5, 0, 334.4, 501], "tokens_positive": [[0, 5]]}
    data("flickr_val.json", flickr([box]))
    found = sources.phrases(data.folder, "val")
    assert found[0].boxes_xyxy == ((0, 0, 333, 500),)
    assert found.count("clipped boxes") == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"bbox": [320, 20, 30, 40]}, r"record 'flickr_val/12': box 1 is .* 17 pixels outside"),
        ({"bbox": [10, -7, 30, 40]}, r"record 'flickr_val/12': box 1 is .* 7 pixels outside"),
        ({"bbox": [10, 20, 30]}, r"annotations\[1\] has 'bbox' \[10, 20, 30\]; expected \[x, y"),
        ({"bbox": [0, 0, 30, float("nan")]}, r"annotations\[1\] has 'bbox' .*nan"),
        ({"bbox": None}, r"annotations\[1\] has 'bbox' 'None'; expected list"),
        ({"tokens_positive": [0, 5]}, r"'tokens_positive' \[0, 5\]; expected a list of \[start"),
        ({"tokens_positive": [[20, 40]]}, r"span \[20, 40\) is not inside its text of 26"),
        ({"tokens_positive": "DROP"}, r"has no 'tokens_positive'"),
        ({"image_id": 13}, r"annotations\[1\] has image_id 13, which is not in 'images'"),
    ],
    ids=["right", "above", "three", "nan", "null", "flat", "beyond", "none", "unknown"],
)
def test_boxes_that_do_not_fit_are_named(box, message, data):
    good = {"bbox": [10, 20, 30, 40], "tokens_positive": [[0, 5]]}
    bad = {key: value for key, value in {**good, **box}.items() if value != "DROP"}
    path = data("flickr_val.json", flickr([good, bad]))
    with pytest.raises(ValueError, match=message) as error:
        sources.phrases(data.folder, "val")
    assert str(path) in str(error.value)


def test_pictures_without_a_size_are_named(data):
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
    assert found == [] and found.count("expressions without a box") == 1


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


def test_lvis_names_pictures_by_their_address(data):
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
    with pytest.raises(ValueError, match=r"annotations\[0\] has category_id 9, which is not in"):
        sources.detection(data.folder, "val")


# ---- questions


def vqa(data, votes, **question):
    data(
        "vqa_questions_val.json",
        {
            "data_subtype": "val2014",
            "questions": [
                {"image_id": 262148, "question": "Where is he?", "question_id": 7, **question}
            ],
        },
    )
    data(
        "vqa_annotations_val.json",
        {
            "annotations": [
                {
                    "question_id": 7,
                    "image_id": 262148,
                    "question_type": "where is the",
                    "answer_type": "other",
                    "multiple_choice_answer": votes[0],
                    "answers": [
                        {"answer": vote, "answer_confidence": "yes", "answer_id": i + 1}
                        for i, vote in enumerate(votes)
                    ],
                }
            ]
        },
    )


def test_vqa_scores_count_annotators(data):
    vqa(data, ["down"] * 4 + ["at table"] * 3 + ["skateboard"] * 2 + ["table"])
    (record,) = sources.questions(data.folder, "val")
    assert record.answers == {"down": 1.0, "at table": 0.9, "skateboard": 0.6, "table": 0.3}
    assert record.group == "where is the"
    assert record.images == (f"{data.images}/COCO_val2014_000000262148.jpg",)
    assert record.key == "vqa_questions_val/7"


def test_a_question_may_name_its_picture(data):
    vqa(data, ["down"] * 10, image="val/000/000003.jpg")
    (record,) = sources.questions(data.folder, "val")
    assert record.images == (f"{data.images}/val/000/000003.jpg",)
    assert record.answers == {"down": 1.0}


def test_questions_without_answers(data):
    vqa(data, ["down"] * 10)
    (data.folder / "vqa_annotations_val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vqa_annotations_val\.json"):
        sources.questions(data.folder, "val")
    (data.folder / "vqa_questions_val.json").rename(data.folder / "vqa_questions_test-dev.json")
    (record,) = sources.questions(data.folder, "test-dev")
    assert record.answers is None


def test_a_question_whose_answer_is_missing_is_named(data):
    vqa(data, ["down"] * 10, question_id=8)
    with pytest.raises(ValueError, match=r"questions\[0\] has question_id 8, which is not in"):
        sources.questions(data.folder, "val")


def test_answers_of_another_form_are_named(data):
    vqa(data, ["down"] * 10)
    answers = {"annotations": [{"question_id": 7, "answers": ["down"]}]}
    data("vqa_annotations_val.json", answers)
    with pytest.raises(ValueError, match=r"annotations\[0\] has 'down' in 'answers'; expected an"):
        sources.questions(data.folder, "val")


# ---- two pictures


def test_nlvr2_statements(data):
    entry = {
        "sentence": "An image shows one leather pencil case.",
        "left_url": "https://x",
        "writer": "104",
        "label": "True",
        "identifier": "train-10171-0-0",
        "directory": 55,
    }
    data("nlvr2_val.jsonl", [entry, {**entry, "label": "False", "identifier": "dev-850-0-1"}])
    first, second = sources.reasoning(data.folder, "val")
    assert first.images == (
        f"{data.images}/55/train-10171-0-img0.png",
        f"{data.images}/55/train-10171-0-img1.png",
    )
    assert (first.truth, second.truth) == (True, False)
    assert first.key == "nlvr2_val/train-10171-0-0"


@pytest.mark.parametrize("label", ["maybe", None, 1])
def test_labels_that_are_neither_are_named(label, data):
    data("nlvr2_val.jsonl", [{"identifier": "a-0-0", "sentence": "x", "label": label}])
    with pytest.raises(ValueError, match=r"nlvr2_val\.jsonl: lines\[0\] has .?label"):
        sources.reasoning(data.folder, "val")


def test_winoground_pairs(data):
    entry = {
        "id": 3,
        "image_0": "ex_3_img_0",
        "image_1": "ex_3_img_1.jpg",
        "caption_0": "an old person kisses a young person",
        "caption_1": "a young person kisses an old person",
        "tag": "Adjective-Age",
    }
    data("winoground_val.jsonl", [entry])
    found = sources.swapped(data.folder, "val")
    assert [r.truth for r in found] == [True, False, False, True]
    assert [r.text for r in found] == [entry["caption_0"], entry["caption_1"]] * 2
    assert [r.images[0] for r in found] == [f"{data.images}/ex_3_img_0.png"] * 2 + [
        f"{data.images}/ex_3_img_1.jpg"
    ] * 2
    assert found[1].key == "winoground_val/3/0/1"


@pytest.mark.parametrize("reader", ["reasoning", "swapped"])
def test_lines_that_are_not_json_are_numbered(reader, data):
    data(READERS[reader], '{"id": 1}\n\n{"id": 2')
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        getattr(sources, reader)(data.folder, "val")
