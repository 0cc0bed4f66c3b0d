"""Parquet files of bulk folders: sound ones, and errors that name the file and the column."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fiber.bulk.output import error_schema, join_errors, row_schema, unit_file
from fiber.bulk.parquet import read_rows, read_table_of, types_of, vectors_in
from fiber.bulk.tasks import TASKS


def columns(**other):
    found = {
        "record": pa.array([0, 1], pa.int64()),
        "key": pa.array(["a", "b"]),
        "image": pa.array(["a.jpg", None]),
    }
    return pa.table(found | other)


def stored(table, tmp_path):
    path = tmp_path / "000000.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


def test_no_rows(tmp_path):
    path = stored(columns().slice(0, 0), tmp_path)
    assert len(read_rows(path)) == 0


def test_rows(tmp_path):
    table = columns(score=pa.array([0.5, None], pa.float32()))
    assert read_rows(stored(table, tmp_path), {"score": "float"}).equals(table)
    assert read_table_of(stored(table, tmp_path), ["key"]).column_names == ["key"]


@pytest.mark.parametrize("task", TASKS)
def test_what_map_writes_has_the_types_of_its_schema(task, tmp_path):
    for schema in (row_schema(TASKS[task], 3), error_schema()):
        path = stored(schema.empty_table(), tmp_path)
        assert read_rows(path, types_of(schema)).schema.names == schema.names


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (columns().drop_columns(["image"]), "column image is missing; expected string"),
        (columns(record=pa.array([0, 1], pa.int32())), "column record is int32; expected int64"),
        (columns(key=pa.array([b"a", b"b"])), "column key is binary"),
        (columns(key=pa.array(["a", None])), "column key has no value in 1 rows"),
        (columns(record=pa.array([0, -1], pa.int64())), "column record has -1"),
        (
            pa.table([*columns().columns, pa.array([1, 2])], [*columns().column_names, "key"]),
            "column key is missing",
        ),
    ],
)
def test_wrong_columns_are_named(table, named, tmp_path):
    with pytest.raises(ValueError, match=rf"000000\.parquet: {named}"):
        read_rows(stored(table, tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_damaged_files_are_named(content, tmp_path):
    path = tmp_path / "000000.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"000000\.parquet cannot be read as Parquet"):
        read_rows(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000000\.parquet does not exist"):
        read_rows(path)


def vectors(values, width=2, kind=None):
    return columns(embedding=pa.array(values, pa.list_(kind or pa.float32(), width)))


@pytest.mark.parametrize("count", [0, 2])
def test_vectors(count):
    table = vectors([[1, 2], [3, 4]]).slice(0, count)
    found = vectors_in(table, "embedding", "here")
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array([[1, 2], [3, 4]], np.float32)[:count])


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (columns(), "missing"),
        (columns(embedding=pa.array([1.0, 2.0])), "double"),
        (vectors([[1, 2], [3, 4]], kind=pa.float64()), "double"),
        (vectors([[1], [3, 4]], width=-1), "list"),
        (vectors([[], []], width=0), "list"),
        (vectors([[1, 2], None]), "without a value"),
        (vectors([[1, 2], [3, None]]), "without a value"),
    ],
)
def test_other_values_than_vectors_are_named(table, named):
    with pytest.raises(ValueError, match=f"here: column embedding .*{named}"):
        vectors_in(table, "embedding", "here")


@pytest.mark.parametrize(
    ("values", "named"), [(["a"], "is string; expected bool"), ([None], "is null; expected bool")]
)
def test_cut_texts_that_are_no_flags_are_named(values, named, tmp_path):
    (tmp_path / "rows").mkdir()
    path = unit_file(tmp_path, 0)
    pyarrow.parquet.write_table(pa.table({"truncated": values}), path)
    with pytest.raises(ValueError, match=rf"000000\.parquet: column truncated {named}"):
        join_errors(tmp_path, 1)
    table = pa.table({"truncated": pa.array([True, None], pa.bool_())})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match="column truncated has no value in 1 rows"):
        join_errors(tmp_path, 1)
