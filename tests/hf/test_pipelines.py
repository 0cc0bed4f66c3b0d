"""Pipelines give what the methods of `fiber.load` give."""

from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

import fiber
from fiber.hf.pipelines import PIPELINES

pytestmark = pytest.mark.oldest

PHRASES = ["a red circle", "the square", "the star left of the ring"]


@pytest.fixture(scope="module")
def fine(folders):
    return fiber.load(folders["fine"], device="cpu")


@pytest.fixture(scope="module")
def coarse(folders):
    return fiber.load(folders["coarse"], device="cpu")


@pytest.fixture(scope="module")
def pipelines(folders):
    """A pipeline for each task."""
    stage = {"fiber-ground": "fine", "fiber-detect": "fine", "fiber-segment": "X-Decoder"}
    return {
        task: pipeline(task, model=str(folders[stage.get(task, "coarse")]), device="cpu")
        for task in PIPELINES
    }


@pytest.fixture(scope="module")
def images(drawing):
    """Images of several sizes, some of them the same."""
    return [drawing, drawing.crop((0, 0, 200, 360)), drawing.rotate(180), drawing.resize((90, 70))]


def as_dicts(found):
    """Boxes as the pipelines return them."""
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "score": float(found.scores[row]),
            "label": found.labels[row],
            "box": dict(zip(names, found.boxes_xyxy[row].tolist(), strict=True)),
            "index": int(found.indices[row]),
        }
        for row in range(len(found))
    ]


def count_trunks(network):
    """Count the images that pass through the trunk; the list gets an entry for each pass."""
    passes = []
    embedding = network.backbone.image.patch_embedding
    embedding.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    return passes


def test_phrases(pipelines, fine, drawing, images):
    ground = pipelines["fiber-ground"]
    found = ground(drawing, PHRASES, boxes_per_phrase=2)
    # Pipelines have the thresholds of a model without a calibration.
    every = {"score_threshold": 0}
    assert found == as_dicts(fine.ground(drawing, PHRASES, boxes_per_phrase=2, **every))
    assert len(found) > 2 and all(isinstance(value, float) for value in found[0]["box"].values())
    assert any(value != int(value) for value in found[0]["box"].values())
    several = ground(images, candidate_labels=PHRASES)
    assert several == [as_dicts(each) for each in fine.ground(images, PHRASES, **every)]
    caption = "a red circle and the square"
    expected = as_dicts(fine.ground(drawing, caption=caption, **every))
    assert ground(drawing, caption=caption) == expected


def test_classes(pipelines, fine, drawing, images):
    detect = pipelines["fiber-detect"]
    classes = ["circle", "square", "star"]
    options = {"score_threshold": 0.1, "nms_threshold": 0.5, "max_detections": 7}
    for arguments in ({"classes": classes}, {"candidate_labels": classes}):
        found = detect(drawing, **arguments, **options)
        assert found == as_dicts(fine.detect(drawing, classes, **options))
    assert len(found) > 1
    own = [[*classes], ["circle"], ["ring", "star"], ["square"]]
    expected = [as_dicts(each) for each in fine.detect(images, own, score_threshold=0.3)]
    assert detect(images, own) == expected


def test_questions(pipelines, coarse, drawing, images):
    answer = pipelines["fiber-answer"]
    question = "what color is the circle?"

    def expected(found):
        return [{"answer": each.answer, "score": each.score} for each in found]

    assert answer(drawing, question, top_k=3) == expected(coarse.answer(drawing, question, top_k=3))
    questions = [question, "is there a star?", "how many squares are there?", question]
    found = answer(images, questions=questions)
    assert found == [expected(each) for each in coarse.answer(images, questions)]


def test_questions_of_meter(folders, drawing):
    model = fiber.load(folders["METER"], device="cpu")
    answer = pipeline("fiber-answer", model=str(folders["METER"]), device="cpu")
    (expected,) = model.answer(drawing, "is there a star?")
    assert answer(drawing, "is there a star?") == [expected._asdict()]


def test_captions(pipelines, coarse, images):
    caption = pipelines["fiber-caption"]
    options = {"num_beams": 2, "max_tokens": 8}
    found = caption(images, **options)
    assert found == [[{"generated_text": text}] for text in coarse.caption(images, **options)]
    sampled = caption(images[0], sample=True, seed=5, max_tokens=8)
    assert sampled[0]["generated_text"] == coarse.caption(
        images[0], sample=True, seed=5, max_tokens=8
    )


