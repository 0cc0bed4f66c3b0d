import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.captions import caption_scores
from fiber.metrics.vqa import published_score
from fiber.models.encoders.roberta import PAD_ID
from fiber.models.fiber.beam_search import END_ID, Captions, beam_search
from fiber.models.fiber.image_text import FiberImageText
from fiber.tasks.caption import evaluate as caption_evaluation
from fiber.tasks.image_text import evaluate as image_text_evaluation
from tests.evaluation.measured import (
    ANSWERS,
    assert_close,
    measure,
    pixels_of,
    records_for,
)


def test_answers_are_those_of_single_passes(models, pictures, tokenizer, tmp_path):
    path = tmp_path / "answers.json"
    accuracy = measure("vqa", models, pictures, output=path)["accuracy"]
    model, records = models["coarse"].network, records_for("vqa", pictures)
    right = 0.0
    for record, prediction in zip(records, json.loads(path.read_text()), strict=True):
        ids = torch.tensor([tokenizer.encode(record.text)[0]])
        with torch.no_grad():
            fused = model.backbone.encode_pair(pixels_of(record.images[0], model), ids, ids >= 0)
            answer = ANSWERS[int(model.vqa_logits(model.pooled(fused)).argmax())]
        assert prediction == {"question_id": record.key, "answer": answer}
        right += record.answers.get(answer, 0.0)
    assert accuracy == pytest.approx(right / len(records))


def test_both_forms_of_vqa_accuracy_where_people_answered(models, pictures, tmp_path):
    path = tmp_path / "answers.json"
    records = records_for("vqa", pictures)[:2]
    measure_one = {"data": records, "output": path, "threads": 1}
    assert evaluate(models["coarse"], "vqa", **measure_one).keys() == {"accuracy"}
    said = [entry["answer"] for entry in json.loads(path.read_text())]
    # Three of ten agree with the model on one question; on the other one does, and nine with an
    # article: the official form drops it.
    people = [[said[0]] * 3 + ["other"] * 7, [said[1]] + [f"The {said[1]}"] * 8 + ["other"]]
    asked = [
        dataclasses.replace(
            record,
            human_answers=tuple(votes),
            answers={answer: published_score(answer, votes) for answer in votes},
        )
        for record, votes in zip(records, people, strict=True)
    ]
    metrics = evaluate(models["coarse"], "vqa", data=asked, threads=1)
    assert metrics["accuracy"] == metrics["published_accuracy"] == pytest.approx((0.9 + 0.3) / 2)
    assert metrics["official_accuracy"] == pytest.approx((0.9 + 1.0) / 2)


def test_consistency_is_that_of_nlvr2s_identifiers(models, pictures, monkeypatch):
    """Two sentences of the same words are two sentences, as in the official script."""
    monkeypatch.setattr(
        FiberImageText,
        "statement_logits",
        lambda model, images, *text: torch.tensor([[0.0, 1.0]]).repeat(len(images), 1),
    )
    records = [
        dataclasses.replace(record, key=f"nlvr2_dev/dev-{key}", text="the same", truth=truth)
        for record, key, truth in zip(
            records_for("nlvr2", pictures),
            ["850-0-0", "850-1-0", "851-0-0", "851-1-0"],
            [True, True, True, False],
            strict=False,
        )
    ]
    metrics = evaluate(models["coarse"], "nlvr2", data=records, threads=1)
    assert metrics == {"accuracy": 0.75, "consistency": 0.5}
    # Without such identifiers the words tell.
    records = [dataclasses.replace(r, key=f"mine/{i}") for i, r in enumerate(records)]
    metrics = evaluate(models["coarse"], "nlvr2", data=records, threads=1)
    assert metrics == {"accuracy": 0.75, "consistency": 0.0}


def test_matching_scores_are_those_of_single_passes(models, pictures, tokenizer, tmp_path):
    path = tmp_path / "scores.json"
    measure("matching", models, pictures, output=path)
    model, records = models["coarse"].network, records_for("matching", pictures)
    by_key = {record.key: record for record in records}
    entries = json.loads(path.read_text())
    assert [entry["match"] for entry in entries] == [1] * 12 + [0] * 12
    for entry in entries[::5]:
        ids = torch.tensor([tokenizer.encode(by_key[entry["text_key"]].text)[0]])
        image = by_key[entry["image_key"]].images[0]
        with torch.no_grad():
            fused = model.backbone.encode_pair(pixels_of(image, model), ids, ids >= 0)
            score = model.itm_logits(model.pooled(fused)).softmax(-1)[0, 1].item()
        assert entry["score"] == pytest.approx(score, rel=1e-4)
        assert (entry["image_key"] == entry["text_key"]) == (entry["match"] == 1)


