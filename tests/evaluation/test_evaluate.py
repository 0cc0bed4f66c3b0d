import dataclasses
import json

import pytest
import torch

from fiber.data import load_image
from fiber.data.record import Record
from fiber.evaluation import tasks
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import PermutedImages, fusion_off
from fiber.tasks import all_evaluations
from fiber.tasks.image_text.evaluate import wrong_texts
from tests.evaluation.measured import (
    assert_close,
    detection_records,
    measure,
    records_for,
)


def test_no_records_are_refused(models):
    with pytest.raises(ValueError, match=r"'vqa'.*record.*none"):
        evaluate(models["coarse"], "vqa", data=[])


def test_an_evaluation_that_returns_something_else_is_named(models, pictures, monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda path: lambda context, records: {"accuracy": 1.0})
    with pytest.raises(TypeError, match=r"'vqa'.*evaluate.* returned dict.*EvalResult"):
        measure("vqa", models, pictures)


#: Tasks of the models here; tests/training/test_meter.py evaluates entailment.
FIBER_TASKS = [
    task for task, each in all_evaluations().items() if not {"snli", "mask"} & set(each.heads)
]


@pytest.mark.parametrize("task", FIBER_TASKS)
@pytest.mark.parametrize("switch", ["as it is", "permuted", "no fusion"])
def test_every_task_gives_fractions(task, switch, models, pictures):
    options = {"permuted": {"permute_images": True}, "no fusion": {"fusion": False}}
    metrics = measure(task, models, pictures, **options.get(switch, {}))
    assert metrics
    for name, value in metrics.items():
        assert 0 <= value <= (10 if name == "cider_d" else 1), name


@pytest.mark.parametrize("task", FIBER_TASKS)
def test_batches_do_not_change_predictions(task, models, pictures, tmp_path):
    written = []
    for batch_size in (1, 5, 64):
        path = tmp_path / f"{batch_size}"
        measure(task, models, pictures, batch_size=batch_size, output=path)
        written.append(path.read_text())
    if task == "nlvr2":
        assert written[0] == written[1] == written[2]
        return
    first, *others = [json.loads(text) for text in written]
    for other in others:
        assert_close(first, other)


@pytest.mark.parametrize("task", ["refcoco", "flickr", "coco"])
def test_a_box_outside_its_picture_is_refused(task, models, pictures):
    records = list(detection_records(pictures) if task == "coco" else records_for(task, pictures))
    height, width = load_image(records[1].images[0]).shape[:2]

    def run(right, **options):
        boxes = ((2.0, 2.0, right, 9.0),)
        changed = [records[0], dataclasses.replace(records[1], boxes_xyxy=boxes), *records[2:]]
        return evaluate(models["fine"], task, data=changed, threads=1, **options)

    expected = (
        rf"record '{records[1].key}': box 0 is \(2, 2, 500, 9\).* {500 - width} pixels"
        rf" outside the image of height {height} and width {width} pixels; expected at most 1"
    )
    with pytest.raises(ValueError, match=expected):
        run(500.0)
    assert run(width + 1.0)
    # Another record's picture need not hold the box.
    assert run(500.0, permute_images=True)


def test_nobody_keeps_its_picture(pictures):
    records = records_for("nlvr2", pictures)
    permuted = PermutedImages(records)
    assert len(permuted) == len(records)
    for index, record in enumerate(records):
        other = permuted[index]
        assert all(a != b for a, b in zip(other.images, record.images, strict=True))
        assert dataclasses.replace(other, images=record.images) == record
    shown = {image for i in range(len(permuted)) for image in permuted[i].images}
    assert shown == {image for record in records for image in record.images}


def test_one_picture_cannot_be_permuted(pictures):
    with pytest.raises(ValueError, match="at least two different images"):
        PermutedImages(records_for("vqa", pictures)[:1])


