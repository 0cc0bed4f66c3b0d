"""The bench of the small METER trains with and without images, and guesses."""

import dataclasses
import io

import pytest
from PIL import Image

from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("meter") / "scenes", train=80, val=40, novel=40)


@pytest.mark.slow
def test_rows_of_all_inputs_have_every_metric(bench, scenes, monkeypatch):
    monkeypatch.setattr(bench, "RECORDS", {"vqa": 40, "nlvr2": 40, "retrieval": 12})
    recipe = bench.load_recipe("small_meter")
    short = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=3))
    monkeypatch.setattr(bench, "load_recipe", lambda name: short)
    rows = [bench.run(scenes, inputs, 1)[0] for inputs in (bench.BOTH, bench.TEXT, bench.COUNTED)]
    for row in rows:
        assert list(row) == list(rows[0])
        for task, metric in bench.METRICS.items():
            for split in ("val", "novel"):
                assert 0 <= float(row[f"{task}/{metric}/{split}"]) <= 1
    assert [row["steps"] for row in rows] == [3, 3, 0]


def test_blind_runs_see_gray_images_of_the_same_size(bench, scenes):
    records = bench.reader_of("nlvr2")(scenes, "val")
    seen = bench.SeenInputs(records, bench.TEXT)[0]
    assert (seen.text, seen.truth) == (records[0].text, records[0].truth)
    images = [Image.open(io.BytesIO(data)) for data in seen.images]
    assert len(images) == 2
    assert all(image.getcolors() == [(image.width * image.height, (128,) * 3)] for image in images)
    captions = bench.SeenInputs(bench.reader_of("retrieval")(scenes, "val"), bench.TEXT)
    assert Image.open(io.BytesIO(captions[0].images[0])).size == (96, 96)


def test_guesses_use_the_training_split(bench, scenes):
    found = bench.guess(scenes)
    # Half of the statements are true; most questions have several possible answers.
    assert 0.3 < found["nlvr2", "val"] < 0.7
    assert 0.15 < found["vqa", "val"] < 0.6
    assert 0 < found["retrieval", "val"] < 0.5


def test_every_input_and_seed_has_a_row(bench):
    rows = bench.Rows("small_meter", ("inputs", "seed")).rows
    asked = [(bench.COUNTED, "0")]
    asked += [(inputs, str(seed)) for inputs in (bench.BOTH, bench.TEXT) for seed in bench.SEEDS]
    assert sorted((row["inputs"], row["seed"]) for row in rows) == sorted(asked)