def test_pictures_are_described_once_in_cocos_format(models, pictures, tokenizer, tmp_path):
    path = tmp_path / "captions.json"
    records = records_for("caption", pictures)[:3]
    names = ("COCO_val2014_000000391895.jpg", "a/7.jpg", "dog.jpg")
    shown = [
        dataclasses.replace(record, image_id=f"images/{name}")
        for record, name in zip(records, names, strict=True)
    ]
    again = dataclasses.replace(shown[0], key="again", text="another caption")
    metrics = evaluate(models["coarse"], "caption", data=[*shown, again], output=path)
    found = json.loads(path.read_text())
    assert [entry["image_id"] for entry in found] == [391895, 7, "images/dog.jpg"]
    assert all(entry.keys() == {"image_id", "caption"} for entry in found)
    model, said = models["coarse"].network, []
    for record in records:
        with torch.no_grad():
            tokens = model.backbone.encode_image(pixels_of(record.images[0], model)).stages[-1]
            ids = beam_search(model, tokens, num_beams=5, max_tokens=16).token_ids[0].tolist()
        ids = ids[: ids.index(END_ID)] if END_ID in ids else ids
        said.append(tokenizer.decode(ids).strip())
    assert [entry["caption"] for entry in found] == said
    people = [[records[0].text, "another caption"], [records[1].text], [records[2].text]]
    assert metrics == caption_scores(said, people)


