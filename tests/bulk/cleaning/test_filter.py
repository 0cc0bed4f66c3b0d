"""`fiber data filter`: what stays in the new packed directory."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest

import fiber
from fiber.bulk.cleaning.dedup import find_duplicates
from fiber.bulk.cleaning.filter import filter_records
from fiber.bulk.cleaning.scores import score_texts
from fiber.data import open_source
from fiber.data.tools.pack import pack
from tests.bulk.cleaning.test_dedup import save_edits


@pytest.fixture(scope="module")
def tables(made_once, coarse, small_scenes):
    """Scores, duplicates and boxes of the 24 held-out scenes."""

    def make(folder):
        score_texts(small_scenes, folder / "scores", model=coarse, split="val+novel")
        find_duplicates(small_scenes, folder / "duplicates", split="val+novel")
        fiber.map(small_scenes, "embed", folder / "vectors", model=coarse, split="val+novel")

    return made_once("cleaning_tables", make)


def rows_of(folder):
    return pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()


def test_records_of_a_condition_and_what_belongs_to_their_images(tables, small_scenes, tmp_path):
    rows = rows_of(tables / "scores")
    limit = sorted(row["itm"] for row in rows)[len(rows) // 3]
    where = f"itm >= {limit}"
    found = filter_records([tables / "scores"], where, tmp_path / "packed")
    kept = {row["key"]: row["image"] for row in rows if row["itm"] >= limit}
    assert found["kept"] == len(kept) < found["rows"] == len(rows)
    assert found["without_row"] == 0
    keys, records = set(), 0
    for split in ("val", "novel"):
        own = list(open_source("captions", tmp_path / "packed", split))
        keys |= {record.key for record in own}
        records += len(own)
        images = {image for key, image in kept.items() if f"/{split}/" in image}
        for source in ("detection", "questions", "phrases"):
            before = [r for r in open_source(source, small_scenes, split) if r.image_id in images]
            after = open_source(source, tmp_path / "packed", split)
            assert [r.key for r in after] == [r.key for r in before]
    assert keys == set(kept)
    assert records == len(kept)
    assert found["records"] > len(kept)


def test_pairs_of_images_stay_if_both_do(tables, small_scenes, tmp_path):
    before = open_source("reasoning", small_scenes, "val")
    image = str(before[0].images[1])
    where = f"not image = '{image}'"
    filter_records([tables / "duplicates"], where, tmp_path / "packed")
    after = open_source("reasoning", tmp_path / "packed", "val")
    left = [r.key for r in before if image not in map(str, r.images)]
    assert [r.key for r in after] == left
    assert 0 < len(left) < len(before)


def test_pairs_of_a_packed_directory(small_scenes, tmp_path):
    pack(small_scenes, tmp_path / "packed", splits=["val"])
    find_duplicates(tmp_path / "packed", tmp_path / "duplicates")
    pairs = open_source("reasoning", small_scenes, "val")
    image = next(
        row["image"]
        for row in rows_of(tmp_path / "duplicates")
        if str(pairs[0].images[1]).endswith(row["image"])
    )
    where = f"image != '{image}'"
    found = filter_records([tmp_path / "duplicates"], where, tmp_path / "clean")
    assert found["without_row"] == 0
    left = [r.key for r in pairs if not any(str(own).endswith(image) for own in r.images)]
    assert [r.key for r in open_source("reasoning", tmp_path / "clean", "val")] == left


def test_columns_of_several_tables(tables, tmp_path):
    where = "itm >= 0 and kept = true and distance is null"
    both = [tables / "duplicates", tables / "scores"]
    found = filter_records(both, where, tmp_path / "packed")
    assert found["rows"] == found["kept"]
    assert filter_records(both, "kept = true and cluster is null")["rows"] == found["rows"]


def test_without_an_output_a_sheet_shows_what_would_go(tables, tmp_path):
    from PIL import Image

    rows = rows_of(tables / "scores")
    limit = sorted(row["itm"] for row in rows)[len(rows) // 2]
    found = filter_records([tables / "scores"], f"itm > {limit}", sheet=tmp_path / "sheet.png")
    assert found["dropped"] > 0
    assert set(found) == {"rows", "kept", "dropped"}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 200


def test_images_without_texts_are_copied(tmp_path):
    save_edits(tmp_path / "images" / "deep")
    find_duplicates(tmp_path / "images", tmp_path / "duplicates")
    found = filter_records([tmp_path / "duplicates"], "kept = true", tmp_path / "clean")
    names = sorted(path.name for path in (tmp_path / "clean" / "deep").iterdir())
    assert names == ["a.jpg", "b-mirrored.png", "b.png", "c.png"]
    assert found["records"] == 4
    for name in names:
        before, after = (tmp_path / each / "deep" / name for each in ("images", "clean"))
        assert before.read_bytes() == after.read_bytes()


def test_data_that_moved(small_scenes, tmp_path):
    shutil.copytree(small_scenes, tmp_path / "data")
    find_duplicates(tmp_path / "data", tmp_path / "duplicates", split="val")
    (tmp_path / "data").rename(tmp_path / "moved")
    given = [tmp_path / "duplicates"], "record < 6"
    with pytest.raises(FileNotFoundError, match="data"):
        filter_records(*given, tmp_path / "packed")
    found = filter_records(*given, tmp_path / "packed", data=tmp_path / "moved")
    assert found["without_row"] == 0
    assert (
        len({r.image_id for r in open_source("detection", tmp_path / "packed", "val")})
        == (found["kept"])
    )


def test_images_that_could_not_be_read_do_not_stay(tmp_path, mixed_images):
    lines = [{"image": str(each), "text": "a"} for each in sorted(mixed_images.iterdir())]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    find_duplicates(tmp_path / "train.jsonl", tmp_path / "duplicates", split="train")
    found = filter_records([tmp_path / "duplicates"], "kept = true", tmp_path / "packed")
    assert (found["records"], found["without_row"]) == (20, 3)


@pytest.mark.parametrize(
    ("where", "error", "named"),
    [
        ("itn > 0.3", ValueError, r"itn.*itm"),
        ("itm > 'high'", ValueError, "number"),
        ("itm > 2", ValueError, "none of"),
        ("itm >", ValueError, "the end"),
        (3, TypeError, "str"),
    ],
)
def test_wrong_conditions(tables, tmp_path, where, error, named):
    with pytest.raises(error, match=named):
        filter_records([tables / "scores"], where, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_wrong_tables(tables, coarse, small_scenes, mixed_images, tmp_path):
    with pytest.raises(ValueError, match="one or more folders"):
        filter_records([], "itm > 1")
    with pytest.raises(FileNotFoundError, match=r"clean\.json"):
        filter_records([small_scenes], "itm > 1")
    find_duplicates(mixed_images, tmp_path / "others")
    with pytest.raises(ValueError, match="the same data"):
        filter_records([tables / "scores", tmp_path / "others"], "itm > 0")
    fiber.map(small_scenes, "answer", tmp_path / "answers", model=coarse, split="val+novel")
    with pytest.raises(ValueError, match="other records"):
        filter_records([tables / "scores", tmp_path / "answers"], "itm > 0")
    with pytest.raises(ValueError, match="itm"):
        filter_records([tables / "scores", tables / "scores"], "itm > 0")
    with pytest.raises(FileExistsError):
        filter_records([tables / "scores"], "itm > 0", tables)


def test_data_that_changed(small_scenes, coarse, tmp_path):
    shutil.copytree(small_scenes, tmp_path / "data")
    score_texts(tmp_path / "data", tmp_path / "scores", model=coarse, split="val")
    path = tmp_path / "data" / "captions_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = "another caption"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has changed"):
        filter_records([tmp_path / "scores"], "itm > 0", tmp_path / "packed")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, "fiber.cleaning"),
        ({"version": 7}, "version 7"),
        ({"source": {"data": 3}}, "source.data"),
        ({"source": None}, "source is None"),
        ({"kind": "other"}, "kind is 'other'"),
    ],
)
def test_damaged_tables(tables, tmp_path, changes, named):
    shutil.copytree(tables / "scores", tmp_path / "scores")
    path = tmp_path / "scores" / "clean.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=named):
        filter_records([tmp_path / "scores"], "itm > 0")


def test_a_table_that_cannot_be_read(tables, tmp_path):
    shutil.copytree(tables / "scores", tmp_path / "scores")
    (tmp_path / "scores" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"rows\.parquet"):
        filter_records([tmp_path / "scores"], "itm > 0")


def test_command(tables, tmp_path, capsys):
    from fiber.cli import main

    given = ["data", "filter", str(tables / "scores"), str(tables / "duplicates")]
    given += ["--where", "itm >= 0 and kept = true"]
    assert main([*given, "--output", str(tmp_path / "packed")]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] >= 24
    assert main([*given, "--output", str(tmp_path / "packed")]) == 2
    assert "packed" in capsys.readouterr().err
