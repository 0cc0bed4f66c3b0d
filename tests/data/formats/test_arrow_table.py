"""Tables in the layouts of public sets, through one entry: Parquet by row groups, Arrow mapped."""

import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.data.formats import arrow_table
from fiber.data.formats.arrow import Tables
from fiber.data.formats.row_records import caption_records
from fiber.data.skip_report import skip_counts, skip_lines

pytestmark = pytest.mark.oldest

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


def picture(shade, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 90)).save(file, "PNG")
    return file.getvalue()


def hub(*shades):
    """The `image` column of Hugging Face's hub."""
    return [{"bytes": picture(shade), "path": f"{shade}.png"} for shade in shades]


def write_parquet(path, *, names=None, rows_per_group=2, **columns):
    table = arrow.table(columns)
    if names is not None:
        label = {"_type": "ClassLabel", "names": names}
        objects = {"feature": {"bbox": {"_type": "Sequence"}, "category": label}}
        told = {"info": {"features": {"objects": objects}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows_per_group, use_dictionary=False)
    return path


def test_captions_by_row_groups_in_any_order(tmp_path, monkeypatch):
    shades = (10, 20, 30, 40, 50)
    for number, own in enumerate((shades[:3], shades[3:])):
        write_parquet(
            tmp_path / f"data/train-0000{number}-of-00002.parquet",
            image=hub(*own),
            caption=[[f"shade {s}", "grey", "grey"] for s in own],
        )
    write_parquet(tmp_path / "validation.parquet", image=hub(1), caption=["v"])
    records = open_source("captions", tmp_path, "train")
    assert [r.text for r in records][:4] == ["shade 10", "grey", "shade 20", "grey"]
    assert skip_counts(records) == {"repeated captions": 5}
    assert len({r.key for r in records}) == len(records) == 10
    for index in (9, 0, 5, 2, 7):
        assert list(records[index].images) == [picture(shades[index // 2])]
    # Texts alone read no picture; one picture reads its row group once.
    groups = []
    read = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda file, i, **kw: groups.append(i) or read(file, i, **kw),
    )
    records = open_source("captions", tmp_path, "train")
    assert len([r.text for r in records]) == 10 and groups == []
    for index in (0, 1, 2, 3, 4):
        assert len(records[index].images[0]) > 0
    assert groups == [0, 1]
    # Nothing is kept beside the group that was read last.
    monkeypatch.setattr(arrow_table, "CACHE_BYTES", 1)
    groups.clear()
    records = open_source("captions", tmp_path, "train")
    for index in (0, 4, 0, 4):
        assert len(records[index].images[0]) > 0
    assert groups == [0, 1, 0, 1]


def test_a_file_of_one_row_and_of_none(tmp_path):
    empty = write_parquet(
        tmp_path / "none.parquet",
        image=arrow.array([], arrow.binary()),
        text=arrow.array([], arrow.string()),
    )
    assert len(open_source("captions", empty, "train")) == 0
    one = write_parquet(tmp_path / "one.parquet", image=[picture(3)], text=["a dog"])
    (record,) = open_source("captions", one, "train")
    assert (record.key, record.text, list(record.images)) == ("one/0", "a dog", [picture(3)])


def test_images_as_paths(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(picture(1))
    (tmp_path / "2.png").write_bytes(picture(2))
    path = write_parquet(tmp_path / "val.parquet", image_path=["1.png", "2.png"], text=["a", "b"])
    first, second = open_source("captions", path, "val")
    assert list(first.images) == [str(tmp_path / "images/1.png")]
    assert list(second.images) == [str(tmp_path / "2.png")]
    nothing = [{"bytes": None, "path": None}, {"bytes": None, "path": "2.png"}]
    path = write_parquet(tmp_path / "b.parquet", image=nothing, text=["a", "b"])
    first, second = open_source("captions", path, "val")
    assert list(second.images) == [str(tmp_path / "2.png")]
    with pytest.raises(ValueError, match=r"b\.parquet: row 0.*'image'"):
        list(first.images)


def test_questions_of_the_hub(tmp_path):
    write_parquet(
        tmp_path / "data/validation-00000-of-00001.parquet",
        image=hub(1, 2, 3),
        question=["what?", "where?", "who?"],
        question_id=[7, 8, 9],
        answers=[[{"answer": "dog"}] * 3 + [{"answer": "cat"}] * 7, [{"answer": "up"}], None],
    )
    found = open_source("questions", tmp_path, "val")
    assert [r.key.rpartition("/")[2] for r in found] == ["7", "8", "9"]
    assert [r.answers for r in found] == [{"dog": 0.9, "cat": 1.0}, {"up": 1.0}, None]
    assert found[1].human_answers == ("up",)


OBJECTS = [
    {"bbox": [[2.0, 3.0, 20.0, 10.0], [0.0, 0.0, 9.0, 9.0]], "category": [1, 0]},
    {"bbox": [[35.0, 3.0, 5.5, 10.0], [4.0, 4.0, 0.5, 9.0]], "category": [1, 1]},
    {"bbox": [], "category": []},
]


def test_boxes_of_the_hub(tmp_path):
    path = write_parquet(
        tmp_path / "train.parquet",
        names=["mug", "traffic_light"],
        image=hub(1, 2, 3),
        image_id=[5, 6, 7],
        width=[40] * 3,
        height=[30] * 3,
        objects=OBJECTS,
    )
    write_parquet(tmp_path / "val.parquet", image=hub(1), objects=OBJECTS[2:])
    for data in (path, tmp_path):
        records = open_source("detection", data, "train")
        first, second, third = records
        assert records.classes == first.labels == ("mug", "traffic_light")
        assert first.text == "mug. traffic light" and first.image_size == (30, 40)
        assert first.boxes_xyxy == ((2, 3, 22, 13), (0, 0, 9, 9)) and first.box_labels == (1, 0)
        assert first.text[slice(*first.char_spans[0][0])] == "traffic light"
        # Half a pixel beyond the picture is rounding; a box of half a pixel is none.
        assert second.boxes_xyxy == ((35, 3, 40, 13),) and third.boxes_xyxy == ()
        assert skip_counts(records) == {"clipped boxes": 1, "empty boxes": 1}
        assert "1 empty box was skipped or changed" in skip_lines(records)
    assert len(open_source("detection", path, "train", shots=1)) == 1
    loader = DataLoader(
        records,
        "grounding",
        tokenizer=Tokenizer.train([first.text] * 9, 300),
        transform=ImageTransform.shorter_side([32], 64),
        batch_size=3,
        max_tokens=32,
    )
    (batch,) = loader.epoch()
    assert batch.boxes_per_image.tolist() == [2, 1, 0]


def test_boxes_that_do_not_fit(tmp_path):
    def read(objects, names=("mug",), on_error="raise", **columns):
        path = write_parquet(
            tmp_path / "t.parquet", names=names, image=hub(1), objects=[objects], **columns
        )
        return open_source("detection", path, "train", on_error=on_error)

    with pytest.raises(ValueError, match=r"t\.parquet: row 0.*box 0.*class 1"):
        read({"bbox": [[1, 2, 3, 4]], "category": [1]})
    with pytest.raises(ValueError, match=r"row 0.*boxes.*box"):
        read({"bbox": [[1, 2, 3, 4]], "category": [0, 0]})
    with pytest.raises(ValueError, match=r"row 0.*box 0 \[1\.0"):
        read({"bbox": [[1.0, float("nan")]], "category": [0]})
    reversed_box = {"bbox": [[1, 2, 3, 4], [9, 2, -3, 4]], "category": [0, 0]}
    with pytest.raises(
        ValueError, match=r"row 0.*box 1.*\(x, y, width, height\).*\(9\.0.*2\.0.*-3"
    ):
        read(reversed_box)
    assert skip_counts(read(reversed_box, on_error="skip")) == {"reversed boxes": 1}
    outside, size = {"bbox": [[30, 2, 30, 9]], "category": [0]}, {"width": [40], "height": [30]}
    with pytest.raises(ValueError, match=r"row 0.*box 0.*20"):
        read(outside, **size)
    records = read(outside, on_error="skip", **size)
    assert records[0].boxes_xyxy == ((30, 2, 40, 11),) and skip_counts(records) == {
        "clipped boxes": 1
    }


def test_a_wrong_schema_is_named(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", image=hub(1), label=[3])
    for source, expected in (
        ("captions", "'caption' or 'captions' or 'text' or 'texts' or 'sentences'"),
        ("questions", "'question' or 'questions'"),
        ("detection", "'objects' or 'boxes_xyxy'"),
    ):
        with pytest.raises(ValueError) as error:
            open_source(source, path, "train")
        assert str(error.value) == (
            f"{path} has no column {expected}; available columns: image, label"
        )
    path = write_parquet(tmp_path / "t.parquet", text=["a"])
    with pytest.raises(ValueError, match=r"column 'image'.*: text"):
        open_source("captions", path, "train")
    path = write_parquet(tmp_path / "t.parquet", image=hub(1, 2), text=[5, 6])
    with pytest.raises(ValueError, match=r"t\.parquet: row 0.*'text' 5"):
        open_source("captions", path, "train")


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"t\.parquet.*file"):
        open_source("captions", path, "train")
    write_parquet(path, image=[picture(i) for i in range(6)], text=[f"{i}" for i in range(6)])
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"t\.parquet.*file"):
        open_source("captions", path, "train")
    # What is broken in a row group shows when it is read, and names it.
    metadata = parquet.ParquetFile(io.BytesIO(content)).metadata

    def break_page(group, column):
        start = metadata.row_group(group).column(column).data_page_offset
        broken = bytearray(content)
        broken[start : start + 9] = b"\xff" * 9
        path.write_bytes(bytes(broken))

    break_page(0, 0)
    records = open_source("captions", path, "train")
    with pytest.raises(ValueError, match=r"t\.parquet.*group 0.*0"):
        list(records[0].images)
    assert list(records[5].images) == [picture(5)]
    break_page(2, 1)
    with pytest.raises(ValueError, match=r"t\.parquet: cannot read column 'text'"):
        open_source("captions", path, "train")


def test_what_datasets_saves(tmp_path):
    """The stream format, which has no index at its end."""
    table = arrow.table({"image": hub(1, 2), "text": ["a", "b"]})
    path = tmp_path / "train/data-00000-of-00001.arrow"
    path.parent.mkdir()
    with arrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    records = open_source("captions", tmp_path, "train+val")
    found = [(r.text, list(r.images)) for r in records]
    assert sorted(found) == [("a", [picture(1)]), ("b", [picture(2)])]
    (note,) = open_source("captions", tmp_path, "val").notes
    assert "1 of 2 records" in note and "held out as 'val'" in note


def write_arrow(path, rows_per_batch=2, **columns):
    table = arrow.table(columns)
    with arrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return path


def test_an_arrow_batch_with_a_broken_offset_is_named(tmp_path):
    pictures = [bytes([shade]) * 3000 for shade in range(4)]
    path = write_arrow(tmp_path / "t.arrow", image=pictures, text=["a", "b", "c", "d"])
    content = bytearray(path.read_bytes())
    # The offsets of a batch of two: 0, 3000, 6000.
    at = content.find((3000).to_bytes(4, "little") + (6000).to_bytes(4, "little"))
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    records = open_source("captions", path, "train")
    message = (
        rf"{re.escape(str(path))}: cannot read column 'image' of record batch 0"
        r" \(rows 0 to 1\): .*offset.*"
    )
    for row in (0, 1, 0):
        with pytest.raises(ValueError, match=message):
            list(records[row].images)
    assert [list(records[row].images) for row in (2, 3)] == [[pictures[2]], [pictures[3]]]


def test_a_batch_is_checked_once(tmp_path, monkeypatch):
    path = write_arrow(tmp_path / "t.arrow", image=hub(*range(6)), text=list("abcdef"))
    checked = []
    find = arrow_table._problem_of
    monkeypatch.setattr(arrow_table, "_problem_of", lambda *args: checked.append(1) or find(*args))
    records = open_source("captions", path, "train")
    # Texts alone look into no picture.
    assert [r.text for r in records] == list("abcdef") and len(checked) == 3
    for row in (0, 1, 4, 0, 5):
        assert list(records[row].images) == [picture(row)]
    assert len(checked) == 5


def test_an_arrow_file_that_is_cut_is_named(tmp_path):
    path = write_arrow(tmp_path / "t.arrow", image=hub(*range(4)), text=list("abcd"))
    content = path.read_bytes()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"t\.arrow.*file"):
            open_source("captions", path, "train")
    table = arrow.table({"image": hub(*range(4)), "text": list("abcd")})
    with arrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    os.truncate(path, path.stat().st_size - 50)
    with pytest.raises(ValueError, match=r"t\.arrow.*batch 1"):
        open_source("captions", path, "train")


def test_broken_arrow_bytes_are_errors_and_nothing_else():
    """In a process of its own, which pyarrow may end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.arrow_files", "0", "600"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"{last}: {done.stderr[-2000:]}"
    assert 100 < int(re.fullmatch(r"600 files, (\d+) refused", last)[1]) < 600


def cut(path):
    os.truncate(path, 2000)


def write_over(path):
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(len(content)))
    now = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(now, now))


def replace_cut(path):
    """Cut it, and put a sound file of the same size and time in its place."""
    found, content = path.stat(), path.read_bytes()
    os.truncate(path, 100)
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [cut, write_over, replace_cut])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_that_changes_while_it_is_used(tmp_path, kind, change):
    write = write_parquet if kind == "parquet" else write_arrow
    paths = [tmp_path / f"{name}.{kind}" for name in ("changed", "sound")]
    shown = [picture(shade, (200, 150)) for shade in range(12)]
    for path in paths:
        write(path, image=shown, text=[f"number {shade}" for shade in range(12)])
    records = caption_records(Tables(paths))
    assert [list(records[row].images) for row in (0, 13)] == [[shown[0]], [shown[1]]]
    change(paths[0])
    message = rf"changed\.{kind} has changed since it was opened: .*; open the data again"
    for row in (0, 11):
        with pytest.raises(ValueError, match=message):
            list(records[row].images)
    loader = DataLoader(
        records,
        "image_text",
        tokenizer=Tokenizer.train([record.text for record in records], 300),
        transform=ImageTransform.squash(16),
        batch_size=2,
        max_tokens=8,
        on_error="skip",
    )
    with pytest.warns(RuntimeWarning, match=message):
        assert sum(len(batch) for batch in loader) == 12
    assert loader.statuses == {"ok": 12, "corrupt": 12}
    if change is replace_cut:
        assert list(caption_records(Tables(paths))[3].images) == [shown[3]]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_copy_reads_too(tmp_path, kind):
    write = write_parquet if kind == "parquet" else write_arrow
    shown = [picture(shade) for shade in range(12)]
    path = tmp_path / f"a.{kind}"
    write(path, image=shown, text=["a text"] * 12)
    records = caption_records(Tables([path]))
    for source in (records, list(records)):
        for copied in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
            assert [list(record.images) for record in copied] == [[data] for data in shown]
    pickled = pickle.dumps(records)
    write_over(path)
    with pytest.raises(ValueError, match=rf"a\.{kind}"):
        list(pickle.loads(pickled)[0].images)


def test_threads_share_a_file(tmp_path):
    shades = range(24)
    path = write_parquet(
        tmp_path / "t.parquet", image=hub(*shades), text=[str(s) for s in shades], rows_per_group=3
    )
    records, wrong = open_source("captions", path, "train"), []

    def read(first):
        for step in range(60):
            index = (first * 7 + step * 5) % 24
            if list(records[index].images) != [picture(index)]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
