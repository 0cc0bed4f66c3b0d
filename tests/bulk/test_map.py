"""`fiber.map`: rows, errors, going on, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

import fiber
from fiber.bulk import sources
from fiber.bulk.annotator import without_truncation_warnings
from fiber.bulk.output import PART, read_description, unit_file
from fiber.data import pack

pytestmark = pytest.mark.oldest


def rows_of(folder: Path) -> pyarrow.Table:
    return pyarrow.dataset.dataset(folder / "rows").to_table().sort_by("record")


def errors_of(folder: Path) -> dict[str, str]:
    table = pyarrow.parquet.read_table(folder / "errors.parquet")
    return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(sources, "UNIT_RECORDS", 7)


@pytest.fixture(scope="module")
def packed(made_once, small_scenes) -> Path:
    """The scenes in shards of a few images."""
    made = made_once(
        "bulk_packed",
        lambda folder: pack(small_scenes, folder / "data", splits=["val"], shard_bytes=9000),
    )
    return made / "data"


def test_a_folder_of_images(coarse, mixed_images, tmp_path, small_units):
    calls = []
    found = fiber.map(
        mixed_images, "embed", tmp_path / "out", model=coarse, progress=lambda *n: calls.append(n)
    )
    assert found["complete"]
    assert found["units"] == 4
    assert found["total"] == {"rows": 20, "errors": 3, "truncated": 0}
    assert calls[0] == (0, 23)
    assert calls[-1] == (23, 23)
    table = rows_of(tmp_path / "out")
    assert errors_of(tmp_path / "out").keys() == {"03-text.jpg", "07-cut.jpg", "12-empty.png"}
    for row in table.to_pylist():
        assert Path(row["image"]) == mixed_images / row["key"]
        own = coarse.embed_images(row["image"])
        np.testing.assert_allclose(row["embedding"], own, atol=1e-5)
        assert (row["height"], row["width"]) == fiber.data.load_image(row["image"]).shape[:2]
    assert table.schema.field("embedding").type.list_size == coarse.network.embedding_width


def test_the_same_call_again_reads_nothing(coarse, mixed_images, tmp_path, monkeypatch):
    first = fiber.map(mixed_images, "caption", tmp_path / "out", model=coarse, num_beams=2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "rows").iterdir()}

    def never(*_):
        raise AssertionError("a finished unit was read")

    monkeypatch.setattr(sources.BulkRecords, "of_unit", never)
    again = fiber.map(mixed_images, "caption", tmp_path / "out", model=coarse, num_beams=2)
    assert again["rows"] == 0
    assert again["total"] == first["total"]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "rows").iterdir()}


def test_an_interrupted_run_goes_on(coarse, mixed_images, tmp_path, small_units):
    def stop(done, total):
        if done > 10:
            raise KeyboardInterrupt

    options = {"model": coarse, "batch_size": 3}
    with pytest.raises(KeyboardInterrupt):
        fiber.map(mixed_images, "embed", tmp_path / "out", progress=stop, **options)
    done = sorted(path.name for path in (tmp_path / "out" / "rows").iterdir())
    assert done == ["000000.parquet"]
    assert not (tmp_path / "out" / "errors.parquet").exists()
    # What a killed process leaves.
    (tmp_path / "out" / "rows" / f"{PART}host-1-2-000001.parquet").write_bytes(b"half")
    found = fiber.map(mixed_images, "embed", tmp_path / "out", **options)
    assert found["rows"] == found["total"]["rows"] - 6
    fiber.map(mixed_images, "embed", tmp_path / "whole", **options)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert not [each for each in (tmp_path / "out" / "rows").iterdir() if PART in each.name]


@pytest.mark.parametrize("task", ["embed", "answer"])
def test_rows_are_equal_to_the_bit_on_any_ranks_and_threads(
    coarse, questions, tmp_path, small_units, task
):
    data, options = questions / "train.jsonl", {"model": coarse, "batch_size": 4}
    # Of questions, the kind that a task takes; "embed" would take them, too.
    fiber.map(data, task, tmp_path / "one", threads=1, **options)
    for rank in (2, 0, 1):
        found = fiber.map(data, task, tmp_path / "three", rank=rank, ranks=3, threads=3, **options)
        assert found["complete"] == (rank == 1)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "three")
    assert errors_of(tmp_path / "one") == errors_of(tmp_path / "three")
    files = [
        sorted(path.name for path in (tmp_path / name / "rows").iterdir())
        for name in ("one", "three")
    ]
    assert files[0] == files[1]


def test_questions_of_records(coarse, questions, tmp_path):
    found = fiber.map(questions / "train.jsonl", "answer", tmp_path / "out", model=coarse, top_k=2)
    assert found["total"]["errors"] == 3
    for row in rows_of(tmp_path / "out").to_pylist():
        single = coarse.answer(row["image"], row["question"], top_k=2)
        assert row["answers"] == [each.answer for each in single]
        np.testing.assert_allclose(row["scores"], [each.score for each in single], atol=1e-5)
    about = read_description(tmp_path / "out")
    assert about["texts"] == {"from": "records", "kind": "question"}


def test_one_question_for_all(coarse, mixed_images, tmp_path):
    ask = {"model": coarse, "question": "what color is it?"}
    fiber.map(mixed_images, "answer", tmp_path / "out", **ask)
    assert set(rows_of(tmp_path / "out")["question"].to_pylist()) == {"what color is it?"}
    assert read_description(tmp_path / "out")["texts"]["value"] == "what color is it?"


def test_images_of_several_captions_are_embedded_once(coarse, small_scenes, tmp_path):
    found = fiber.map(small_scenes, "embed", tmp_path / "out", model=coarse, split="val")
    assert found["total"]["rows"] == 12
    images = rows_of(tmp_path / "out")["image"].to_pylist()
    assert len(set(images)) == 12
    found = fiber.map(small_scenes, "match", tmp_path / "match", model=coarse, split="val")
    assert found["total"]["rows"] > 12
    assert found["total"]["truncated"] == sum(rows_of(tmp_path / "match")["truncated"].to_pylist())


@pytest.mark.parametrize("task", ["ground", "detect"])
def test_boxes_of_records(fine, small_scenes, tmp_path, task):
    fiber.map(small_scenes, task, tmp_path / "out", model=fine, split="val")
    table = rows_of(tmp_path / "out")
    assert len(table) == 12
    for row in table.to_pylist()[:3]:
        assert all(len(box) == 4 for box in row["boxes_xyxy"])
        assert len(row["boxes_xyxy"]) == len(row["scores"]) == len(row["labels"])


def test_grounding_a_caption_of_records(fine, small_scenes, tmp_path):
    options = {"model": fine, "split": "val", "source": "captions"}
    fiber.map(small_scenes, "ground", tmp_path / "out", **options)
    row = rows_of(tmp_path / "out").to_pylist()[0]
    with without_truncation_warnings():
        assert row["labels"] == fine.ground(row["image"], caption=row["text"]).labels
    assert row["truncated"]


def test_masks(segmenter, mixed_images, tmp_path):
    fiber.map(mixed_images, "segment", tmp_path / "out", model=segmenter, phrases=["sky", "grass"])
    rows = rows_of(tmp_path / "out").to_pylist()
    assert len(rows) == 20
    single = segmenter.segment(rows[3]["image"], phrases=["sky", "grass"]).to_dict()
    assert rows[3]["masks"] == [each["segmentation"]["counts"] for each in single["segments"]]
    assert rows[3]["areas"] == [each["area"] for each in single["segments"]]


def test_a_shard_is_a_unit(coarse, packed, small_scenes, tmp_path):
    shards = len(list(packed.glob("*.tar")))
    assert shards > 2
    found = fiber.map(packed, "embed", tmp_path / "packed", model=coarse)
    assert found["units"] == shards
    fiber.map(small_scenes, "embed", tmp_path / "plain", model=coarse, split="val")
    one, other = rows_of(tmp_path / "packed"), rows_of(tmp_path / "plain")
    assert one["key"] == other["key"]
    np.testing.assert_allclose(
        np.array(one["embedding"].to_pylist()), np.array(other["embedding"].to_pylist()), atol=1e-5
    )


def test_shards_and_tables_without_texts(coarse, mixed_images, tmp_path):
    import tarfile

    good = [path for path in sorted(mixed_images.iterdir()) if "-" not in path.name][:5]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in good:
            tar.add(path, path.name)
    fiber.map(tmp_path / "photos.tar", "embed", tmp_path / "a", model=coarse)
    assert rows_of(tmp_path / "a")["key"].to_pylist() == [f"photos/{path.stem}" for path in good]
    table = pyarrow.table({"image": [path.read_bytes() for path in good]})
    pyarrow.parquet.write_table(table, tmp_path / "photos.parquet")
    fiber.map(tmp_path / "photos.parquet", "embed", tmp_path / "b", model=coarse)
    assert rows_of(tmp_path / "a")["embedding"] == rows_of(tmp_path / "b")["embedding"]


def test_records_that_cannot_be_read_are_errors(coarse, questions, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(questions, data)
    (data / "images" / "04.png").unlink()
    found = fiber.map(data, "answer", tmp_path / "out", model=coarse)
    assert found["total"]["errors"] == 4
    (reason,) = [v for k, v in errors_of(tmp_path / "out").items() if "04.png" in v]
    assert "No such file" in reason


def test_a_record_without_the_field_is_an_error(fine, mixed_images, tmp_path):
    entries = [{"image": "00.png", "caption": "a star"}, {"image": "01.png", "caption": "and the"}]
    shutil.copytree(mixed_images, tmp_path / "data")
    lines = [json.dumps({"image": each["image"], "text": each["caption"]}) for each in entries]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    found = fiber.map(tmp_path / "data", "ground", tmp_path / "out", model=fine)
    assert found["total"] == {"rows": 1, "errors": 1, "truncated": 0}
    (reason,) = errors_of(tmp_path / "out").values()
    assert "and the" in reason


REFUSED = [
    ({"batch_size": 5}, "options.batch_size"),
    ({"num_beams": 3}, "options.num_beams"),
    ({"max_pixels": 1000}, "options.max_pixels"),
]


@pytest.mark.parametrize(("changed", "named"), REFUSED)
def test_other_options_are_refused(coarse, mixed_images, tmp_path, changed, named):
    fiber.map(mixed_images, "caption", tmp_path / "out", model=coarse, num_beams=1)
    with pytest.raises(ValueError, match=named):
        fiber.map(
            mixed_images, "caption", tmp_path / "out", model=coarse, **({"num_beams": 1} | changed)
        )


def test_another_model_source_task_or_version_is_refused(
    coarse, fine, segmenter, mixed_images, tmp_path
):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(mixed_images, data)
    fiber.map(data, "embed", out, model=coarse)
    import torch

    other = fiber.load(coarse.origin.path, device="cpu")
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"model\.fingerprint"):
        fiber.map(data, "embed", out, model=other)
    with pytest.raises(ValueError, match="task is 'embed', now 'caption'"):
        fiber.map(data, "caption", out, model=coarse)
    (data / "00.png").write_bytes((data / "01.png").read_bytes())
    with pytest.raises(ValueError, match=r"source\.fingerprint"):
        fiber.map(data, "embed", out, model=coarse)
    about = json.loads((out / "map.json").read_text())
    (out / "map.json").write_text(json.dumps({**about, "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        fiber.map(data, "embed", out, model=coarse)


def test_the_data_may_move(coarse, mixed_images, tmp_path):
    shutil.copytree(mixed_images, tmp_path / "a")
    fiber.map(tmp_path / "a", "embed", tmp_path / "out", model=coarse)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fiber.map(tmp_path / "b", "embed", tmp_path / "out", model=coarse)["complete"]


def test_outputs_that_are_refused(coarse, mixed_images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        fiber.map(mixed_images, "embed", tmp_path / "file", model=coarse)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        fiber.map(mixed_images, "embed", tmp_path / "other", model=coarse)
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"task": "answer"}, ValueError, "question"),
        ({"split": "val"}, ValueError, "has images, of which one thing is missing"),
        ({"source": "questions"}, ValueError, "has images, of which one thing is missing"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"threads": 2.5}, TypeError, "threads"),
        ({"rank": 3, "ranks": 3}, ValueError, "rank"),
        ({"data": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_arguments(coarse, mixed_images, tmp_path, options, error, named):
    options = {"task": "embed", "data": mixed_images, "model": coarse, **options}
    with pytest.raises(error, match=named):
        fiber.map(options.pop("data"), options.pop("task"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_of_a_folder(coarse, small_scenes, tmp_path):
    with pytest.raises(ValueError, match="no label_maps"):
        fiber.map(small_scenes, "embed", tmp_path / "out", model=coarse, source="label_maps")
    with pytest.raises(ValueError, match="novl"):
        fiber.map(small_scenes, "embed", tmp_path / "out", model=coarse, split="novl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        fiber.map(tmp_path / "empty", "embed", tmp_path / "out", model=coarse)


def test_a_full_disk_leaves_nothing_half_written(coarse, mixed_images, tmp_path, monkeypatch):
    from fiber.bulk import output

    write = output._rename

    def full(part, path):
        if path.name == "000001.parquet" and path.parent.name == "rows":
            raise OSError(28, "No space left on device", str(part))
        write(part, path)

    monkeypatch.setattr(output, "_rename", full)
    monkeypatch.setattr(sources, "UNIT_RECORDS", 7)
    with pytest.raises(OSError, match="No space left"):
        fiber.map(mixed_images, "embed", tmp_path / "out", model=coarse)
    assert [path.name for path in (tmp_path / "out" / "rows").iterdir()] == ["000000.parquet"]
    monkeypatch.undo()
    monkeypatch.setattr(sources, "UNIT_RECORDS", 7)
    assert fiber.map(mixed_images, "embed", tmp_path / "out", model=coarse)["complete"]


def test_pyarrow_is_named(coarse, mixed_images, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"fiber-vl\[arrow\]"):
        fiber.map(mixed_images, "embed", tmp_path / "out", model=coarse)


def test_files_of_units():
    assert unit_file(Path("d"), 12) == Path("d/rows/000012.parquet")
    assert unit_file(Path("d"), 1234567, "errors") == Path("d/errors/1234567.parquet")
