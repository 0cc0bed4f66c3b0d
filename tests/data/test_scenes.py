"""Grounded scenes: the same bytes whatever the count, true texts, no leaks, nothing half-made."""

import collections
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fiber._core import Tokenizer
from PIL import Image

from fiber.data import scenes, sources
from fiber.data.draws import Draws
from fiber.data.scene_graphs import (
    COLORS,
    MATERIALS,
    RADII,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    Thing,
    relation,
    sample_scene,
    shapes_world,
    shows_held_out_fact,
)
from fiber.data.scene_pictures import RGB, draw_scene, shape_distance
from fiber.data.scenes import describe_picture, generate

NUM_PICTURES = 2000
WORDS = {"size": SIZES, "material": MATERIALS, "color": COLORS, "noun": SHAPES}
NUMBERS = {"two": 2, "three": 3, "four": 4}
REPLY = {"yes": True, "no": False}
PLURALS = {"crosses": "cross", "objects": "object", **{f"{s}s": s for s in SHAPES if s != "cross"}}
RELATION = re.compile(r" (left of|right of|above|below) ")


@pytest.fixture(scope="module")
def described():
    """Pictures of every split, not drawn: {split: [(picture, scene)]}."""
    return {split: [describe_picture(0, split, i) for i in range(NUM_PICTURES)] for split in SPLITS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("scenes") / "data", train=30, val=12, novel=12)


@pytest.fixture
def small(folder):
    """Arguments of a folder with no pictures and a tokenizer that is not trained again."""
    return {"train": 0, "val": 0, "novel": 0, "tokenizer": folder}


def matches(thing, phrase):
    """Whether a thing is what "a small red star" or "the dotted object" says: a second reader."""
    words = phrase.removeprefix("the ").removeprefix("a ").removeprefix("an ").split()
    for word in words:
        word = PLURALS.get(word, word)
        if word in NUMBERS or word == "object":
            continue
        kind = next(kind for kind, values in WORDS.items() if word in values)
        if getattr(thing, kind) != word:
            return False
    return True


def texts_of(picture):
    entries = picture.captions + picture.expressions + picture.questions + picture.statements
    return [entry.text for entry in entries] + list((picture.swapped_captions or ("", ""))[:2])


# ---- files


def test_a_folder_without_pictures_is_readable(tmp_path):
    folder = generate(tmp_path / "none", train=0, val=0, novel=0)
    for read in (
        sources.captions,
        sources.questions,
        sources.reasoning,
        sources.phrases,
        sources.referring,
        sources.detection,
        sources.swapped,
    ):
        for split in SPLITS:
            assert list(read(folder, split)) == []
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).vocab_size > 261


def test_one_picture_of_an_odd_size(tmp_path, small):
    size = {"image_size": 75, "max_objects": 1}
    folder = generate(tmp_path / "one", **{**small, **size, "train": 1})
    (record,) = sources.detection(folder, "train")
    with Image.open(record.images[0]) as picture:
        assert (picture.size, picture.format) == ((75, 75), "JPEG")
    assert len(record.boxes_xyxy) == 1


