"""The table of docs/keep.md is that of the rows, and every way of the bench trains."""

import re
from pathlib import Path

import pytest

import fiber
from tests.lora_gate import write_new_shapes

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_page_has_the_numbers_of_the_rows(bench):
    rows = bench.Rows("keep", ("way", "seed")).rows
    assert {row["way"] for row in rows} == set(bench.NAMES)
    assert "\n".join(bench.table(rows)) in (ROOT / "docs" / "keep.md").read_text()


def test_a_table_of_one_and_of_several_seeds(bench):
    def row(way, *values):
        return {"way": way, **dict(zip(bench.COLUMNS, values, strict=True))}

    rows = [row("keep", "0.5", "0.25", "1"), row("start", "0.1", "0.9", "1")]
    head, _, first, second = bench.table(rows)
    assert head == "| training | new AP | old AP | old expressions |"
    assert first == "| the initial model | 0.100 | 0.900 | 1.000 |"
    assert second == "| `--keep` | 0.500 | 0.250 | 1.000 |"
    *_, last = bench.table([*rows, row("keep", "0.7", "0.25", "1")])
    assert last == "| `--keep` | 0.600 ± 0.141 | 0.250 | 1.000 |"
    assert list(bench.table([]))[2:] == []


@pytest.mark.slow
def test_every_way_trains_and_is_measured(bench, small_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr("tests.lora_gate.SPLITS", {"train": 6, "valid": 4})
    write_new_shapes(tmp_path / "new")
    (tmp_path / "old").symlink_to(small_scenes)
    for way in bench.NAMES:
        row = bench.measured(tmp_path, way, 0)
        assert row.keys() == {"way", "seed", "steps", *bench.COLUMNS}
        numbers = [float(row[column]) for column in bench.COLUMNS]
        assert all(re.fullmatch(r"[01]\.\d{4}", row[column]) for column in bench.COLUMNS)
        assert all(0 <= number <= 1 for number in numbers)
    assert fiber.load(tmp_path / "keep-0").classes[:2] == ("arrow", "house")
