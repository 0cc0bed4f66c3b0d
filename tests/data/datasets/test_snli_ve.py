"""SNLI-VE: its own files and METER's tables give the same records."""

import json

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.skip_report import skip_lines
from fiber.data.sources import entailment
from fiber.data.tools.discover import kinds_of

LINES = [
    {"Flickr30K_ID": "471", "gold_label": "neutral", "sentence2": "A dog.", "pairID": "471.jpg#1r"},
    {"Flickr30K_ID": 99, "gold_label": "-", "sentence2": "A cat."},
    {"Flickr30K_ID": "99.jpg", "gold_label": "contradiction", "sentence2": "A cat."},
]


def write(folder, lines=LINES):
    (folder / "images").mkdir()
    file = folder / "snli_ve_dev.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return file


def test_no_line(tmp_path):
    write(tmp_path, [])
    assert len(entailment(tmp_path, "dev")) == 0


def test_lines_without_a_gold_label_are_counted(tmp_path):
    file = write(tmp_path)
    records = open_source("entailment", tmp_path, "dev")
    assert [(r.text, r.answers, r.group) for r in records] == [
        ("A dog.", {"neutral": 1.0}, "neutral"),
        ("A cat.", {"contradiction": 1.0}, "contradiction"),
    ]
    assert [r.key for r in records] == ["snli_ve_dev/471.jpg#1r", "snli_ve_dev/2"]
    images = [str(tmp_path / "images" / name) for name in ("471.jpg", "99.jpg")]
    assert [r.images for r in records] == [(image,) for image in images]
    assert records.counts == {"hypotheses without a gold label": 1}
    assert kinds_of(file) == {"entailment"}


def test_one_line_without_a_gold_label_is_a_hypothesis(tmp_path):
    write(tmp_path)
    lines = skip_lines(open_source("entailment", tmp_path, "dev"))
    assert lines == ["1 hypothesis without a gold label was skipped or changed"]


def test_images_may_be_in_flickr30ks_own_folder(tmp_path):
    write(tmp_path)
    (tmp_path / "images").rename(tmp_path / "flickr30k-images")
    (record, _) = entailment(tmp_path, "dev")
    assert record.images == (str(tmp_path / "flickr30k-images" / "471.jpg"),)
    (tmp_path / "flickr30k-images").rmdir()
    with pytest.raises(
        FileNotFoundError, match=r"images does not exist; .*'flickr30k-images' next"
    ):
        entailment(tmp_path, "dev")


def test_a_missing_file_says_where_it_is_from(tmp_path):
    """Scenes have no such file, and SNLI-VE has no split "val"."""
    address = "https://github.com/necla-ml/SNLI-VE"
    with pytest.raises(
        FileNotFoundError, match=rf"snli_ve_dev.jsonl \(SNLI-VE, from {address}\)"
    ) as error:
        open_source("entailment", tmp_path, "dev")
    assert "fiber data scenes" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"does not exist; .*from {address}$"):
        entailment(tmp_path, "dev")
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no entailment for split 'val'; .*splits: dev"):
        open_source("entailment", tmp_path, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_label": "maybe"}, r"gold_label 'maybe'; expected contradiction, neutral"),
        ({"Flickr30K_ID": 1.5}, "has 'Flickr30K_ID' 1.5; expected str or int"),
        ({"sentence2": None}, "sentence2"),
    ],
)
def test_broken_lines_are_named(tmp_path, change, message):
    write(tmp_path, [LINES[0], LINES[2] | change])
    with pytest.raises(ValueError, match=rf"snli_ve_dev\.jsonl: lines.1. .*{message}"):
        entailment(tmp_path, "dev")


class TestTables:
    def table(self, folder, **changes):
        pyarrow = pytest.importorskip("pyarrow")
        columns = {
            "image": [b"first", b"second"],
            "sentences": [[["Two men.", "A dog."], ["Two men.", "Men."]], [["A cat.", "A cat."]]],
            "labels": [[1, 2], [0]],
        } | changes
        table = pyarrow.table(columns)
        with pyarrow.ipc.new_file(str(folder / "snli_train.arrow"), table.schema) as file:
            file.write_table(table)

    def test_rows(self, tmp_path):
        self.table(tmp_path)
        records = open_source("entailment", tmp_path, "train")
        assert [(r.key, r.text, r.answers) for r in (records[i] for i in range(3))] == [
            ("snli_train/0-0", "A dog.", {"neutral": 1.0}),
            ("snli_train/0-1", "Men.", {"entailment": 1.0}),
            ("snli_train/1-0", "A cat.", {"contradiction": 1.0}),
        ]
        assert ENTAILMENT == ("contradiction", "neutral", "entailment")
        assert bytes(records[1].images[0]) == b"first"
        assert kinds_of(tmp_path / "snli_train.arrow") == {"entailment"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": [[1, 3], [0]]}, "row 0 has label 3; expected 0, 1 or 2"),
            ({"labels": [[1], [0]]}, "row 0 .*labels"),
            (
                {"sentences": [[["a"], ["b", "c"]], [["d", "e"]]]},
                r"row 0 has \['a'\] in 'sentences'; expected 2",
            ),
        ],
    )
    def test_broken_rows_are_named(self, tmp_path, changes, message):
        self.table(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            open_source("entailment", tmp_path, "train")
