"""The bench of stages hides words from the boxes, and measures every arm."""

import pytest

from fiber.data import sources
from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("stages") / "scenes", train=80, val=60, novel=10)


def test_boxes_are_known_for_some_images_and_words(bench, scenes, monkeypatch):
    monkeypatch.setattr(bench, "BOXED", 30)
    chosen = [bench.boxed_records(scenes, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    hidden = {word for words in bench.UNBOXED.values() for word in words}
    assert all(not hidden & set(record.text.split()) for record in chosen[0])
    images = {record.image_id for record in chosen[0]}
    assert 20 < len(images) <= 30
    # No other expression of these images is left out.
    read = sources.referring(scenes, "train")
    others = [r for r in read if r.image_id in images and r not in chosen[0]]
    assert others
    assert all(hidden & set(record.text.split()) for record in others)


def test_captions_have_the_hidden_words(bench, scenes):
    words = {word for record in sources.captions(scenes, "train") for word in record.text.split()}
    assert {word for own in bench.UNBOXED.values() for word in own} <= words


def test_every_expression_is_in_one_part(bench, scenes):
    groups = bench.asked_groups(scenes)
    whole = groups["boxed"] + groups["unboxed"]
    assert len(whole) == len(sources.referring(scenes, "val"))
    assert all(set(r.text.split()) & {"cyan", "purple"} for r in groups["unboxed/color"])
    assert all(set(r.text.split()) & {"diamond", "heart"} for r in groups["unboxed/noun"])


@pytest.mark.slow
def test_rows_of_all_arms_have_the_same_columns(bench, scenes, monkeypatch):
    monkeypatch.setattr(bench, "RECORDS", dict.fromkeys(bench.RECORDS, 60))
    [chance] = bench.run(scenes, bench.CHANCE, 0, ())
    stages = (("fine", 1), ("coarse", 1), ("fine", 1))
    [row] = bench.run(scenes, bench.BOXES_CAPTIONS_BOXES, 1, stages)
    assert list(row) == list(chance)
    assert row["stages"] == "fine 1, coarse 1, fine 1"
    assert 0.25 < float(chance["boxed"]) < 0.6
    for column in ("boxed", "unboxed", "coarse/retrieval", "coarse/vqa", "coarse/matching"):
        assert 0 <= float(row[column]) <= 1
    assert chance["coarse/vqa"] == ""


def test_each_stage_starts_from_the_one_before(bench, scenes, tmp_path, monkeypatch):
    begun = []

    def train(config, **settings):
        begun.append((config.model.stage, settings["init"], settings["output"]))

    monkeypatch.setattr(bench, "train", train)
    bench.train_stages(scenes, tmp_path, (("coarse", 3), ("fine", 2)), 0)
    coarse, fine = tmp_path / "0-coarse", tmp_path / "1-fine"
    assert begun == [("coarse", None, coarse), ("fine", coarse, fine)]


def test_equal_time_is_that_of_the_longest_arm(bench):
    seconds = {bench.BOXES: 100, bench.CAPTIONS_BOXES: 400, bench.BOXES_CAPTIONS_BOXES: 500}
    rows = [{"arm": arm, "train_cpu_seconds": str(time)} for arm, time in seconds.items()]
    assert bench.equal_time_steps(rows) == 4000