def test_closed_gates_hide_the_picture_and_open_again(models, pictures):
    model = models["coarse"].network
    ids = torch.tensor([[0, 7, 8, 2]])
    images = torch.randn(2, 3, 64, 64)

    def text_of(image):
        with torch.no_grad():
            return model.backbone.encode_pair(image[None], ids, ids >= 0).text

    open_before = text_of(images[0])
    assert not torch.allclose(open_before, text_of(images[1]))
    with pytest.raises(RuntimeError, match="on purpose"), fusion_off(model):
        assert torch.equal(text_of(images[0]), text_of(images[1]))
        raise RuntimeError("on purpose")
    assert torch.equal(text_of(images[0]), open_before)


def test_wrong_texts_say_something_else():
    records = [
        Record(key=str(i), images=(f"{i % 3}.jpg",), image_id=f"{i % 3}", text=f"text {i % 4}")
        for i in range(10)
    ]
    for record, other in zip(records, wrong_texts(records), strict=True):
        assert record.image_id != other.image_id and record.text != other.text
    with pytest.raises(ValueError, match="a different image and a different text"):
        wrong_texts(records[:1])


def test_groups_are_reported_beside_the_whole(models, pictures):
    metrics = measure("winoground", models, pictures)
    assert {"group", "colour/group", "other/group"} <= metrics.keys()


@pytest.mark.parametrize(
    ("task", "stage", "message"),
    [
        ("refcoc", "fine", "'refcoc' does not exist; did you mean refcoco"),
        ("vqa", "fine", "needs the head 'vqa'; this model has grounding"),
        ("flickr", "coarse", "needs the head 'grounding'; this model has itc"),
    ],
)
def test_what_a_model_cannot_do_is_said(models, task, stage, message):
    with pytest.raises(ValueError, match=message):
        evaluate(models[stage], task, data=[])


@pytest.mark.parametrize("task", ["retrieval", "matching", "masked_words", "vqa"])
def test_texts_of_which_less_is_read_are_counted(task, models, pictures):
    texts = ("", "<s></s><pad>", "cup " * 10_000)
    records = records_for(task, pictures)
    odd = [dataclasses.replace(r, text=text) for r, text in zip(records, texts, strict=False)]
    with pytest.warns(RuntimeWarning) as told:
        metrics = evaluate(models["coarse"], task, data=odd + records[3:], rerank=False, threads=1)
    assert all(0 <= value <= 1 for value in metrics.values())
    limit, count = models["coarse"].config.max_tokens, len(records)
    assert [str(each.message) for each in told] == [
        f"task '{task}': 2 of {count} texts have no words; they are used as is",
        f"task '{task}': 1 of {count} texts are longer than the model's {limit} tokens; they"
        " are truncated",
    ]


def test_without_a_masked_word_there_is_no_accuracy(models, pictures):
    records = records_for("masked_words", pictures)
    empty = [dataclasses.replace(record, text="<pad>") for record in records]
    with (
        pytest.warns(RuntimeWarning, match=rf"{len(records)}.*{len(records)}"),
        pytest.raises(ValueError, match=r"12 texts.*masked"),
    ):
        evaluate(models["coarse"], "masked_words", data=empty, threads=1)


def test_records_of_another_task_are_refused(models, pictures):
    with pytest.raises(TypeError, match=r"data.*folder.*int 5"):
        evaluate(models["coarse"], "vqa", data=5)
    with pytest.raises(TypeError, match=r"data.*task 'vqa'"):
        evaluate(models["coarse"], "vqa", data={"vqa": ["what?"]})
    with pytest.raises(ValueError, match=r"data.*'nlvr2'.*'vqa'"):
        evaluate(models["coarse"], "vqa", data={"nlvr2": records_for("nlvr2", pictures)})
    captions = records_for("retrieval", pictures)
    with pytest.raises(ValueError, match="record 'c0' lacks boxes"):
        evaluate(models["fine"], "refcoco", data=captions)
    with pytest.raises(ValueError, match="3 records"):
        evaluate(models["coarse"], "winoground", data=captions[:3])
