"""The published Arrow files: through pyarrow where it is, and a stand-in for what is used of it."""

import json
import sys
import types

import pytest

from fiber.data.formats.arrow import Tables, statement_records
from fiber.data.formats.row_records import caption_records, question_records

pytestmark = pytest.mark.oldest


class _Value:
    def __init__(self, value):
        self.value = value

    def as_py(self):
        return bytes.fromhex(self.value) if isinstance(self.value, str) else self.value


class _Column:
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def validate(self, full):
        assert full

    def to_pylist(self):
        return self.values

    def __getitem__(self, index):
        return _Value(self.values[index])


class _Stream:
    """A file kept as JSON, with the calls that we make of pyarrow's reader, schema and batch."""

    def __init__(self, columns):
        self.columns = list(columns.values())
        self.names, self.metadata = list(columns), None
        self.num_rows = len(self.columns[0])
        self.schema = self

    def __iter__(self):
        yield self

    def column(self, place):
        return _Column(self.columns[place])


def _open_stream(path):
    with open(path) as file:  # noqa: PTH123  (the stand-in takes what memory_map gave)
        return _Stream(json.load(file))


@pytest.fixture(params=["stand-in", "pyarrow"])
def write(request, tmp_path, monkeypatch):
    """A function that writes columns as an Arrow file."""
    if request.param == "pyarrow":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

        def save(name, **columns):
            table = arrow.table(columns)
            with arrow.RecordBatchFileWriter(str(tmp_path / name), table.schema) as writer:
                writer.write_table(table)
            return tmp_path / name

        return save
    arrow, ipc = types.ModuleType("pyarrow"), types.ModuleType("pyarrow.ipc")
    vars(arrow).update(memory_map=str, ipc=ipc)
    vars(ipc).update(open_stream=_open_stream)
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", ipc)

    def save(name, **columns):
        plain = {
            key: [v.hex() if isinstance(v, bytes) else v for v in values]
            for key, values in columns.items()
        }
        (tmp_path / name).write_text(json.dumps(plain))
        return tmp_path / name

    return save


def table_captions(*paths):
    return caption_records(Tables(paths))


def table_questions(path):
    return question_records(Tables([path]))


def table_statements(path):
    return statement_records(Tables([path]))


def test_captions_of_several_files(write):
    one = write(
        "coco_0.arrow",
        image=[b"\x01", b"\x02"],
        caption=[["a dog", "a cat", "a dog"], [" "]],
        image_id=["COCO_val2014_000000391895.jpg", "b.jpg"],
        split=["val", "val"],
    )
    two = write("coco_1.arrow", image=[b"\x03"], caption=[[]], image_id=["c.jpg"], split=["val"])
    found = table_captions(one, two)
    assert len(found) == 2
    assert [(r.key, r.text, r.image_id, tuple(r.images)) for r in found] == [
        ("coco_0/0-0", "a dog", "COCO_val2014_000000391895.jpg", (b"\x01",)),
        ("coco_0/0-1", "a cat", "COCO_val2014_000000391895.jpg", (b"\x01",)),
    ]
    assert found[0:2][1].text == found[-1].text == "a cat"
    with pytest.raises(IndexError):
        found[2]
    assert found.counts == {
        "repeated captions": 1,
        "empty captions": 1,
        "pictures without captions": 1,
    }


def test_questions_with_and_without_answers(write):
    columns = {
        "image": [b"\x01"],
        "questions": [["what?", "where?"]],
        "image_id": [262148],
        "question_id": [[262148000, 262148001]],
    }
    answers = {
        "answers": [[["dog", "pet"], ["here"]]],
        "answer_labels": [[[5, 7], [9]]],
        "answer_scores": [[[1.0, 0.3], [0.6]]],
    }
    found = table_questions(write("vqav2_val.arrow", **columns, **answers))
    assert [(r.key, r.text, r.answers) for r in found] == [
        ("vqav2_val/262148000", "what?", {"dog": 1.0, "pet": 0.3}),
        ("vqav2_val/262148001", "where?", {"here": 0.6}),
    ]
    assert found[0].image_id == "262148"
    assert [r.answers for r in table_questions(write("vqav2_test.arrow", **columns))] == [None] * 2
    none = {"answers": [[]], "answer_scores": [[]]}
    found = table_questions(write("vqav2_test.arrow", **columns, **none))
    assert [r.answers for r in found] == [None] * 2


def test_statements_show_two_images(write):
    path = write(
        "nlvr2_dev.arrow",
        image_0=[b"\x01"],
        image_1=[b"\x02"],
        questions=[["both are dogs", "one is a cat"]],
        answers=[["True", "False"]],
        identifier=["dev-850-0"],
    )
    found = table_statements(path)
    assert [(r.key, r.truth) for r in found] == [
        ("nlvr2_dev/dev-850-0-0", True),
        ("nlvr2_dev/dev-850-0-1", False),
    ]
    assert tuple(found[1].images) == (b"\x01", b"\x02")
    path = write(
        "nlvr2_dev.arrow",
        image_0=[b""],
        image_1=[b""],
        questions=[["x"]],
        answers=[["maybe"]],
        identifier=["dev-850-0"],
    )
    with pytest.raises(ValueError, match=r"nlvr2_dev\.arrow: row 0.*answer 'maybe'"):
        table_statements(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"questions": [5]}, r"row 0.*'questions' 5"),
        ({"answers": [5]}, r"row 0.*'answers' 5"),
        ({"answers": [[["a"]]]}, r"row 0.*2 'questions'.*1.*'answers'"),
        (
            {"answers": [["a", "b"]], "answer_scores": [[[1.0], [1.0]]]},
            r"'answers'.*'a'",
        ),
        (
            {"answers": [[["a"], ["b"]]], "answer_scores": [[[1.0, 0.3], [1.0]]]},
            r"row 0.*1.*2 'answer_scores'",
        ),
    ],
    ids=["no questions", "no list", "too few", "no lists of answers", "scores without answers"],
)
def test_answers_that_do_not_fit_their_questions(columns, message, write):
    path = write("q.arrow", **{"image": [b"\x01"], "questions": [["what?", "where?"]], **columns})
    with pytest.raises(ValueError, match=message):
        table_questions(path)


def test_statements_that_are_no_list(write):
    pictures = {"image_0": [b""], "image_1": [b""], "identifier": ["dev"]}
    path = write("nlvr2_dev.arrow", **pictures, questions=[["x"]], answers=[5])
    with pytest.raises(ValueError, match=r"row 0.*'answers' 5"):
        table_statements(path)


def test_files_that_do_not_fit_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.arrow.*exist"):
        table_captions(tmp_path / "none.arrow")
    path = tmp_path / "text.arrow"
    path.write_text("no table")
    with pytest.raises(ValueError, match=r"text\.arrow.*file"):
        table_captions(path)
    path = write("vg.arrow", image=[b""], width=[3])
    with pytest.raises(
        ValueError,
        match=r"vg\.arrow.*column 'caption'.*'captions'.*: image, width",
    ):
        table_captions(path)


def test_missing_pyarrow_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"vg\.arrow requires pyarrow;.*pip install"):
        table_captions("vg.arrow")