def test_every_reader_reads_the_folder(folder):
    for split, count in (("train", 30), ("val", 12), ("novel", 12)):
        detection = sources.detection(folder, split)
        assert len(detection) == count
        assert detection[0].text == ". ".join(SHAPES)
        assert all(
            record.labels[label] == record.text[slice(*spans[0])]
            for record in detection
            for label, spans in zip(record.box_labels, record.char_spans, strict=True)
        )
        captions, phrases = sources.captions(folder, split), sources.phrases(folder, split)
        assert [r.text for r in captions] == [r.text for r in phrases]
        assert [r.image_id for r in captions] == [r.image_id for r in phrases]
        assert len({r.image_id for r in captions}) == count < len(captions)
        for record in (*phrases, *sources.referring(folder, split)):
            assert record.labels[0] in record.text and len(record.boxes_xyxy) > 0
        assert all(
            r.answers and max(r.answers.values()) == 1 for r in sources.questions(folder, split)
        )
        assert len(sources.reasoning(folder, split)) > 0
        truths = [record.truth for record in sources.swapped(folder, split)]
        assert truths == [True, False, False, True] * (len(truths) // 4) and truths


def test_boxes_are_where_the_pictures_change(folder):
    """The middle of a box is the thing's colour, unless the thing is a ring."""
    records = sources.detection(folder, "train")
    things = [sample_scene(shapes_world(0), 0, "train", i).things for i in range(len(records))]
    distances = []
    for record, shown in zip(records, things, strict=True):
        pixels = np.asarray(Image.open(record.images[0]), dtype=float)
        assert len(shown) == len(record.boxes_xyxy)
        for thing, (x0, y0, x1, y1) in zip(shown, record.boxes_xyxy, strict=True):
            if thing.noun != "ring" and thing.material == "plain":
                found = pixels[int((y0 + y1) / 2), int((x0 + x1) / 2)]
                distances.append(np.abs(found - np.array(RGB[thing.color])).max())
    # 10 of jitter, the rest JPEG.
    assert len(distances) > 8 and max(distances) < 40


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = generate(tmp_path / "again", train=30, val=12, novel=12)
    assert files_of(again) == files_of(folder)


def test_pictures_do_not_depend_on_how_many_there_are(folder, tmp_path, small):
    fewer = generate(tmp_path / "fewer", **{**small, "train": 11, "val": 3})
    some, all_files = files_of(fewer), files_of(folder)
    names = [name for name in some if name.startswith("images") or name == "tokenizer.json"]
    assert len(names) == 15
    assert all(some[name] == all_files[name] for name in names)
    for read in (sources.captions, sources.referring, sources.questions, sources.reasoning):
        few, many = read(fewer, "train"), read(folder, "train")
        assert len(few) > 0
        assert [r.text for r in few] == [r.text for r in many[: len(few)]]


def test_worker_processes_give_the_same_bytes(folder, tmp_path, monkeypatch, small):
    monkeypatch.setattr(scenes, "_PER_JOB", 10)
    calls = []
    two = generate(
        tmp_path / "two",
        **{**small, "train": 30, "val": 12, "novel": 12},
        workers=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    found, expected = files_of(two), files_of(folder)
    # It names the tokenizer that was given.
    del found["dataset.json"], expected["dataset.json"]
    assert found == expected
    assert calls[-1] == (54, 54) and len(calls) == 7


def test_another_seed_gives_other_pictures_and_holds_out_others(folder, tmp_path, small):
    other = generate(tmp_path / "other", **{**small, "train": 2}, seed=1)
    name = "images/train/000/000000.jpg"
    assert (other / name).read_bytes() != (folder / name).read_bytes()
    held_out = [
        json.loads((path / "dataset.json").read_text())["held_out"] for path in (folder, other)
    ]
    assert held_out[0] != held_out[1]
    assert len(held_out[0]["color_shape"]) == 8 and len(held_out[0]["relations"]) == 12


def test_a_finished_folder_is_kept_and_other_parameters_are_named(tmp_path, monkeypatch, small):
    small["train"] = 2
    folder = generate(tmp_path / "data", **small)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(scenes, "_make_pictures", lambda job: pytest.fail("drew again"))
    assert generate(tmp_path / "data", **small) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=r"seed is 0, asked for 3"):
        generate(tmp_path / "data", **small, seed=3)
    with pytest.raises(ValueError, match=r"counts is .*'train': 2.* asked for .*'train': 4"):
        generate(tmp_path / "data", **{**small, "train": 4})


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match=r"mine exists and is no data folder"):
        generate(tmp_path / "mine", train=1, val=0, novel=0)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1}, "train is -1 pictures"),
        ({"image_size": 20}, "image_size is 20"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=lambda value: str(value),
)
def test_arguments_out_of_range(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "data", **{"train": 1, "val": 0, "novel": 0, **wrong})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr
)
def test_nothing_is_left_of_a_run_that_failed(problem, tmp_path, monkeypatch, small):
    saved = []

    def fail_late(picture, path):
        saved.append(path)
        if len(saved) == 5:
            raise problem
        Image.fromarray(picture).save(path)

    monkeypatch.setattr(scenes, "save_jpeg", fail_late)
    with pytest.raises(type(problem)):
        generate(tmp_path / "data", **{**small, "train": 9})
    assert len(saved) == 5
    assert list(tmp_path.iterdir()) == []


