"""Tables whose columns have other types and values than expected, and schemas with other names."""

import json
from decimal import Decimal

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.datasets.vqa_answers import published_answers
from fiber.data.formats.arrow import Tables, entailment_records, statement_records
from tests.data.hostile_values import is_refused, mutants
from tests.data.shards import picture

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SIZE = {"width": [40], "height": [30], "image_id": [5]}
BOXES = {**SIZE, "boxes_xyxy": [[[2, 3, 9, 9.5]]], "labels": [["mug"]]}
#: Columns besides the image.
TABLES = {
    "captions": {"caption": [["x"]], "image_id": ["a"]},
    "questions": {
        "questions": [["x"]],
        "question_id": [[5]],
        "answers": [[["a"]]],
        "answer_scores": [[[0.5]]],
    },
    "detection": BOXES,
    "reasoning": {"questions": [["x"]], "answers": [["True"]], "identifier": ["a-1"]},
    "entailment": {"sentences": [[["x", "y"]]], "labels": [[1]]},
}


def columns():
    """Columns of one value, each of another type."""
    far = arrow.array([2**62], arrow.int64())
    return [
        *map(arrow.array, ([None], [True], [2**63 - 1], [-1], [1.5], [float("nan")], ["x"], [""])),
        *map(arrow.array, ([b"\xff"], [[]], [[None]], [["x"]], [[["x"]]], [[[[1]]]], [{"a": 1}])),
        *map(arrow.array, ([[{"raw": 1}]], [["x" * 5000]], ["a\0b"], ["\x1b[2J"], [[2**60]])),
        arrow.array([2**64 - 1], arrow.uint64()),
        arrow.array([Decimal("9" * 38)], arrow.decimal128(38)),
        arrow.array([[("a", 1.0)]], arrow.map_(arrow.string(), arrow.float64())),
        arrow.array(["x"], arrow.large_string()).dictionary_encode(),
        # Beyond the range of Python's dates.
        far.cast(arrow.timestamp("s")),
        far.cast(arrow.duration("s")),
        arrow.array([2**31 - 1], arrow.int32()).cast(arrow.date32()),
        arrow.array([[float("inf")]], arrow.list_(arrow.float64())),
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.arrow"


def write(path, table, metadata=None):
    table = table.replace_schema_metadata(metadata)
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def image_columns(kind):
    names = ("image_0", "image_1") if kind == "reasoning" else ("image",)
    return {name: [picture(1)] for name in names}


def read(kind, path):
    if kind == "reasoning":
        return statement_records(Tables([path]))
    if kind == "entailment":
        return entailment_records(Tables([path]))
    return open_source(kind, path, "train")


@pytest.mark.parametrize("kind", TABLES)
def test_every_column_of_every_type_is_read_or_refused_by_name(kind, path):
    sound = arrow.table({**image_columns(kind), **TABLES[kind]})
    write(path, sound)
    assert not is_refused(lambda: read(kind, path), path.parent, path.name)
    refused = []
    for place, name in enumerate(sound.column_names):
        for column in columns():
            write(path, sound.set_column(place, name, column))
            refused.append(is_refused(lambda: read(kind, path), path.parent, path.name))
    assert 0 < sum(refused) < len(refused)


def test_every_image_of_every_type_is_read_or_refused_by_name(path):
    for column in columns():
        write(path, arrow.table({"image": column, "caption": ["x"]}))
        (record,) = open_source("captions", path, "train")
        try:
            assert isinstance(record.images[0], str | bytes)
        except ValueError as error:
            said = str(error)
            assert "train.arrow" in said and "'image'" in said
            assert len(said) < 2000 and said.isprintable()


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_every_value_of_the_metadata_of_a_schema_is_used_or_ignored(suffix, tmp_path):
    path = tmp_path / f"train.{suffix}"
    label = {"names": ["mug", "dog"], "_type": "ClassLabel"}
    sound = {"info": {"features": {"objects": {"feature": {"category": label}}}}}
    objects = [{"bbox": [[2.0, 3.0, 9.0, 9.5]], "category": [0]}]
    table = arrow.table({"image": [picture(1)], "objects": objects})
    refused = []
    for text in (json.dumps(sound), *mutants(sound)):
        metadata = {"huggingface": text}
        if suffix == "parquet":
            parquet.write_table(table.replace_schema_metadata(metadata), path)
        else:
            write(path, table, metadata)
        refused.append(
            is_refused(lambda: open_source("detection", path, "train"), tmp_path, path.name)
        )
    # The class is a number, so that its name is needed.
    assert not refused[0] and len(refused) * 3 / 4 < sum(refused) < len(refused)


def test_numbers_of_classes_without_names_say_how_names_are_given(path, data):
    objects = [{"bbox": [[2.0, 3.0, 9.0, 9.5]], "category": [3]}]
    write(path, arrow.table({"image": [picture(1)], "objects": objects}))
    with pytest.raises(ValueError, match=r"row 0 has box 0 with class 3, .*names.*ClassLabel"):
        open_source("detection", path, "train")
    (data.folder / "1.png").touch()
    line = {"image": "1.png", "boxes_xyxy": [[2, 3, 9, 9]], "labels": [3]}
    with pytest.raises(ValueError, match=r"line 1 has box 0 with class 3, .*'dog'") as error:
        open_source("detection", data("mine.jsonl", [line]), "train")
    assert "ClassLabel" not in str(error.value)


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ([["a"]], [[10**9]]),
        ([["a"]], [[-1]]),
        ([["a"]], [[None]]),
        ([[None]], [[1]]),
        (["a"], [1]),
        ([["a"]], [[1, 2]]),
        (None, None),
    ],
)
def test_labels_of_answers_that_are_none(tmp_path, answers, labels):
    for split in ("train", "val"):
        table = arrow.table({"image": [b""], "answers": [answers], "answer_labels": [labels]})
        write(tmp_path / f"vqav2_{split}.arrow", table)
    with pytest.raises(ValueError, match=r"vqav2_train\.arrow: row 0 has"):
        published_answers(tmp_path)


def test_a_schema_of_very_many_columns_is_not_listed(path):
    names = [f"column {number} {'x' * 100}" for number in range(20_000)]
    write(path, arrow.table({name: [1] for name in names}))
    with pytest.raises(ValueError, match=r"available columns: column 0 x+\.\.\..*and 19,988 more$"):
        open_source("captions", path, "train")
