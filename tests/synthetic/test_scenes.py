"""Data folders of scenes: the same bytes whatever the count, readable, and never half-made."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fiber._core import Tokenizer
from fiber.data import sources
from fiber.synthetic import generator, scenes
from fiber.synthetic.rendering import RGB
from fiber.synthetic.scene_graph import SHAPES, SPLITS, sample_scene, shapes_world
from fiber.synthetic.scenes import generate
from tests.synthetic.scene_reader import WORDS, texts_of


@pytest.fixture
def folder(scenes_folder):
    return scenes_folder


@pytest.fixture
def small(folder):
    """Arguments of a folder with no pictures and a tokenizer that is not trained again."""
    return {"train": 0, "val": 0, "novel": 0, "tokenizer": folder}


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
    monkeypatch.setattr(generator, "_IMAGES_PER_JOB", 10)
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
    monkeypatch.setattr(scenes.SceneRecipe, "render", lambda *_: pytest.fail("drew again"))
    assert generate(tmp_path / "data", **small) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=r"seed.*0.*3"):
        generate(tmp_path / "data", **small, seed=3)
    with pytest.raises(ValueError, match=r"counts.*'train': 2.*'train': 4"):
        generate(tmp_path / "data", **{**small, "train": 4})


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match=r"mine already exists and is not a data folder"):
        generate(tmp_path / "mine", train=1, val=0, novel=0)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1}, r"train: the number of images .* -1$"),
        ({"image_size": 20}, r"image_size.*20"),
        ({"max_objects": 0}, r"max_objects.*0"),
        ({"seed": -1}, r"seed.*-1"),
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

    monkeypatch.setattr(generator, "save_jpeg", fail_late)
    with pytest.raises(type(problem)) as caught:
        generate(tmp_path / "data", **{**small, "train": 9})
    if isinstance(problem, OSError):
        assert caught.value.errno == problem.errno
        assert str(tmp_path / "data") in str(caught.value)
    assert len(saved) == 5
    assert list(tmp_path.iterdir()) == []


def test_control_c_while_processes_draw(tmp_path):
    code = (
        "from fiber.synthetic.scenes import generate\n"
        "if __name__ == '__main__':\n"
        f"    generate({str(tmp_path / 'data')!r}, train=200000, workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        partial = tmp_path / ".part-data" / "images" / "train" / "000"
        deadline = time.monotonic() + 600
        while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any(partial.iterdir())
        # As the terminal does: to the process and to those that it started.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode != 0
    assert errors.decode().strip().endswith("KeyboardInterrupt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]


def test_a_given_tokenizer_is_copied_and_a_missing_one_named(folder, tmp_path):
    other = generate(tmp_path / "other", train=1, val=0, novel=0, seed=5, tokenizer=folder)
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.*tokenizer\.json"):
        generate(tmp_path / "third", train=1, val=0, novel=0, tokenizer=tmp_path)


def test_every_word_is_one_token_and_texts_are_short(folder, described):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [text for split in SPLITS for p, _ in described[split][:400] for text in texts_of(p)]
    lengths = [len(tokenizer.encode(text)[0]) for text in texts]
    assert max(lengths) <= 24
    words = {f" {word}" for values in WORDS.values() for word in values}
    assert all(len(tokenizer.encode(word)[0]) == 3 for word in words)
