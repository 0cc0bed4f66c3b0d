import dataclasses
import json
import re

import pytest
import torch

from fiber import DecodeError
from fiber.checkpoints.vocabulary.sources import TRAINED_TOKENS, count_answers
from fiber.config import preset
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.data.formats.annotation_file import RecordList
from fiber.data.record import Record
from fiber.models.registry import inference_transform
from fiber.tasks.question.train import answerable
from fiber.tasks.transform import ColorJitterConfig, RandAugmentConfig, TransformConfig
from fiber.training.data import open_data
from fiber.training.distributed.processes import Processes
from fiber.training.task_loaders import TaskLoaders, training_transform
from fiber.training.train import train
from tests.training.micro_runs import all_records, coarse_config, fine_config


def question(key, answers):
    return Record(key=key, images=(b"",), text="?", answers=answers)


def streams(pictures, *, rank=0, world_size=1, consumed=None, **changes):
    changes = {"tasks__reasoning__share": 0, "tasks__caption__share": 0} | changes
    config = coarse_config(**changes)
    records = all_records(pictures)
    data = {name: records[name] for name in ("image_text", "question")}
    source = open_data(config, data, tokenizer=pictures / "tokenizer.json")
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    return TaskLoaders(
        source.fit_model(config), source, processes, consumed=consumed or {}, threads=1
    )


def test_no_answers_make_no_vocabulary():
    assert count_answers([], 5) == ()
    assert count_answers([question("a", {})], 5) == ()


def test_record_without_answers_is_named():
    with pytest.raises(ValueError, match=r"record 'b'.*answers"):
        count_answers([question("a", {"yes": 1.0}), question("b", None)], 5)


def test_answers_are_counted_by_the_best_of_each_question():
    records = [
        question("1", {"red": 0.3, "blue": 1.0}),
        question("2", {"red": 0.9}),
        question("3", {"green": 1.0}),
        question("4", {"red": 0.6, "green": 0.3}),
    ]
    assert count_answers(records, 5) == ("red", "blue", "green")
    assert count_answers(records, 2) == ("red", "blue")


def only_questions(**changes):
    return coarse_config(
        tasks__image_text__share=0, tasks__reasoning__share=0, tasks__caption__share=0, **changes
    )


def test_questions_without_an_answer_of_the_model_are_left_out_and_counted(pictures):
    records = [
        question("1", {"red": 1.0}),
        question("2", {"rare": 1.0, "red": 0.3}),
        question("3", {"rare too": 1.0}),
        question("4", {}),
        question("5", {"red": 1.0}),
    ]
    config = only_questions(model__image_text__num_answers=1)
    data = open_data(config, records, tokenizer=pictures / "tokenizer.json")
    kept = data.records["question"]
    assert [kept[index].key for index in range(len(kept))] == ["1", "2", "5"]
    assert data.counts() == {"question": 3}
    assert data.skipped == (
        "question: 2 of 5 questions were skipped, since none of their answers is among the"
        " model's 1 answer",
    )
    known = [records[0], records[4]]
    whole = open_data(config, known, tokenizer=pictures / "tokenizer.json")
    assert whole.records["question"] is known and whole.skipped == ()
    with pytest.raises(
        ValueError, match="none of the 1 questions has an answer; the first record '4' has none"
    ):
        open_data(config, records[3:4], tokenizer=pictures / "tokenizer.json")
    with pytest.raises(ValueError, match=r"1.*model's 2.*record '3'"):
        answerable(records[2:3], ("yes", "no"))


def only_pairs(**changes):
    others = {f"tasks__{task}__share": 0 for task in ("question", "reasoning", "caption")}
    return coarse_config(**others, **changes)


def pair(image, text):
    return Record(key=f"{image} {text}", images=(b"",), image_id=image, text=text)