def test_control_c_while_processes_draw(tmp_path):
    code = (
        "from fiber.data.scenes import generate\n"
        "if __name__ == '__main__':\n"
        f"    generate({str(tmp_path / 'data')!r}, train=200000, workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        partial = tmp_path / ".data.partial" / "images" / "train" / "000"
        deadline = time.monotonic() + 60
        while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any(partial.iterdir())
        # As the terminal does: to the process and to those that it started.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert errors.decode().strip().endswith("KeyboardInterrupt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]


def test_a_given_tokenizer_is_copied_and_a_missing_one_named(folder, tmp_path):
    other = generate(tmp_path / "other", train=1, val=0, novel=0, seed=5, tokenizer=folder)
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer; expected tokenizer\.json"):
        generate(tmp_path / "third", train=1, val=0, novel=0, tokenizer=tmp_path)


def test_every_word_is_one_token_and_texts_are_short(folder, described):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [text for split in SPLITS for p, _ in described[split][:400] for text in texts_of(p)]
    lengths = [len(tokenizer.encode(text)[0]) for text in texts]
    assert max(lengths) <= 24
    words = {f" {word}" for values in WORDS.values() for word in values}
    assert all(len(tokenizer.encode(word)[0]) == 3 for word in words)


# ---- pictures


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_bounds_of_alpha_above_a_half(shape):
    """Against the same outline cut up 16 times finer, counted pixel by pixel."""
    for size in SIZES:
        thing = Thing(shape, "white", size, "plain", x=31.3, y=24.8, radius=RADII[size][0] * 96)
        _, (box,) = draw_scene_without_jitter(thing)
        fine = (np.arange(64 * 16) + 0.5) / 16
        u, v = fine[None, :] - thing.x, fine[:, None] - thing.y
        inside = shape_distance(shape, u + 0 * v, v + 0 * u, thing.radius) < 0
        coverage = inside.reshape(64, 16, 64, 16).mean((1, 3))
        rows, columns = np.nonzero(coverage > 0.5)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # Where the outline has a sharp tip, distance and coverage may differ by a pixel.
        assert np.abs(np.subtract(box, expected)).max() <= 1
        across = box[2] - box[0], box[3] - box[1]
        low, high = (9, 18) if size == "small" else (16, 30)
        assert all(low <= side <= high for side in across)


def draw_scene_without_jitter(thing):
    """Draw one thing, not turned."""

    class Middle(Draws):
        def between(self, low, high):
            return (low + high) / 2

    return draw_scene(Scene((thing,)), 64, Middle(0, 0, 0))


def test_shapes_are_distinct():
    """No two shapes of one size overlap by more than nine tenths (IoU)."""
    steps = np.arange(-20, 20) + 0.5
    u, v = np.meshgrid(steps, steps)
    masks = [shape_distance(shape, u, v, 14.0) < 0 for shape in SHAPES]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask & other).sum() / (mask | other).sum() < 0.85


def test_things_do_not_overlap_and_stay_inside(described):
    for split in SPLITS:
        for _, scene in described[split]:
            for index, thing in enumerate(scene.things):
                assert thing.radius < thing.x < 96 - thing.radius
                assert thing.radius < thing.y < 96 - thing.radius
                for other in scene.things[:index]:
                    apart = math.hypot(thing.x - other.x, thing.y - other.y)
                    assert apart > thing.radius + other.radius


