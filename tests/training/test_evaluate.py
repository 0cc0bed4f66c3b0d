import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import _core
from fiber.config import preset
from fiber.data import Tokenizer, load_image, sources
from fiber.data.records import Record, TrueObjects
from fiber.metrics.captions import caption_scores
from fiber.metrics.vqa import answer_scores
from fiber.models.captioner import END_ID, Captions, beam_search
from fiber.models.roberta import PAD_ID
from fiber.training import measure_pairs
from fiber.training.checkpoint import StoredModel, build_model
from fiber.training.evaluate import TASKS, PermutedImages, evaluate, fusion_off
from fiber.training.measure_pairs import wrong_texts
from fiber.training.streams import inference_transform
from tests.training.micro_runs import all_records, colour_of

ANSWERS = ("red", "green", "blue", "white", "grey")


@pytest.fixture(scope="module")
def tokenizer(pictures):
    return Tokenizer.from_file(str(pictures / "tokenizer.json"))


@pytest.fixture(scope="module")
def models(tokenizer):
    """A new coarse and a new fine model."""
    torch.manual_seed(0)
    made = {}
    for stage in ("coarse", "fine"):
        config = preset("micro", stage=stage).with_vocabulary(tokenizer.vocab_size)
        image_text = dataclasses.replace(config.image_text, num_answers=len(ANSWERS))
        made[stage] = StoredModel(
            model=build_model(dataclasses.replace(config, image_text=image_text)),
            tokenizer=tokenizer,
            answers=ANSWERS,
        )
    # Far apart, so that the last bits of a sum do not decide which box is best.
    for layer in (made["fine"].model.head.centerness, made["fine"].model.head.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return made


def records_for(task, pictures):
    records = all_records(pictures)
    if task == "winoground":
        return [
            Record(
                key=f"swap/{case}/{picture}/{text}",
                images=(str(pictures / f"{2 * case + picture}.png"),),
                text=f"a {colour_of(2 * case + text)} square",
                truth=picture == text,
                group="colour" if case % 2 else "",
            )
            for case in range(3)
            for picture in (0, 1)
            for text in (0, 1)
        ]
    kind = {"vqa": "question", "nlvr2": "reasoning"}.get(task, "image_text")
    return records["grounding" if task in ("refcoco", "flickr", "coco") else kind]


def detection_records(pictures):
    text, names = "square. circle", ("square", "circle")
    return [
        Record(
            key=f"instances/{number}",
            images=record.images,
            text=text,
            boxes_xyxy=record.boxes_xyxy,
            char_spans=(((0, 6),),),
            box_labels=(0,),
            labels=names,
            label_spans=(((0, 6),), ((8, 14),)),
            objects=TrueObjects(
                boxes_xyxy=record.boxes_xyxy,
                labels=(0,),
                areas=(100.0,),
                crowd=(False,),
                absent=frozenset({1}),
            ),
        )
        for number, record in enumerate(all_records(pictures)["grounding"])
    ]


def measure(task, models, pictures, **options):
    model = models["fine" if TASKS[task][0] == "grounding" else "coarse"]
    is_detection = TASKS[task][1] is sources.detection
    records = detection_records(pictures) if is_detection else records_for(task, pictures)
    return evaluate(model, task, data=records, threads=1, **options)


def test_no_records_are_refused(models):
    with pytest.raises(ValueError, match="'vqa': expected at least one record, got none"):
        evaluate(models["coarse"], "vqa", data=[])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("switch", ["as it is", "permuted", "no fusion"])
def test_every_task_gives_fractions(task, switch, models, pictures):
    options = {"permuted": {"permute_images": True}, "no fusion": {"fusion": False}}
    metrics = measure(task, models, pictures, **options.get(switch, {}))
    assert metrics
    for name, value in metrics.items():
        assert 0 <= value <= (10 if name == "cider_d" else 1), name


@pytest.mark.parametrize("task", TASKS)
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


def assert_close(one, other):
    """Compare numbers with a tolerance: sums in batches of another size differ in the last bits."""
    if isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            # Boxes of equal scores may change places.
            if key != "boxes_xyxy":
                assert_close(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    else:
        assert one == other


def pixels_of(path, model):
    pixels, _, _ = _core.apply_transform(load_image(path), inference_transform(model.config))
    return torch.from_numpy(np.asarray(pixels))[None]


def test_answers_are_those_of_single_passes(models, pictures, tokenizer, tmp_path):
    path = tmp_path / "answers.json"
    accuracy = measure("vqa", models, pictures, output=path)["accuracy"]
    model, records = models["coarse"].model, records_for("vqa", pictures)
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
        dataclasses.replace(record, human_answers=tuple(votes), answers=answer_scores(votes))
        for record, votes in zip(records, people, strict=True)
    ]
    metrics = evaluate(models["coarse"], "vqa", data=asked, threads=1)
    assert metrics["accuracy"] == metrics["published_accuracy"] == pytest.approx((0.9 + 0.3) / 2)
    assert metrics["official_accuracy"] == pytest.approx((0.9 + 1.0) / 2)


def test_consistency_is_that_of_nlvr2s_identifiers(models, pictures, monkeypatch):
    """Two sentences of the same words are two sentences, as in the official script."""
    monkeypatch.setattr(
        measure_pairs,
        "reasoning_logits",
        lambda model, batch: torch.tensor([[0.0, 1.0]]).repeat(len(batch), 1),
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
    model, records = models["coarse"].model, records_for("matching", pictures)
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
    model, said = models["coarse"].model, []
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
        measure_pairs, "beam_search", lambda *_, **__: Captions(ids, torch.zeros(2))
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
    assert measure_pairs._image_numbers(names) == [*names[:2], 13, 4]


def test_swapped_captions_by_hand(models, pictures, monkeypatch):
    # Each picture prefers its own caption, but caption 0 prefers the wrong picture.
    scores = np.tile([0.9, 0.1, 0.95, 0.99], 3)
    monkeypatch.setattr(measure_pairs, "_match_scores", lambda logits: scores[: len(logits)])
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


@pytest.mark.parametrize("task", ["refcoco", "flickr", "coco"])
def test_a_box_outside_its_picture_is_refused(task, models, pictures):
    records = list(detection_records(pictures) if task == "coco" else records_for(task, pictures))
    height, width = load_image(records[1].images[0]).shape[:2]

    def run(right, **options):
        boxes = ((2.0, 2.0, right, 9.0),)
        changed = [records[0], dataclasses.replace(records[1], boxes_xyxy=boxes), *records[2:]]
        return evaluate(models["fine"], task, data=changed, threads=1, **options)

    expected = (
        rf"record '{records[1].key}': box 0 is \(2, 2, 500, 9\): it reaches {500 - width} pixels"
        rf" outside the picture of height {height} and width {width} pixels; expected at most 1"
    )
    with pytest.raises(ValueError, match=expected):
        run(500.0)
    assert run(width + 1.0)
    # Another record's picture need not hold the box.
    assert run(500.0, permute_images=True)


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
    with pytest.raises(ValueError, match="at least two different pictures"):
        PermutedImages(records_for("vqa", pictures)[:1])


def test_closed_gates_hide_the_picture_and_open_again(models, pictures):
    model = models["coarse"].model
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
    with pytest.raises(ValueError, match="no other picture has another caption"):
        wrong_texts(records[:1])


def test_groups_are_reported_beside_the_whole(models, pictures):
    metrics = measure("winoground", models, pictures)
    assert {"group", "colour/group", "other/group"} <= metrics.keys()


@pytest.mark.parametrize(
    ("task", "stage", "message"),
    [
        ("refcoc", "fine", "'refcoc' does not exist; did you mean refcoco"),
        ("vqa", "fine", "needs the head 'vqa'; the model has grounding"),
        ("flickr", "coarse", "needs the head 'grounding'; the model has itc"),
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
        metrics = evaluate(models["coarse"], task, data=odd + records[3:], threads=1)
    assert all(0 <= value <= 1 for value in metrics.values())
    limit, count = models["coarse"].config.max_tokens, len(records)
    assert [str(each.message) for each in told] == [
        f"task '{task}': 2 of {count} texts have no words; they are taken as they are",
        f"task '{task}': 1 of {count} texts are longer than the model's {limit} tokens; their"
        " beginning is read",
    ]


def test_without_a_masked_word_there_is_no_accuracy(models, pictures):
    records = records_for("masked_words", pictures)
    empty = [dataclasses.replace(record, text="<pad>") for record in records]
    with (
        pytest.warns(RuntimeWarning, match=f"{len(records)} of {len(records)} texts have no words"),
        pytest.raises(ValueError, match="no token of the 12 texts was masked; expected texts with"),
    ):
        evaluate(models["coarse"], "masked_words", data=empty, threads=1)


def test_questions_without_an_answer_of_the_model_are_counted_and_score_nothing(models, pictures):
    records = records_for("vqa", pictures)
    for odd, count in (({"zebra": 1.0}, 2), ({}, 2)):
        changed = [dataclasses.replace(r, answers=odd) for r in records[:2]]
        with pytest.warns(
            RuntimeWarning,
            match=f"task 'vqa': {count} of 12 questions have no answer among the model's 5; each",
        ):
            mixed = evaluate(models["coarse"], "vqa", data=changed + records[2:], threads=1)
        with pytest.warns(RuntimeWarning, match="2 of 2 questions"):
            alone = evaluate(models["coarse"], "vqa", data=changed, threads=1)
        assert alone["accuracy"] == 0
        known = evaluate(models["coarse"], "vqa", data=records[2:], threads=1)
        assert mixed["accuracy"] == pytest.approx(known["accuracy"] * 10 / 12)


def test_lists_of_answers_give_both_named_accuracies(models, pictures, tmp_path, monkeypatch):
    """By hand: a model that always says "red" to five, ten and one people."""
    monkeypatch.setattr(
        models["coarse"].model, "vqa_logits", lambda pooled: torch.eye(5)[:1].expand(len(pooled), 5)
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

    with pytest.warns(RuntimeWarning, match="1 of 3 questions were answered by fewer than 4 peo"):
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


def test_records_of_another_task_are_refused(models, pictures):
    with pytest.raises(TypeError, match=r"data: expected a folder or a map-style.*; got the int 5"):
        evaluate(models["coarse"], "vqa", data=5)
    with pytest.raises(
        TypeError, match=r"data of task 'vqa': expected a map-.* whose first item is"
    ):
        evaluate(models["coarse"], "vqa", data={"vqa": ["what?"]})
    with pytest.raises(ValueError, match="data has records for 'nlvr2', not for 'vqa'"):
        evaluate(models["coarse"], "vqa", data={"nlvr2": records_for("nlvr2", pictures)})
    captions = records_for("retrieval", pictures)
    with pytest.raises(ValueError, match="record 'c0' has no boxes"):
        evaluate(models["fine"], "refcoco", data=captions)
    with pytest.raises(ValueError, match="got 3 records; expected four"):
        evaluate(models["coarse"], "winoground", data=captions[:3])


def test_questions_without_answers_give_predictions_alone(models, pictures, tmp_path):
    records = records_for("vqa", pictures)[:3]
    records[1] = dataclasses.replace(records[1], answers=None)
    path = tmp_path / "found.json"
    message = "task 'vqa': 1 of 3 questions have no answers: there are no metrics, only"
    with pytest.warns(RuntimeWarning, match=message):
        metrics = evaluate(models["coarse"], "vqa", data=records, output=path, threads=1)
    assert metrics == {}
    assert len(json.loads(path.read_text())) == 3