@pytest.mark.parametrize(
    ("records", "same"),
    [
        (
            [pair("1.png", "a"), pair("1.png", "b")],
            "all 2 records have the same image (image_id '1.png'), so",
        ),
        (
            [pair("1.png", "a"), pair("2.png", "a"), pair("3.png", "a")],
            "all 3 records have the same text ('a'), so",
        ),
        (
            [pair("1.png", "a")],
            "all 1 records have the same image (image_id '1.png') and the same text ('a'),",
        ),
    ],
    ids=["one picture", "one text", "one record"],
)
def test_pairs_without_a_negative_teach_no_contrast(pictures, records, same):
    words = {"tokenizer": pictures / "tokenizer.json"}
    with pytest.raises(ValueError) as error:
        open_data(only_pairs(), records, **words)
    said = str(error.value)
    assert said.startswith(f"data for task 'image_text': {same}")
    assert "itc and itm have no negatives; expected at least two different images with" in said
    for weights, losses in (((0.0, 1.0), "itm"), ((1.0, 0.0), "itc")):
        config = only_pairs(tasks__image_text__itc=weights[0], tasks__image_text__itm=weights[1])
        with pytest.raises(ValueError, match=rf"{losses}.*negative"):
            open_data(config, records, **words)
    masked = only_pairs(tasks__image_text__itc=0.0, tasks__image_text__itm=0.0)
    assert open_data(masked, records, **words).counts() == {"image_text": len(records)}


def test_no_more_pairs_are_looked_at_than_tell_of_a_negative(pictures):
    records = [pair("1", "a"), pair("1", "b"), pair("2", "a"), pair("3", "c")]

    seen = set()

    class Noted(list):
        def __getitem__(self, index):
            seen.add(index)
            return super().__getitem__(index)

    open_data(only_pairs(), Noted(records), tokenizer=pictures / "tokenizer.json")
    assert seen == {0, 1, 2}


def test_downloads_in_one_folder_are_read_by_their_names(pictures, tmp_path):
    for name in ("coco", "flickr30k"):
        entries = [
            {
                "filename": str(pictures / f"{number}.png"),
                "split": "train",
                "sentences": [{"raw": f"{name} {number}", "sentid": number}],
            }
            for number in range(2)
        ]
        (tmp_path / f"dataset_{name}.json").write_text(json.dumps({"images": entries}))
    words = {"tokenizer": pictures / "tokenizer.json"}
    with pytest.raises(ValueError) as error:
        open_data(only_pairs(), tmp_path, **words)
    said = str(error.value)
    assert said.startswith(f"task 'image_text': {tmp_path} has captions for split 'train' in sev")
    sources = "coco_karpathy,flickr30k_karpathy"
    assert said.endswith(f" --set tasks.image_text.sources={sources}")
    config = only_pairs(tasks__image_text__sources=sources)
    assert open_data(config, tmp_path, **words).counts() == {"image_text": 4}


