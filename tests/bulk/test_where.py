"""Conditions on columns."""

import numpy as np
import pyarrow
import pytest

from fiber.bulk.where import MAX_DEPTH, column_kinds, parse_where

TABLE = pyarrow.table(
    {
        "width": pyarrow.array([100, 800, 900, None], pyarrow.int32()),
        "score": pyarrow.array([0.5, -1.0, None, 2.0], pyarrow.float32()),
        "text": ["a dog", "it's", None, 'a "cat"'],
        "good": [True, False, None, True],
        "boxes": [[1], [], [2], None],
    }
)
KINDS = column_kinds(TABLE.schema)


def found(text):
    return np.flatnonzero(parse_where(text, KINDS).mask(TABLE)).tolist()


def test_columns_that_conditions_read():
    assert KINDS == {"width": "number", "score": "number", "text": "text", "good": "bool"}
    assert parse_where("width > 1 or not (text = 'a' and good = true)", KINDS).columns() == {
        "width",
        "text",
        "good",
    }


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("width > 800", [2]),
        ("width >= 800", [1, 2]),
        ("width<>800", [0, 2]),
        ("width = 1e2", [0]),
        ("width < 99999999999999999999999", [0, 1, 2]),
        ("score < -.5", [1]),
        ("score != 0.5", [1, 3]),
        ("text = 'a dog'", [0]),
        ("text = 'it''s'", [1]),
        ('text = "a ""cat"""', [3]),
        ("text > 'a e'", [1]),
        ("good = true", [0, 3]),
        ("good != TRUE", [1]),
        ("width is null", [3]),
        ("text IS NOT NULL", [0, 1, 3]),
        ("width in (100, 900)", [0, 2]),
        ("width not in (100, 900)", [1]),
        ("text in ('it''s')", [1]),
        # As in SQL, what is null is neither.
        ("not width > 800", [0, 1]),
        ("width > 800 or good = true", [0, 2, 3]),
        ("width > 800 and good = true", []),
        # `and` binds closer than `or`, `not` closer than both.
        ("width = 100 or width = 800 and score > 0", [0]),
        ("(width = 100 or width = 800) and score > 0", [0]),
        ("not width = 100 and not width = 900", [1]),
        ("  ( ( width = 100 ) )  ", [0]),
    ],
)
def test_rows(text, rows):
    assert found(text) == rows


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "a column at character 1, got the end"),
        ("   ", "a column"),
        ("wdth > 3", "'wdth'.*width.*the columns are width, score, text, good"),
        ("boxes = 3", "'boxes'"),
        ("width", "an operator"),
        ("width >", "a number"),
        ("width > '3'", "width is a number column"),
        ("text = 3", "text is a text column"),
        ("good = 1", "good is a bool column"),
        ("good < true", "= or !="),
        ("width = 3 text = 'a'", "and, or, or the end at character 11"),
        ("(width = 3", r"\) at character 11"),
        ("width in ()", "a number"),
        ("width in (1 2)", ", or"),
        ("width is 3", "an operator"),
        ("width = 3; drop", "';"),
        ("width = null", "a number"),
        ("text = 'a", '"\'a"'),
        ("and", "a column"),
        ("__import__('os').system('x')", "system"),
        ("width = 3.4.5", "3.4.5"),
        ("width = 0x10", "0x10"),
        ("not " * (MAX_DEPTH + 1) + "width = 3", "in each other"),
        ("(" * 3000 + "width = 3" + ")" * 3000, "in each other"),
        ("x" * 200_000, "200000 characters"),
    ],
)
def test_what_is_no_condition(text, named):
    with pytest.raises(ValueError, match=named):
        parse_where(text, KINDS)


def test_another_type():
    with pytest.raises(TypeError, match="where"):
        parse_where(b"width = 3", KINDS)


def test_no_row():
    empty = TABLE.slice(0, 0)
    assert parse_where("width > 3 or text is null", KINDS).mask(empty).tolist() == []


def test_long_conditions_are_evaluated():
    text = " or ".join(f"width = {number}" for number in range(2000))
    assert found(text) == [0, 1, 2]
