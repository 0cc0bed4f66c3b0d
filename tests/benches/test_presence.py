"""Tables of presence in docs/evidence.md are those of the rows; the diagram has their bins."""

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"


@pytest.fixture
def rows(bench):
    return bench.Rows("presence", ("arm", "seed")).rows


def test_the_tables_of_the_page_have_the_numbers_of_the_rows(bench, rows):
    page = PAGE.read_text()
    assert bench.tables(rows) in page
    assert bench.reliability_table(rows) in page


def test_empty_bins_are_left_out(bench, rows):
    kept = [row for row in rows if (row["split"], row["kind"]) != ("val", "bin 3")]
    found = bench.bins_of(kept, "val")
    assert found[3] is None
    assert [each for each in found if each] == [
        each for number, each in enumerate(bench.bins_of(rows, "val")) if number != 3
    ]
    assert bench.reliability_table(kept).splitlines()[5].startswith("| - | - | - | 0.355 |")


def test_the_diagram_has_every_bin(bench, rows, tmp_path, monkeypatch):
    drawn = bench.CHART.read_text()
    monkeypatch.setattr(bench, "CHART", tmp_path / bench.CHART.name)
    bench.draw(rows)
    assert bench.CHART.read_text().count("<use") == drawn.count("<use")
    assert drawn.count('id="line2d_') == bench.CHART.read_text().count('id="line2d_')
    kept = [row for row in rows if row["kind"] != "bin 3"]
    bench.draw(kept)
    # A point and a bar of each split.
    assert bench.CHART.read_text().count("<use") == drawn.count("<use") - 2
