"""Guesses on a real little dataset, against what can be counted by hand."""

import numpy as np
import pytest

from fiber.checkpoints.model_dir import load_model
from fiber.data import sources
from fiber.data.record import Record
from fiber.demo.guesses import Guesser
from fiber.evaluation.baselines import vqa_blind
from fiber.metrics.boxes import pairwise_iou


@pytest.fixture(scope="module")
def data(finished):
    return finished / "data"


@pytest.fixture(scope="module")
def guesser(finished):
    return Guesser(finished / "data", load_model(finished / "coarse"), 50)


def guess(guesser, task, records, split="val"):
    return guesser.guess(task, {split: records})[split]


def test_retrieval_is_pure_chance(guesser, data):
    records = sources.captions(data, "val")
    found = guess(guesser, "retrieval", records)
    assert found["blind"] == found["chance"]
    # One of 20 pictures is right, ten are looked at.
    assert len({record.image_id for record in records}) == 20
    assert found["chance"]["text_to_image_recall_at_10"] == pytest.approx(0.5)


def test_matching_is_a_coin(guesser, data):
    found = guess(guesser, "matching", sources.captions(data, "val"))
    assert found["chance"]["accuracy"] == found["blind"]["accuracy"] == 0.5


def test_questions(guesser, data):
    """The better of the most frequent answer of all, and that of the same question."""
    training, records = sources.questions(data, "train"), sources.questions(data, "novel")
    columns = [[r.text for r in training], [r.answers for r in training]]
    columns += [[r.text for r in records], [r.answers for r in records]]
    variants = [vqa_blind(*columns, per_question=own)["accuracy"] for own in (True, False)]
    assert variants[0] != variants[1]
    found = guess(guesser, "vqa", records, "novel")
    assert found["blind"]["accuracy"] == max(variants)
    by_record = [found["chance"][f"{r.group}/accuracy"] for r in records]
    assert found["chance"]["accuracy"] == pytest.approx(np.mean(by_record))


def test_questions_with_two_answers_are_a_coin(guesser, data):
    found = guess(guesser, "vqa", sources.questions(data, "val"))["chance"]
    assert found["exists/accuracy"] == pytest.approx(0.5)


def test_questions_about_shapes_are_answered_by_a_random_object(guesser, data):
    records = [r for r in sources.questions(data, "val") if r.group == "shape"]
    objects = {r.image_id: r.box_labels for r in sources.detection(data, "val")}
    classes = sources.detection(data, "val")[0].labels
    shares = []
    for record in records:
        [answer] = record.answers
        shapes = [classes[label] for label in objects[record.image_id]]
        shares.append(shapes.count(answer) / len(shapes))
    found = guess(guesser, "vqa", records)
    assert found["chance"]["shape/accuracy"] == pytest.approx(np.mean(shares))
    assert found["chance"]["shape/accuracy"] > 1 / len(classes)


def test_expressions(guesser, data):
    records = sources.referring(data, "val")
    found = guess(guesser, "refcoco", records)
    objects = {r.image_id: r.boxes_xyxy for r in sources.detection(data, "val")}
    shares = [(pairwise_iou(objects[r.image_id], [r.boxes_xyxy[0]]) >= 0.5).mean() for r in records]
    assert found["chance"]["accuracy_at_1"] == pytest.approx(np.mean(shares))
    # Boxes lie anywhere, so that one place is seldom right.
    assert 0 <= found["blind"]["accuracy_at_1"] < 0.5


def test_phrases(guesser, data):
    found = guess(guesser, "flickr", sources.phrases(data, "val"))
    assert 0.2 < found["chance"]["any_recall_at_1"] < 0.8
    assert 0 <= found["blind"]["any_recall_at_1"] < found["chance"]["any_recall_at_1"]


def test_boxes_of_training_are_counted_in_units_of_the_side(guesser, data):
    """Guessing on the training split itself must find the training split's own boxes."""
    records = sources.referring(data, "train")[:1]
    found = Guesser(data, guesser.coarse, 1)._referring(records, records, "train")[1]
    assert found["accuracy_at_1"] == 1.0


def test_masked_words(guesser, data):
    records = sources.captions(data, "val")
    found = guess(guesser, "masked_words", records)
    assert found["chance"]["accuracy"] == pytest.approx(1 / guesser.coarse.tokenizer.vocab_size)
    assert 0.1 < found["blind"]["accuracy"] < 1


def test_detection(guesser, data):
    found = guess(guesser, "coco", sources.detection(data, "val"))
    assert 0 <= found["blind"]["ap50"] < 0.3
    assert 0 < found["chance"]["ap50"] < 0.5


def test_every_split_has_its_own(guesser, data):
    splits = {split: sources.questions(data, split) for split in ("val", "novel")}
    both = guesser.guess("vqa", splits)
    assert both == {split: guess(guesser, "vqa", r, split) for split, r in splits.items()}


class TestGroups:
    """Baselines of a group are those of its records alone."""

    @pytest.mark.parametrize(
        ("task", "reader", "metric"),
        [
            ("vqa", sources.questions, "accuracy"),
            ("refcoco", sources.referring, "accuracy_at_1"),
        ],
    )
    def test_of_real_records(self, guesser, data, task, reader, metric):
        records = list(reader(data, "val"))
        found = guess(guesser, task, records)
        groups = {record.group for record in records}
        assert len(groups) > 4
        for group in groups:
            alone = guess(guesser, task, [record for record in records if record.group == group])
            for kind in ("chance", "blind"):
                assert found[kind][f"{group}/{metric}"] == pytest.approx(alone[kind][metric])

    def test_of_questions_made_by_hand(self, guesser):
        def question(text, answer, group):
            return Record(
                key=text, images=("a.jpg",), text=text, answers={answer: 1.0}, group=group
            )

        training = [question("what?", "red", "color")] * 3 + [question("is it?", "no", "exists")]
        asked = [
            question("what?", "red", "color"),
            question("what?", "blue", "color"),
            question("is it?", "no", "exists"),
        ]
        chance, blind = guesser._vqa(training, asked, "val")
        assert blind["color/accuracy"] == 0.5
        assert blind["exists/accuracy"] == 1.0
        assert blind["accuracy"] == pytest.approx(2 / 3)
        # Training has one answer to questions of each kind.
        assert chance["color/accuracy"] == 0.5
        assert chance["exists/accuracy"] == 1.0
        assert chance["accuracy"] == pytest.approx(2 / 3)

    def test_of_expressions_made_by_hand(self, guesser, data):
        first, second = [r for r in sources.detection(data, "val") if len(r.boxes_xyxy) > 1][:2]
        asked = [
            Record(
                key=f"{record.key}{place}",
                images=record.images,
                image_id=record.image_id,
                text=group,
                boxes_xyxy=(record.boxes_xyxy[place],),
                group=group,
            )
            for record, place, group in ((first, 0, "color"), (second, 0, "size"))
        ]
        # Training expressions for the first box only.
        chance, blind = guesser._referring([asked[0]] * 9, asked, "val")
        assert blind["color/accuracy_at_1"] == 1.0
        same = pairwise_iou(first.boxes_xyxy[:1], second.boxes_xyxy[:1])[0, 0] >= 0.5
        assert blind["size/accuracy_at_1"] == float(same)
        for record, group in ((first, "color"), (second, "size")):
            hits = pairwise_iou(record.boxes_xyxy, record.boxes_xyxy[:1]) >= 0.5
            assert chance[f"{group}/accuracy_at_1"] == pytest.approx(hits.mean())
