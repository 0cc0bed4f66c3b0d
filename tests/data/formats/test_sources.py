"""Readers of annotation files: real formats in, records out, and errors that say where."""

import gc

import pytest

from fiber.data import sources
from fiber.data.datasets.resolve import open_source

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


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(data, was_on):
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(FileNotFoundError):
            sources.captions(data.folder, "val")
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()


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


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_split_lists_the_splits_that_exist(reader, data):
    for split in ("train", "novel"):
        data(READERS[reader].replace("val", split), {})
    data("unrelated_train_more.json", {})
    with pytest.raises(FileNotFoundError) as error:
        getattr(sources, reader)(data.folder, "val")
    path = data.folder / READERS[reader]
    expected = "available splits: novel, train"
    assert str(error.value) == f"{path} does not exist; {expected}"


def test_a_file_with_other_encodings_is_named(data):
    path = data.folder / "captions_val.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"captions_val\.json.*text"):
        sources.captions(data.folder, "val")


def test_a_missing_folder_of_images_is_named(data):
    data("captions_val.json", {"images": [], "annotations": []})
    assert sources.captions(data.folder, "val") == []
    (data.folder / "images").rmdir()
    with pytest.raises(FileNotFoundError, match=r"images does not exist"):
        sources.captions(data.folder, "val")


def test_a_file_of_another_kind_is_named_before_its_images_are_looked_for(data):
    (data.folder / "images").rmdir()
    path = data("num.json", {"a": 1})
    for source in ("captions", "detection"):
        with pytest.raises(ValueError, match=r"num\.json.*list '.*'.*keys: a "):
            open_source(source, path, "val")


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
        ({"caption": None}, r"annotations\[0\].*'caption' None"),
        ({"caption": "  "}, r"annotations\[0\].*empty 'caption'"),
        ({"image_id": 5}, r"annotations\[0\].*image_id 5.*'images'"),
        ({"id": "DROP"}, r"annotations\[0\].*'id'"),
        ({"caption": "DROP"}, r"annotations\[0\].*'caption'"),
        (
            {"caption": "DROP", "captoin": "A man."},
            r"annotations\[0\].*'caption'.*: image_id, id, captoin",
        ),
    ],
    ids=["null", "empty", "unknown-picture", "no-id", "no-caption", "unknown-key"],
)
def test_captions_that_do_not_fit_are_named(change, message, data):
    entry = {"image_id": 391895, "id": 1, "caption": "A man.", **change}
    entry = {key: value for key, value in entry.items() if value != "DROP"}
    data("captions_val.json", {"images": [PICTURE], "annotations": [entry]})
    with pytest.raises(ValueError, match=message):
        sources.captions(data.folder, "val")


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


def test_a_question_may_name_its_image(data):
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
    with pytest.raises(ValueError, match=r"questions\[0\].*question_id 8"):
        sources.questions(data.folder, "val")


def test_answers_of_another_form_are_named(data):
    vqa(data, ["down"] * 10)
    answers = {"annotations": [{"question_id": 7, "answers": ["down"]}]}
    data("vqa_annotations_val.json", answers)
    with pytest.raises(ValueError, match=r"annotations\[0\].*'down'.*'answers'"):
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
    with pytest.raises(ValueError, match=r"nlvr2_val\.jsonl: lines\[0\]"):
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
    with pytest.raises(ValueError, match=r"line 3.*JSON"):
        getattr(sources, reader)(data.folder, "val")
