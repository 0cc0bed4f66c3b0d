"""`fiber data dedup`: which images are near-duplicates, and which of them is kept."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import fiber
from fiber.bulk.cleaning.dedup import find_duplicates
from tests.bulk.test_perceptual_hash import cropped, drawing


def save_edits(folder):
    """Three drawings: one with copies, one with its mirror image, one alone; a broken file."""
    folder.mkdir(parents=True, exist_ok=True)
    image = drawing(0)
    image.save(folder / "a.jpg", quality=90)
    image.save(folder / "a-low.jpg", quality=30)
    image.resize((80, 60)).save(folder / "a-small.png")
    shutil.copy(folder / "a-small.png", folder / "a-small-again.png")
    shutil.copy(folder / "a-small.png", folder / "a-small-third.png")
    cropped(image).save(folder / "a-crop.png")
    drawing(1).save(folder / "b.png")
    drawing(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b-mirrored.png")
    drawing(2).save(folder / "c.png")
    (folder / "broken.jpg").write_bytes(b"no image")


@pytest.fixture(scope="module")
def edits(made_once):
    return made_once("edited_images", save_edits)


def rows_of(folder):
    rows = pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()
    return {row["key"]: row for row in rows}


def test_what_is_kept_and_why(edits, tmp_path):
    found = find_duplicates(edits, tmp_path / "out")
    assert found == {
        "output": str(tmp_path / "out"),
        "images": 9,
        "clusters": 1,
        "duplicates": 5,
        "errors": 1,
    }
    rows = rows_of(tmp_path / "out")
    reasons = {key: row["reason"] for key, row in rows.items() if not row["kept"]}
    assert reasons == {
        "a-crop.png": "fewer pixels",
        "a-low.jpg": "fewer bytes",
        "a-small.png": "fewer pixels",
        "a-small-again.png": "fewer pixels",
        "a-small-third.png": "fewer pixels",
    }
    assert {rows[key]["duplicate_of"] for key in reasons} == {"a.jpg"}
    assert {rows[key]["cluster"] for key in [*reasons, "a.jpg"]} == {0}
    assert rows["b.png"]["cluster"] is None
    assert rows["a-low.jpg"]["distance"] <= 0.1
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_mirrored_images_with_flips(edits, tmp_path):
    find_duplicates(edits, tmp_path / "out", flips=True)
    rows = rows_of(tmp_path / "out")
    assert rows["b-mirrored.png"]["mirrored"] != rows["b.png"]["mirrored"]
    assert rows["b-mirrored.png"]["kept"] != rows["b.png"]["kept"]


def test_stretched_images_are_no_duplicates(tmp_path):
    (tmp_path / "images").mkdir()
    drawing(2).save(tmp_path / "images" / "a.png")
    for name, width in (("near", 170), ("far", 300)):
        drawing(2).resize((width, 120)).save(tmp_path / "images" / f"{name}.png")
    find_duplicates(tmp_path / "images", tmp_path / "out")
    kept = {key for key, row in rows_of(tmp_path / "out").items() if row["kept"]}
    assert kept == {"a.png", "far.png"}


def test_another_limit_reads_no_image(edits, tmp_path, monkeypatch):
    find_duplicates(edits, tmp_path / "out")
    monkeypatch.setattr(fiber.bulk.annotator, "load_image", None)
    assert find_duplicates(edits, tmp_path / "out", distance=1e-6)["duplicates"] == 2
    # Hashes that `fiber map` wrote, too.
    hashes = tmp_path / "out" / "hashes"
    assert find_duplicates(hashes, tmp_path / "other")["duplicates"] == 5


def test_embeddings_find_what_hashes_do_not(edits, coarse, tmp_path):
    by_hash = find_duplicates(edits, tmp_path / "out", distance=1e-6)
    options = {"similarity": 0.9999, "model": coarse}
    both = find_duplicates(edits, tmp_path / "out", distance=1e-6, **options)
    alone = find_duplicates(edits, tmp_path / "out", distance=None, **options)
    assert both["duplicates"] >= max(by_hash["duplicates"], alone["duplicates"])
    rows = rows_of(tmp_path / "out")
    copies = [rows[f"a-small{name}.png"] for name in ("", "-again", "-third")]
    assert sum(row["kept"] for row in copies) <= 1
    products = {row["similarity"] for row in rows.values() if row["reason"] is not None}
    assert all(value is None or value > 0.9998 for value in products)


def test_images_of_no_duplicates(tmp_path):
    (tmp_path / "images").mkdir()
    drawing(2).save(tmp_path / "images" / "c.png")
    assert find_duplicates(tmp_path / "images", tmp_path / "out")["duplicates"] == 0
    assert (tmp_path / "out" / "sheet.png").exists()


def test_records_of_one_image_are_no_duplicates(tmp_path, edits):
    """Neither of records that follow each other, nor of others."""
    lines = [
        {"image": str(edits / f"{name}.png"), "text": f"{name} {number}"}
        for number in range(2)
        for name in ("b", "c")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = find_duplicates(tmp_path / "train.jsonl", tmp_path / "out", split="train")
    assert (found["images"], found["duplicates"]) == (2, 0)


def test_the_same_file_in_two_splits_is_a_duplicate(tmp_path, edits):
    for split in ("train", "val"):
        lines = [{"image": str(edits / f"{name}.png"), "text": "a"} for name in ("b", "c")]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert find_duplicates(tmp_path, tmp_path / "out")["duplicates"] == 2
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [(row["split"], row["kept"], row["reason"]) for row in rows] == [
        ("train", True, None),
        ("train", True, None),
        ("val", False, "later record"),
        ("val", False, "later record"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"distance": 0}, ValueError, "distance"),
        ({"distance": 0.7}, ValueError, r"0\.5"),
        ({"distance": "near"}, TypeError, "distance"),
        ({"distance": None}, ValueError, "similarity"),
        ({"similarity": 0.9}, ValueError, "model"),
        ({"model": "scenes"}, ValueError, "similarity"),
        ({"similarity": float("nan"), "model": "scenes"}, ValueError, "nan"),
    ],
)
def test_wrong_arguments(edits, tmp_path, options, error, named):
    with pytest.raises(error, match=named):
        find_duplicates(edits, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_folders(edits, coarse, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        find_duplicates(edits, tmp_path / "out")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        find_duplicates(edits, tmp_path / "out" / "notes.txt")
    with pytest.raises(FileNotFoundError):
        find_duplicates(tmp_path / "nothing", tmp_path / "other")
    fiber.map(edits, "embed", tmp_path / "vectors", model=coarse)
    with pytest.raises(ValueError, match=r"embed.*hash"):
        find_duplicates(tmp_path / "vectors", tmp_path / "other")
    shutil.copytree(edits, tmp_path / "images")
    find_duplicates(tmp_path / "images", tmp_path / "hashed")
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"source\.(records|fingerprint)"):
        find_duplicates(tmp_path / "images", tmp_path / "hashed")
    with pytest.raises(ValueError, match=r"9 records.*expected 10"):
        find_duplicates(tmp_path / "hashed" / "hashes", tmp_path / "third")


def test_command(edits, micro_models, tmp_path, capsys):
    from fiber.cli import main

    given = ["data", "dedup", str(edits), "--output", str(tmp_path / "out")]
    assert main([*given, "--flips", "--distance", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 9
    model = ["--model", str(micro_models["coarse"]), "--device", "cpu"]
    assert main([*given, "--similarity", "0.9999", *model]) == 0
    capsys.readouterr()
    assert main([*given, *model]) == 2
    assert "--similarity" in capsys.readouterr().err


@pytest.mark.slow
def test_wrong_captions_of_the_check(tmp_path):
    """A small case of `python -m tests.check_cleaning`, whose photographs are downloaded."""
    from tests.check_cleaning import check_captions

    lines = []
    assert check_captions(tmp_path, 30, 0.2, 0, lines.append) == 0
    assert "area by ITM" in lines[0]


def test_areas_of_the_check():
    from tests.check_cleaning import area

    wrong = np.array([True, True, False, False])
    assert area(np.array([0.1, 0.2, 0.8, 0.9]), wrong) == 1
    assert area(np.array([0.9, 0.1, 0.5, 0.5]), wrong) == 0.5
    assert area(np.array([0.5, 0.5, 0.5, 0.5]), wrong) == 0.5
