"""`fiber data score`: ITC and ITM of texts and images, and texts of other images."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest

import fiber
from fiber.bulk.cleaning.scores import score_texts
from fiber.inference import MissingHeadError


@pytest.fixture(scope="module")
def scenes():
    return fiber.load("scenes", device="cpu")


@pytest.fixture(scope="module")
def scored(made_once, scenes, small_scenes):
    def make(folder):
        score_texts(small_scenes, folder / "scores", model=scenes, split="val+novel")

    return made_once("scored_scenes", make) / "scores"


def rows_of(folder):
    return pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()


def test_scores_are_those_of_single_calls(scored, scenes):
    rows = rows_of(scored)
    assert len({row["record"] for row in rows}) == len(rows) >= 24
    images = list(dict.fromkeys(row["image"] for row in rows))
    vectors = scenes.embed_images(images)
    for row in rows[::5]:
        assert row["itm"] == pytest.approx(scenes.match(row["image"], row["text"]), abs=1e-5)
        products = vectors @ scenes.embed_texts(row["text"])
        own = images.index(row["image"])
        assert row["itc"] == pytest.approx(products[own], abs=1e-5)
        products[own] = -1
        # Rows are stored as float16.
        assert row["other_itc"] == pytest.approx(products.max(), abs=2e-3)
        assert row["other"] != row["key"]
        assert row["flagged"] == (row["itm"] < 0.5 and row["other_itc"] > row["itc"])
    assert {row["split"] for row in rows} == {"val", "novel"}


def test_swapped_captions_are_flagged(small_scenes, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_scenes, data)
    path = data / "captions_val.json"
    content = json.loads(path.read_text())
    texts = [each["caption"] for each in content["annotations"]]
    for each, text in zip(content["annotations"][:4], reversed(texts[-4:]), strict=True):
        each["caption"] = text
    path.write_text(json.dumps(content))
    found = score_texts(data, tmp_path / "out", model=scenes, split="val")
    rows = rows_of(tmp_path / "out")
    flagged = [row["record"] for row in rows if row["flagged"]]
    assert found["flagged"] == len(flagged) >= 3
    assert set(flagged) <= {0, 1, 2, 3}
    assert (tmp_path / "out" / "sheet.png").exists()
    # The same call reads no image again.
    assert score_texts(data, tmp_path / "out", model=scenes, split="val") == found


def test_one_image_has_no_other(scenes, mixed_images, tmp_path):
    texts = ["a red star", "a ring " * 100]
    lines = [{"image": str(mixed_images / "00.png"), "text": text} for text in texts]
    lines.append({"image": str(mixed_images / "07-cut.jpg"), "text": "a circle"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_texts(tmp_path / "train.jsonl", tmp_path / "out", model=scenes, split="train")
    assert (found["records"], found["errors"], found["flagged"]) == (2, 1, 0)
    rows = rows_of(tmp_path / "out")
    assert [(row["record"], row["other"], row["truncated"]) for row in rows] == [
        (0, None, False),
        (1, None, True),
    ]
    assert np.isfinite([row["itc"] for row in rows]).all()


def test_what_is_refused(fine, scenes, mixed_images, small_scenes, tmp_path):
    with pytest.raises(MissingHeadError):
        score_texts(small_scenes, tmp_path / "out", model=fine)
    with pytest.raises(ValueError, match="text"):
        score_texts(mixed_images, tmp_path / "out", model=scenes)
    assert not (tmp_path / "out").exists()


def test_command(small_scenes, micro_models, tmp_path, capsys):
    from fiber.cli import main

    given = ["data", "score", str(small_scenes), "--output", str(tmp_path / "out")]
    model = ["--model", str(micro_models["coarse"]), "--device", "cpu", "--split", "novel"]
    assert main([*given, *model]) == 0
    assert json.loads(capsys.readouterr().out)["records"] >= 12