def test_caption_metrics_by_hand(models, pictures, tokenizer, monkeypatch):
    """Each picture is compared with all of its captions, by tokens, with their own rarity."""
    records = records_for("caption", pictures)[:2]
    said = ["A red square.", "two dogs"]
    wrote = [["a red square", "a blue ball"], ["two dogs run"]]
    longest = max(len(tokenizer.encode(text)[0]) for text in said)
    ids = [tokenizer.encode(text)[0][1:] for text in said]
    ids = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in ids])
    monkeypatch.setattr(
        caption_evaluation, "beam_search", lambda *_, **__: Captions(ids, torch.zeros(2))
    )
    shown = [
        dataclasses.replace(record, key=f"{record.key}/{text}", text=text)
        for record, texts in zip(records, wrote, strict=True)
        for text in texts
    ]
    shown = [dataclasses.replace(r, image_id=r.images[0]) for r in shown]
    metrics = evaluate(models["coarse"], "caption", data=shown, threads=1)
    # 1- to 3-grams of "a red square" agree with one of two references; with "a blue ball" it shares
    # "a", one of three words that all weigh log 2.
    first = (3 / 4 + 1 / 3 / 4) / 2
    # "two dogs" has two of three 1-grams, one of two 2-grams, and one 2-gram too few.
    second = (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert metrics["cider_d"] == pytest.approx(10 * (first + second) / 2)
    # Precision 1 and recall 1; precision 1 and recall 2 / 3.
    assert metrics["rouge_l"] == pytest.approx((1 + 2.44 * (2 / 3) / (2 / 3 + 1.44)) / 2)
    assert metrics.keys() == {"bleu_4", "rouge_l", "cider_d"}


def test_pictures_that_share_a_number_keep_their_names():
    names = ["train/000012.jpg", "val/000012.jpg", "val/13.jpg", "c4"]
    assert caption_evaluation._image_numbers(names) == [*names[:2], 13, 4]


def test_swapped_captions_by_hand(models, pictures, monkeypatch):
    # Each picture prefers its own caption, but caption 0 prefers the wrong picture.
    scores = np.tile([0.9, 0.1, 0.95, 0.99], 3)
    monkeypatch.setattr(
        image_text_evaluation, "_match_scores", lambda logits: scores[: len(logits)]
    )
    metrics = measure("winoground", models, pictures)
    assert (metrics["text"], metrics["image"], metrics["group"]) == (1.0, 0.0, 0.0)


def test_pictures_of_other_sizes_do_not_change_boxes(models, pictures, tmp_path):
    records = []
    for number, size in enumerate([(48, 48), (90, 48), (48, 70), (48, 48)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, (40 * number, 90, 20)).save(path)
        records.append(
            Record(
                key=f"g{number}",
                images=(str(path),),
                text="a square",
                boxes_xyxy=((1.0, 2.0, 30.0, 40.0),),
                char_spans=(((0, 8),),),
                label_spans=(((0, 8),),),
                labels=("a square",),
            )
        )
    found = []
    for batch_size in (1, 4):
        path = tmp_path / f"{batch_size}.json"
        evaluate(models["fine"], "refcoco", data=records, batch_size=batch_size, output=path)
        found.append(json.loads(path.read_text()))
    assert_close(*found)
    assert [entry["key"] for entry in found[0]] == ["g0", "g1", "g2", "g3"]


def test_label_behind_the_last_token_gets_no_box(models, pictures, tmp_path):
    base = records_for("refcoco", pictures)[0]
    text = "very " * 40 + base.text
    span = ((len(text) - len(base.text), len(text)),)
    record = dataclasses.replace(
        base, text=text, char_spans=(span,), label_spans=(span,), labels=(base.text,)
    )
    path = tmp_path / "boxes.json"
    metrics = evaluate(models["fine"], "refcoco", data=[record], output=path)
    assert json.loads(path.read_text()) == [{"key": "g0", "box_xyxy": None, "score": 0.0}]
    assert metrics["accuracy_at_1"] == 0.0


def test_lists_of_answers_give_both_named_accuracies(models, pictures, tmp_path, monkeypatch):
    """By hand: a model that always says "red" to five, ten and one people."""
    monkeypatch.setattr(
        models["coarse"].network,
        "vqa_logits",
        lambda pooled: torch.eye(5)[:1].expand(len(pooled), 5),
    )
    people = [
        ["red", "red", "blue", "blue", "green"],
        ["red"] * 3 + ["blue"] * 7,
        ["red"],
    ]
    path = tmp_path / "own.jsonl"

    def measured(*answers):
        lines = [
            {"image": str(pictures / f"{n}.png"), "question": "what?"} | {"answers": given}
            for n, given in enumerate(answers)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return evaluate(models["coarse"], "vqa", data=path, threads=1)

    with pytest.warns(RuntimeWarning, match=r"1.*3 questions.*4"):
        metrics = measured(*people)
    # In proportion to ten people two of five are four.
    assert metrics["accuracy"] == pytest.approx((1.0 + 0.9 + 1.0) / 3)
    assert metrics["official_accuracy"] == pytest.approx((8 / 15 + 0.9 + 1.0) / 3)
    assert metrics["published_accuracy"] == pytest.approx((0.6 + 0.9 + 0.3) / 3)
    # Ten people say the same in all three forms; scores alone do not tell what people said.
    assert measured(people[1]) == pytest.approx(
        dict.fromkeys(("accuracy", "official_accuracy", "published_accuracy"), 0.9)
    )
    assert measured(people[1], {"red": 1.0}) == pytest.approx({"accuracy": 0.95})


def test_questions_without_answers_give_predictions_alone(models, pictures, tmp_path):
    records = records_for("vqa", pictures)[:3]
    records[1] = dataclasses.replace(records[1], answers=None)
    path = tmp_path / "found.json"
    message = "task 'vqa': 1 of 3 questions have no answers, so metrics cannot be computed"
    with pytest.warns(RuntimeWarning, match=message):
        metrics = evaluate(models["coarse"], "vqa", data=records, output=path, threads=1)
    assert metrics == {}
    assert len(json.loads(path.read_text())) == 3


def test_questions_without_an_answer_of_the_model_are_counted_and_score_nothing(models, pictures):
    records = records_for("vqa", pictures)
    for odd, count in (({"zebra": 1.0}, 2), ({}, 2)):
        changed = [dataclasses.replace(r, answers=odd) for r in records[:2]]
        with pytest.warns(
            RuntimeWarning,
            match=rf"task 'vqa': {count}.*12.*model's 5",
        ):
            mixed = evaluate(models["coarse"], "vqa", data=changed + records[2:], threads=1)
        with pytest.warns(RuntimeWarning, match=r"2.*2 questions"):
            alone = evaluate(models["coarse"], "vqa", data=changed, threads=1)
        assert alone["accuracy"] == 0
        known = evaluate(models["coarse"], "vqa", data=records[2:], threads=1)
        assert mixed["accuracy"] == pytest.approx(known["accuracy"] * 10 / 12)