def test_all_words_are_as_frequent(described):
    things = [thing for _, scene in described["train"] for thing in scene.things]
    for kind, values in WORDS.items():
        counts = collections.Counter(getattr(thing, kind) for thing in things)
        assert set(counts) == set(values)
        for count in counts.values():
            # Things of one picture are not independent, hence not 4 but 6 standard deviations.
            share, expected = count / len(things), 1 / len(values)
            assert abs(share - expected) < 6 * math.sqrt(expected / len(things))


# ---- what is held out


def test_training_and_val_show_and_say_nothing_that_is_held_out(described):
    world = shapes_world(0)
    pairs = [f"{color} {noun}" for color, noun in world.held_out_pairs]
    bad_pair = re.compile("|".join(f"\\b{pair}" for pair in pairs))
    noun = "|".join(SHAPES)
    words = "|".join((*SIZES, *MATERIALS, *COLORS))
    related = re.compile(
        rf"({noun}) (left of|right of|above|below) (?:the|a) (?:(?:{words}) )*({noun})"
    )
    num_related = 0
    for split in ("train", "val"):
        for picture, scene in described[split]:
            assert not any(world.is_held_out(thing) for thing in scene.things)
            assert not shows_held_out_fact(world, scene.things)
            for text in texts_of(picture):
                assert not bad_pair.search(text), text
                for fact in related.findall(text):
                    num_related += 1
                    assert not world.is_held_out_fact(*fact), text
    assert num_related > 1000


def test_val_and_train_have_no_picture_in_common(described):
    assert not {repr(s) for _, s in described["train"]} & {repr(s) for _, s in described["val"]}


def test_novel_pictures_show_what_is_held_out_and_texts_ask_about_it(described):
    world = shapes_world(0)
    pairs = [f"{color} {noun}" for color, noun in world.held_out_pairs]
    facts = collections.Counter()
    for picture, scene in described["novel"]:
        held_out = [i for i, thing in enumerate(scene.things) if world.is_held_out(thing)]
        assert held_out
        assert all(any(pair in caption.text for pair in pairs) for caption in picture.captions[:1])
        assert all(expression.things[0][0] in held_out for expression in picture.expressions)
        for question in picture.questions:
            if question.group in ("color", "shape", "size", "material"):
                phrase = re.search(r"is (the .*)\?", question.text).group(1)
                (target,) = [i for i, t in enumerate(scene.things) if matches(t, phrase)]
                assert target in held_out
            elif question.group == "exists":
                assert question.text.removeprefix("is there a ").removesuffix("?") in pairs
            elif scene.asked_fact is not None:
                facts[question.answer] += 1
        assert all(any(p in s.text for p in pairs) for s in picture.statements)
    # Held-out facts are asked about, and are as often true as not.
    assert facts["yes"] > 100 and facts["no"] > 100
    both = facts["yes"] + facts["no"]
    assert abs(facts["yes"] - both / 2) < 4 * math.sqrt(both) / 2


# ---- what is said


def test_captions_are_true_and_their_phrases_name_all_that_fits(described):
    for split in SPLITS:
        for picture, scene in described[split]:
            for caption in picture.captions:
                named = []
                for (start, end), indices in zip(caption.spans, caption.things, strict=True):
                    phrase = caption.text[start:end]
                    fitting = tuple(i for i, t in enumerate(scene.things) if matches(t, phrase))
                    assert fitting == indices, (caption, scene)
                    named += indices
                if caption.group == "list":
                    assert sorted(named) == list(range(len(scene.things)))
                    continue
                first, found, second = RELATION.split(caption.text.rpartition(", and ")[2])
                (one,) = [t for t in scene.things if matches(t, first)]
                (two,) = [t for t in scene.things if matches(t, second)]
                assert relation(one, two) == found


