"""Phrases and expressions: what is counted, from boxes put in the place of the model's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.checkpoints.model_dir import StoredModel
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext
from fiber.evaluation.evaluate import evaluate
from fiber.inference import boxes
from fiber.metrics.boxes import pairwise_giou
from fiber.models.registry import build_model
from fiber.postprocess import FoundBoxes
from fiber.tasks.grounding import evaluate as grounding

MAN, DOG, FAR = [0.0, 0.0, 40.0, 20.0], [50.0, 0.0, 70.0, 20.0], [70.0, 40.0, 90.0, 60.0]


@pytest.fixture(scope="module")
def model():
    tokenizer = Tokenizer.train(["a man and a dog near the water"] * 10, 300)
    torch.manual_seed(0)
    network = build_model(preset("micro", stage="fine").with_vocabulary(tokenizer.vocab_size))
    for layer in (network.head.centerness, network.head.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.zeros_(network.head.bias)
    return StoredModel(network=network, tokenizer=tokenizer, answers=())


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "1.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def caption(picture):
    spans = ((0, 5), (10, 15), (21, 26))
    return Record(
        key="c",
        images=(picture,),
        text="A man and a dog near water",
        boxes_xyxy=(tuple(MAN), tuple(DOG)),
        char_spans=((spans[0],), (spans[1],)),
        box_labels=(0, 1),
        labels=("A man", "a dog", "water"),
        label_spans=tuple((span,) for span in spans),
        label_groups=("people", "animals/other", "scene"),
    )


def found(*rows):
    """(label, box, score) each."""
    labels, boxes, scores = zip(*rows, strict=True)
    return FoundBoxes(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels)
    )


def put(monkeypatch, own, published, seen=None):
    """Let the model find these boxes; `seen` collects what the published protocol was asked."""

    def detect(output, tokens, sizes, originals, **options):
        if seen is not None:
            seen.append(options)
        return [published]

    monkeypatch.setattr(grounding, "ground_phrases", lambda *_, **__: [own])
    monkeypatch.setattr(grounding, "detect_boxes", detect)


def plus_one(box):
    """The half-open box whose inclusive corners are these, in a picture seen at its own size."""
    return [box[0], box[1], box[2] + 1, box[3] + 1]


def test_phrases_as_we_do_and_as_published(model, caption, monkeypatch, tmp_path):
    """The man is found first by both; the dog by ours alone, since in the published list of 100
    boxes there was no place for one of its."""
    seen = []
    put(
        monkeypatch,
        found((0, MAN, 0.9), (1, FAR, 0.5), (1, DOG, 0.4), (2, FAR, 0.3)),
        found((0, FAR, 0.8), (0, plus_one(MAN), 0.9)),
        seen,
    )
    size_seen(monkeypatch, model)
    path = tmp_path / "found.json"
    metrics = evaluate(model, "flickr", data=[caption], output=path)
    assert metrics["any_recall_at_1"] == 0.5 and metrics["any_recall_at_5"] == 1.0
    assert metrics["published_any_recall_at_10"] == 0.5
    assert metrics["published_any_upper_bound"] == 0.5
    # Best scores first, whatever order they came in; phrases without a box do not count.
    assert metrics["published_any_recall_at_1"] == 0.5
    assert metrics["people/published_any_recall_at_1"] == 1.0
    # The dog is of two kinds, and counts for both.
    assert metrics["animals/published_any_recall_at_1"] == 0.0
    assert metrics["other/published_any_recall_at_1"] == 0.0
    assert not any(name.startswith("scene/") for name in metrics)
    assert seen == [{"score_threshold": 0.05, "candidates_per_level": 1000}]
    ((entry,),) = [json.loads(path.read_text())]
    assert [phrase["phrase"] for phrase in entry["phrases"]] == ["A man", "a dog", "water"]
    assert entry["phrases"][1]["boxes_xyxy"] == [FAR, DOG]


def size_seen(monkeypatch, model):
    """Make boxes of the seen picture those of the original one: half-open less a pixel."""
    monkeypatch.setattr(
        grounding,
        "_inclusive",
        lambda boxes, size, original, run=grounding._inclusive: run(boxes, original, original),
    )


def test_corners_are_those_of_the_published_code():
    """A picture of 200 x 100 seen at 400 x 300: a pixel of the seen one is 0.5 x 1 / 3."""
    boxes = found((0, [10.0, 20.0, 30.0, 40.0], 0.5))
    size, original = torch.tensor([300, 400]), torch.tensor([100, 200])
    moved = grounding._inclusive(boxes, size, original)
    assert moved.boxes_xyxy.tolist() == [pytest.approx([10, 20, 29.5, 40 - 1 / 3])]
    assert moved.scores is boxes.scores


def test_expressions_as_we_do_and_as_published(model, picture, monkeypatch):
    """IoU against GIoU, and a tie that the larger corners win.

    The first two boxes of the published list have one score: the second has the larger x0, comes
    first and is far off; the other one is right. Ours is right at once.
    """
    truth = (10.0, 10.0, 50.0, 50.0)
    record = Record(
        key="e",
        images=(picture,),
        text="the dog",
        boxes_xyxy=(truth,),
        char_spans=(((0, 7),),),
        box_labels=(0,),
        labels=("the dog",),
        label_spans=(((0, 7),),),
    )
    # IoU 0.516 and GIoU 0.472, as in the test of the metric.
    shifted = [17.0, 17.0, 57.0, 57.0]
    assert pairwise_giou([shifted], [truth])[0, 0] < 0.5
    seen = []
    put(
        monkeypatch,
        found((0, shifted, 0.9)),
        found((0, plus_one(truth), 0.7), (0, FAR, 0.7), (0, plus_one(shifted), 0.6)),
        seen,
    )
    size_seen(monkeypatch, model)
    metrics = evaluate(model, "refcoco", data=[record])
    assert metrics["accuracy_at_1"] == 1.0 and metrics["giou_accuracy_at_1"] == 0.0
    assert metrics["published_accuracy_at_1"] == 0.0
    assert metrics["published_accuracy_at_5"] == 1.0
    assert seen == [{"score_threshold": 0.0, "candidates_per_level": 3000}]
    # As published, a box of IoU above 0.5 and GIoU below it is a miss.
    put(monkeypatch, found((0, shifted, 0.9)), found((0, plus_one(shifted), 0.9)))
    metrics = evaluate(model, "refcoco", data=[record])
    assert metrics["accuracy_at_10"] == 1.0 and metrics["published_accuracy_at_10"] == 0.0


def test_the_best_box_of_an_expression_is_the_same_in_both(model, picture):
    """One pass of a model: its best box is the best of all, whatever the protocol."""
    record = Record(
        key="e",
        images=(picture,),
        text="the dog",
        boxes_xyxy=((10.0, 10.0, 50.0, 50.0),),
        char_spans=(((0, 7),),),
        box_labels=(0,),
        labels=("the dog",),
        label_spans=(((0, 7),),),
    )
    subject_of = grounding._ground
    grounded = []

    def ground(*given):
        for each in subject_of(*given):
            grounded.append(each[1:])
            yield each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grounding, "_ground", ground)
        evaluate(model, "refcoco", data=[record])
    own, published = (grounding._of_phrase(part, 0) for part in grounded[0])
    assert len(own[0]) == 10 and 10 < len(published[0]) <= 100
    assert own[1][0] == pytest.approx(published[1][0])
    assert np.allclose(own[0][0][:2], published[0][0][:2], atol=1e-4)
    assert (own[0][0][2:] > published[0][0][2:]).all()


def test_pairs_that_do_not_fit_together_are_asked_one_after_another(model, picture, monkeypatch):
    """Spans are lists, as records of users may have them."""
    asked = [
        Record(
            key=str(number),
            images=(picture,),
            text=text,
            boxes_xyxy=(tuple(DOG),),
            labels=("a dog",),
            label_spans=[[[text.index("a dog"), text.index("a dog") + 5]]],
        )
        for number, text in enumerate(["a dog", "a man and a dog", "a dog near the water"])
    ]
    sizes, fuse = [], model.network.backbone.fuse
    monkeypatch.setattr(
        model.network.backbone,
        "fuse",
        lambda prefix, *given: (sizes.append(len(prefix.tokens)), fuse(prefix, *given))[1],
    )
    context = EvalContext.of(model, threads=1)
    with torch.no_grad():
        together = list(grounding._ground(context, asked, grounding.PUBLISHED_PHRASES))
        monkeypatch.setattr(boxes, "PAIR_PIXELS", 1)
        alone = list(grounding._ground(context, asked, grounding.PUBLISHED_PHRASES))
    assert sizes == [3, 1, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert one[0] is other[0] and len(one[1].scores)
        for mine, theirs in zip(one[1:], other[1:], strict=True):
            # Two orders of the same float32 sums.
            torch.testing.assert_close(mine.boxes_xyxy, theirs.boxes_xyxy, atol=1e-3, rtol=0)
            torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-5, rtol=0)