def test_a_broken_picture_stops_with_what_would_leave_it_out(pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    records = [
        dataclasses.replace(record, images=(str(broken),))
        for record in all_records(pictures)["image_text"]
    ]
    config = only_pairs()
    source = open_data(config, records, tokenizer=pictures / "tokenizer.json")
    processes = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    made = TaskLoaders(source.fit_model(config), source, processes, consumed={}, threads=1)
    with pytest.raises(DecodeError) as error:
        made.next_batch("image_text")
    assert re.match(r"record 'c\d+': .*broken\.png: ", str(error.value))
    assert str(error.value).endswith("; --set data.on_error=skip skips and counts such records")


def test_texts_without_words_and_texts_that_are_too_long_are_counted(pictures):
    texts = ["", "<s></s><pad>", "<mask>", "cup " * 10_000]
    records = [Record(key=str(n), images=(b"",), text=text) for n, text in enumerate(texts)]
    named = zip(records, all_records(pictures)["image_text"], strict=False)
    records = [dataclasses.replace(record, images=other.images) for record, other in named]
    config = coarse_config(
        tasks__question__share=0, tasks__reasoning__share=0, tasks__caption__share=0
    )
    source = open_data(config, records, tokenizer=pictures / "tokenizer.json")
    processes = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    made = TaskLoaders(source.fit_model(config), source, processes, consumed={}, threads=1)
    assert made.skipped() == []
    passes = 4 // made.next_batch("image_text").images.shape[0]
    for _ in range(passes - 1):
        made.next_batch("image_text")
    assert made.skipped() == [
        "image_text: 3 of 4 texts had no words; they were used as is",
        f"image_text: 1 of 4 texts were longer than the {config.model.max_tokens} tokens of"
        " model.max_tokens and were truncated",
    ]


def test_a_text_that_just_fits_is_not_counted_as_cut(pictures):
    config = coarse_config(
        tasks__question__share=0, tasks__reasoning__share=0, tasks__caption__share=0
    )
    limit = config.model.max_tokens
    tokenizer = Tokenizer.from_file(str(pictures / "tokenizer.json"))
    # Each "z" is a token: what fits exactly, and one more.
    texts = ["z " * (count // 2) + "z" * (count % 2) for count in (limit - 2, limit - 1)]
    assert [len(tokenizer.encode(text)[0]) for text in texts] == [limit, limit + 1]
    records = [
        dataclasses.replace(record, text=text)
        for record, text in zip(all_records(pictures)["image_text"], texts * 2, strict=False)
    ]
    source = open_data(config, records, tokenizer=tokenizer)
    processes = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    made = TaskLoaders(source.fit_model(config), source, processes, consumed={}, threads=1)
    batch = made.next_batch("image_text")
    assert batch.text_mask.all()
    assert made.skipped() == [
        f"image_text: {sum(key in ('c1', 'c3') for key in batch.keys)} of {len(batch)} texts were"
        f" longer than the {limit} tokens of model.max_tokens and were truncated"
    ]


def test_answers_of_a_model_are_kept_while_they_will_do(pictures):
    records = {"question": all_records(pictures)["question"]}
    config = coarse_config(
        tasks__image_text__share=0, tasks__reasoning__share=0, tasks__caption__share=0
    )
    counted = open_data(config, records, tokenizer=pictures / "tokenizer.json").vocabulary
    assert counted.answers == ("blue", "green", "red", "white")
    for own, expected in [
        (("white", "pink", "red", "green", "blue"), ("white", "pink", "red", "green", "blue")),
        (("white", "pink", "red", "green"), counted.answers),
        ((), counted.answers),
    ]:
        known = counted._replace(answers=own)
        assert open_data(config, records, known=known).vocabulary.answers == expected


def test_answers_that_are_named_are_the_models_in_their_order(pictures, tmp_path):
    records = {"question": all_records(pictures)["question"]}
    config = only_questions()
    tokenizer = pictures / "tokenizer.json"
    counted = open_data(config, records, tokenizer=tokenizer).vocabulary
    named = ("white", "never asked", "red")
    (tmp_path / "named.json").write_text(json.dumps(named))
    known = counted._replace(answers=("white", "pink", "red", "green", "blue"))
    for given in (named, list(named), tmp_path / "named.json", str(tmp_path / "named.json")):
        data = open_data(config, records, tokenizer=tokenizer, answers=given, known=known)
        assert data.vocabulary.answers == named
        assert data.fit_model(config).model.image_text.num_answers == 3
        # Of four colours in turn two are named.
        assert data.counts() == {"question": 6}
        assert data.skipped == (
            "question: 6 of 12 questions were skipped, since none of their answers is among the"
            " model's 3 answers",
        )


def test_the_published_list_may_hold_one_empty_answer(pictures):
    records = {"question": all_records(pictures)["question"]}
    data = open_data(
        only_questions(),
        records,
        tokenizer=pictures / "tokenizer.json",
        answers=["", "red", "green", "blue", "white"],
    )
    assert data.vocabulary.answers == ("", "red", "green", "blue", "white")
    assert data.counts() == {"question": 12}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((), "expected at least one answer, got none"),
        (["red", "blue", "red"], "duplicate answer 'red' (entries 0 and 2)"),
        (["red", " "], "answers[1]: expected a non-blank string, got ' '"),
        (["red", 3], "answers[1]: expected a string, got 3"),
        ({"red": 0}, "answers: expected a list of strings, got dict {'red': 0}"),
        (
            ["pink"],
            "none of the 12 questions has one of the model's 1 answers; the first record 'q0'",
        ),
    ],
)
def test_answers_that_nothing_can_be_taught_with(pictures, tmp_path, answers, said):
    records = {"question": all_records(pictures)["question"]}
    (tmp_path / "named.json").write_text(json.dumps(answers))
    for given in (answers, tmp_path / "named.json"):
        with pytest.raises(ValueError, match=re.escape(said)):
            open_data(
                only_questions(), records, tokenizer=pictures / "tokenizer.json", answers=given
            )


def test_answers_without_questions(pictures):
    config = coarse_config(
        tasks__question__share=0, tasks__reasoning__share=0, tasks__caption__share=0
    )
    records = all_records(pictures)["image_text"]
    with pytest.raises(ValueError, match=r"no question task; its tasks are image_text"):
        open_data(config, records, tokenizer=pictures / "tokenizer.json", answers=["red"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, r"data.*folder.*int 5"),
        (iter([]), r"data.*list_iterator"),
        ({"question": 5}, r"task 'question'.*int 5"),
        (
            {"question": "folder"},
            r"task 'question'.*str 'folder'",
        ),
    ],
)
def test_data_that_are_no_records_are_refused(pictures, data, said):
    config = coarse_config(
        tasks__image_text__share=0, tasks__reasoning__share=0, tasks__caption__share=0
    )
    with pytest.raises(TypeError, match=said):
        open_data(config, data, tokenizer=pictures / "tokenizer.json")