def meant(things, expression):
    """The things that an expression may mean; near a diagonal a relation is left open."""
    head, *rest = RELATION.split(expression)
    found = [thing for thing in things if matches(thing, head)]
    if rest:
        (landmark,) = [thing for thing in things if matches(thing, rest[1])]
        found = [t for t in found if t is not landmark and relation(t, landmark) in (rest[0], None)]
    return found


def test_referring_expressions_are_unique_and_minimal(described):
    groups = collections.Counter()
    for split in SPLITS:
        for picture, scene in described[split]:
            for expression in picture.expressions:
                groups[expression.group] += 1
                target = scene.things[expression.things[0][0]]
                assert meant(scene.things, expression.text) == [target]
                head, *rest = RELATION.split(expression.text)
                assert expression.text[slice(*expression.spans[0])] == head
                if rest:
                    assert len([t for t in scene.things if matches(t, head)]) > 1
                tail = f" {rest[0]} {rest[1]}" if rest else ""
                words = [word for word in head.split()[1:] if word != "object"]
                for word in words:
                    left = [w for w in words if w != word]
                    shorter = " ".join(["the", *left, "object"]) + tail
                    assert len(meant(scene.things, shorter)) > 1, (expression, scene)
    assert min(groups[group] for group in ("simple", "composed", "relation")) > 300


def answer(things, question):
    """Answer a question from the scene: a second opinion."""
    text = question.removesuffix("?")
    if text.startswith("is there a "):
        return "yes" if any(matches(t, text[9:]) for t in things) else "no"
    if text.startswith("how many "):
        phrase = text.removeprefix("how many ").removesuffix(" are there")
        return str(sum(matches(t, phrase) for t in things))
    if text.startswith("is the "):
        first, found, second = RELATION.split(text[3:])
        (one,) = [t for t in things if matches(t, first)]
        (two,) = [t for t in things if matches(t, second)]
        assert relation(one, two) is not None
        return "yes" if relation(one, two) == found else "no"
    kind, phrase = re.fullmatch(r"what (\w+) is (.*)", text).groups()
    kind = {"shape": "noun", "pattern": "material"}.get(kind, kind)
    if not phrase.startswith("the "):
        found, phrase = re.fullmatch(r"(left of|right of|above|below) (.*)", phrase).groups()
        (landmark,) = [t for t in things if matches(t, phrase)]
        (target,) = [t for t in things if t is not landmark and relation(t, landmark) == found]
    else:
        (target,) = [t for t in things if matches(t, phrase)]
    return getattr(target, kind)


def test_answers_are_right(described):
    groups = collections.Counter()
    for split in SPLITS:
        for picture, scene in described[split]:
            for question in picture.questions:
                groups[question.group] += 1
                assert question.answer == answer(scene.things, question.text), (question, scene)
    names = {"color", "shape", "exists", "relation", "size", "material", "count"}
    assert set(groups) == names and min(groups.values()) > 200


def test_statements_are_right_and_have_both_truths(described):
    truths = collections.Counter()
    for split in SPLITS:
        for number, (picture, scene) in enumerate(described[split]):
            assert not picture.statements or number % 2 == 1
            left, right = described[split][number - 1][1].things, scene.things
            for statement in picture.statements:
                truths[statement.group, statement.truth] += 1
                assert statement.truth == is_true(statement.text, left, right), statement
    for group in ("both", "one", "side", "each", "more"):
        true, false = truths[group, True], truths[group, False]
        assert abs(true - false) < 4 * math.sqrt(true + false), group