def test_one_trunk_for_fifteen_labels(folders, drawing):
    labels = [f"thing {number}" for number in range(15)]
    for task in ("fiber-ground", "fiber-detect"):
        run = pipeline(task, model=str(folders["fine"]), device="cpu")
        passes = count_trunks(run.model.network)
        run(drawing, candidate_labels=labels)
        assert passes == [1], task
        run([drawing, drawing], candidate_labels=labels)
        assert sum(passes) == 3, task


def test_the_stock_pipeline_asks_for_each_label(folders, fine, drawing):
    """It works, too: a trunk for every label, and boxes as integers."""
    stock = pipeline("zero-shot-object-detection", model=str(folders["fine"]), device="cpu")
    passes = count_trunks(stock.model.network)
    labels = ["circle", "square"]
    found = stock(drawing, candidate_labels=labels, threshold=0.3)
    assert sum(passes) == 2
    alone = [fine.detect(drawing, [label], score_threshold=0.3) for label in labels]
    expected = {
        (label, tuple(int(value) for value in box)): score
        for label, each in zip(labels, alone, strict=True)
        for box, score in zip(each.boxes_xyxy, each.scores, strict=True)
    }
    assert len(found) == len(expected) > 1
    for each in found:
        box = tuple(each["box"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
        assert each["score"] == pytest.approx(expected[each["label"], box], abs=1e-6)


def test_mappings_and_data_sets(pipelines, fine, images):
    ground = pipelines["fiber-ground"]
    rows = [{"image": image, "candidate_labels": ["the square"]} for image in images]
    expected = [as_dicts(each) for each in fine.ground(images, ["the square"], score_threshold=0)]
    # The sums of an image that is alone are rounded in another order.
    alone = as_dicts(fine.ground(images[0], ["the square"], score_threshold=0))
    assert ground(rows) == expected and ground(rows[0]) == alone

    # A label for each image, as a bare text.
    labels = ["circle", "square", "star", "ring"]
    rows_of_one = [
        {"image": image, "candidate_labels": label}
        for image, label in zip(images, labels, strict=True)
    ]
    found = pipelines["fiber-detect"](rows_of_one, score_threshold=0.0)
    assert found == [
        as_dicts(each)
        for each in fine.detect(images, [[label] for label in labels], score_threshold=0.0)
    ]
    assert [{each["label"] for each in boxes} for boxes in found] == [{label} for label in labels]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            if index >= len(rows):
                raise IndexError(index)
            return rows[index]

    assert list(ground(Rows())) == expected
    assert list(ground(iter(images), ["the square"])) == expected
    # One by one: no more than a batch is read.
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield images[0]

    first = list(islice(ground(endless(), ["the square"], batch_size=2), 3))
    assert [len(each) for each in first] == [1, 1, 1] and len(taken) == 4


def test_options_of_the_constructor(folders, fine, drawing):
    detect = pipeline(
        "fiber-detect", model=str(folders["fine"]), device="cpu", score_threshold=0.05
    )
    for options in ({}, {"score_threshold": 0.5}):
        expected = fine.detect(drawing, ["circle"], **{"score_threshold": 0.05, **options})
        assert detect(drawing, ["circle"], **options) == as_dicts(expected)


def test_a_model_that_is_loaded(folders, fine, drawing, fiber_hf):
    model = AutoModel.from_pretrained(folders["fine"])
    tokenizer = AutoTokenizer.from_pretrained(folders["fine"])
    ground = pipeline("fiber-ground", model=model, tokenizer=tokenizer, device="cpu")
    assert ground(drawing, ["the square"]) == as_dicts(fine.ground(drawing, ["the square"]))
    direct = fiber_hf.GroundPipeline(model=model, tokenizer=tokenizer, device="cpu")
    assert direct(drawing, ["the square"]) == ground(drawing, ["the square"])
    # They share the network: what is trained is asked.
    with torch.no_grad():
        model.network.head.bias.add_(1)
    assert ground(drawing, ["the square"])[0]["score"] > float(
        fine.ground(drawing, ["the square"]).scores[0]
    )


def test_bfloat16(folders, fine, drawing):
    ground = pipeline("fiber-ground", model=str(folders["fine"]), device="cpu", dtype="bfloat16")
    (found,) = ground(drawing, ["the square"])
    expected = fine.ground(drawing, ["the square"])
    box = np.array(list(found["box"].values()))
    assert np.abs(box - expected.boxes_xyxy[0]).max() < 20
    assert found["score"] == pytest.approx(float(expected.scores[0]), abs=0.1)