def test_records_without_any_box_do_not_train_boxes(pictures):
    config = fine_config()
    with_boxes = all_records(pictures)["grounding"]
    boxless = [
        dataclasses.replace(r, boxes_xyxy=(), char_spans=(), box_labels=()) for r in with_boxes
    ]
    tokenizer = pictures / "tokenizer.json"
    with pytest.raises(ValueError, match=rf"'grounding'.*{len(boxless)}"):
        open_data(config, boxless, tokenizer=tokenizer)
    # The error counts the boxes that the reader dropped: they may be all of them.
    dropped = RecordList()
    dropped += boxless
    dropped.skip("empty boxes", 7)
    with pytest.raises(ValueError, match=r"'grounding'.*7 empty boxes.*relative to the image"):
        open_data(config, dropped, tokenizer=tokenizer)
    # Pictures of nothing may stand among others, however rare those are.
    mixed = [*boxless, with_boxes[0]]
    assert open_data(config, mixed, tokenizer=tokenizer).counts() == {"grounding": len(mixed)}
    many = boxless * 1000
    with pytest.raises(ValueError, match=r"1000.*none"):
        open_data(config, many[: 1000 * len(boxless)], tokenizer=tokenizer)


def test_one_set_does_not_serve_several_tasks(pictures):
    with pytest.raises(TypeError, match="int 5"):
        open_data(coarse_config(), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tasks image_text.*question"):
        open_data(coarse_config(), all_records(pictures)["question"])


def test_tasks_have_positions_of_their_own(pictures):
    one = streams(pictures)
    first = [one.next_batch(name).keys for name in ("image_text", "question", "image_text")]
    assert one.consumed == {"image_text": 8, "question": 4}
    # Questions and captions of the same pictures come in different orders.
    assert [key[1:] for key in first[0]] != [key[1:] for key in first[1]]
    again = streams(pictures, consumed={"image_text": 4, "question": 0})
    assert again.next_batch("image_text").keys == first[2]
    assert again.next_batch("question").keys == first[1]


def test_images_of_a_task_are_transformed_in_its_own_way(pictures):
    own = TransformConfig(kind="shorter_side", shorter_sides=(32,), max_size=96)
    both = streams(pictures, tasks__question__transform=own)
    sizes = {name: both.next_batch(name).image_sizes for name in ("image_text", "question")}
    assert sizes["image_text"].tolist() == [[64, 64]] * 4
    assert sizes["question"].tolist() == [[32, 32]] * 4


def test_ranks_and_passes_cut_one_stream(pictures):
    whole = streams(pictures, data__batch_size=8).next_batch("image_text").keys
    passes = streams(pictures, data__batch_size=8, train__accumulation=2)
    assert passes.next_batch("image_text").keys + passes.next_batch("image_text").keys == whole
    assert passes.consumed["image_text"] == 8
    ranks = [
        streams(pictures, rank=rank, world_size=2, data__batch_size=8).next_batch("image_text").keys
        for rank in range(2)
    ]
    assert ranks[0] + ranks[1] == whole


@pytest.mark.parametrize("kind", ["squash", "crop", "shorter_side", "scale_jitter"])
def test_training_pictures_have_the_size_asked_for(kind):
    transform = training_transform(
        preset("micro"), TransformConfig(kind=kind, shorter_sides=(64,), max_size=96)
    )
    assert transform.is_square == (kind != "shorter_side")
    assert transform.describe()["rand_augment"] is None
    assert transform.describe()["color_jitter"] is None


@pytest.mark.parametrize("kind", ["squash", "crop", "shorter_side", "scale_jitter"])
def test_training_pictures_are_augmented_as_asked_for(kind):
    asked = RandAugmentConfig(num_ops=3, magnitude=2.5, probability=1.0, operations=("Rotate",))
    transform = training_transform(preset("micro"), TransformConfig(kind=kind, rand_augment=asked))
    assert transform.describe()["rand_augment"] == to_dict(asked)
    assert transform.describe()["color_jitter"] is None


@pytest.mark.parametrize("kind", ["squash", "crop", "shorter_side", "scale_jitter"])
def test_colours_of_training_pictures_change_as_asked_for(kind):
    asked = ColorJitterConfig(brightness=(0.5, 1.5), hue=(-0.25, 0.0))
    transform = training_transform(preset("micro"), TransformConfig(kind=kind, color_jitter=asked))
    assert transform.describe()["color_jitter"] == to_dict(asked)


def test_finished_models_see_whole_pictures():
    assert inference_transform(preset("micro")).is_square
    assert not inference_transform(preset("micro", stage="fine")).is_square


def test_a_tokenizer_is_trained_where_one_is_asked_for(pictures, tmp_path, capsys):
    records = all_records(pictures)["question"]
    config = coarse_config(
        **{f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")},
        train__steps=1,
    )
    run = train(config, data=records, tokenizer="train", output=tmp_path / "r", device="cpu")
    trained = Tokenizer.train([record.text for record in records], TRAINED_TOKENS)
    own = Tokenizer.from_file(run.folder / "tokenizer.json")
    assert own.encode("what colour is the square?") == trained.encode("what colour is the square?")
    assert run.config.model.roberta.vocab_size == own.vocab_size == trained.vocab_size
    said = capsys.readouterr().err
    assert f"trained a tokenizer with {own.vocab_size} tokens on the texts" in said
    with pytest.raises(ValueError, match=r"'train' cannot be used with the weights of .*/r,"):
        train(config, data=records, tokenizer="train", init=run.folder, output=tmp_path / "s")
    # A resumed run keeps what it has.
    again = train(
        config, data=records, tokenizer="train", output=run.folder, resume=True, device="cpu"
    )
    assert again.config == run.config