def is_true(text, left, right):
    def shows(things, phrase):
        return any(matches(thing, phrase) for thing in things)

    if " more objects " in text:
        more = len(left) - len(right)
        return more > 0 if text.startswith("the left") else more < 0
    if text.startswith("both pictures show "):
        phrase = text.removeprefix("both pictures show ")
        return shows(left, phrase) and shows(right, phrase)
    if text.startswith("only one picture shows "):
        phrase = text.removeprefix("only one picture shows ")
        return shows(left, phrase) != shows(right, phrase)
    parts = text.split(" and the right picture shows ")
    if len(parts) == 2:
        return shows(left, parts[0].removeprefix("the left picture shows ")) and shows(
            right, parts[1]
        )
    side = left if text.startswith("the left") else right
    return shows(side, text.partition(" shows ")[2])


def test_swapped_captions_have_the_same_words_and_belong_to_one_picture_each(described):
    kinds = collections.Counter()
    for split in SPLITS:
        for number, (picture, scene) in enumerate(described[split]):
            if picture.swapped_captions is None:
                continue
            first, second, kind = picture.swapped_captions
            kinds[split, kind] += 1
            assert first != second and sorted(first.split()) == sorted(second.split())
            pictures = described[split][number - 1][1].things, scene.things
            for caption, own, other in zip((first, second), pictures, pictures[::-1], strict=True):
                assert caption_holds(caption, own)
                assert not caption_holds(caption, other)
    assert len(kinds) == 6 and min(kinds.values()) > 50


def caption_holds(caption, things):
    parts = RELATION.split(caption)
    if len(parts) == 3:
        one, two = ([t for t in things if matches(t, parts[i])] for i in (0, 2))
        return any(relation(a, b) == parts[1] for a in one for b in two)
    return all(any(matches(t, part) for t in things) for part in caption.split(" and "))


# ---- balance


def test_answers_are_balanced_for_each_question(described):
    """The most frequent answer of a string is no more frequent than chance would have it."""
    counts = collections.defaultdict(collections.Counter)
    possible = {"color": 7, "shape": 7, "size": 2, "material": 4, "count": 4, "exists": 2}
    for picture, _ in described["train"]:
        for question in picture.questions:
            group = question.group
            if group == "relation":
                group = "exists" if question.answer in REPLY else "relation"
            counts[group, question.text][question.answer] += 1
    checked = collections.Counter()
    for (group, text), answers in counts.items():
        total = sum(answers.values())
        if total < 40 or group == "relation":
            continue
        # The largest of k shares: a bound that holds for all strings together.
        chance = 1 / possible[group]
        bound = chance + 4 * math.sqrt(chance * (1 - chance) / total)
        assert max(answers.values()) / total < bound, (text, answers)
        checked[group] += 1
    assert all(checked[group] >= 3 for group in ("color", "shape", "size", "material")), checked


def prior_accuracy(described, split):
    """Accuracy of each question's most frequent answer in training, per group."""
    counts = collections.defaultdict(collections.Counter)
    for picture, _ in described["train"]:
        for question in picture.questions:
            counts[question.text][question.answer] += 1
            counts[question.group][question.answer] += 1
    hits, totals = collections.Counter(), collections.Counter()
    for picture, _ in described[split]:
        for question in picture.questions:
            seen = counts.get(question.text) or counts[question.group]
            hits[question.group] += seen.most_common(1)[0][0] == question.answer
            totals[question.group] += 1
    return {group: hits[group] / total for group, total in totals.items()}


def test_questions_alone_answer_no_better_than_chance(described):
    found = prior_accuracy(described, "val")
    chance = {"color": 1 / 7, "shape": 1 / 7, "exists": 1 / 2, "size": 1 / 2, "material": 1 / 4}
    for group, expected in {**chance, "count": 1 / 4}.items():
        assert abs(found[group] - expected) < 0.06, (group, found)
    # Half are yes/no, half have about eight answers.
    assert found["relation"] < 0.40
    novel = prior_accuracy(described, "novel")
    # Training never answers with the held-out colour or shape.
    assert novel["color"] < 0.05 and novel["shape"] < 0.06
    assert abs(novel["exists"] - 0.5) < 0.06
