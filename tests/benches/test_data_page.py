"""The section on the data path, from rows that are written here."""

import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"
LINE = "squash coco640 float32"


@pytest.fixture
def data_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("data_page", "page_parts", "experiments"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import data_page

    return data_page


def row(side, median, *, line=LINE, date="2026-01-02"):
    return {
        "date": date,
        "line": line,
        "material": "512 pictures",
        "side": side,
        "output": line.split()[-1],
        "unit": "CPU ms a picture",
        "median": str(median),
        "p20": "1",
        "p80": "9",
        "ratio_to_peer": "7",
        "per_wall_second": "100",
        "peak_megabytes": "50",
        "levels_from_pillow": "0.1",
        "versions": "thing=1",
        "remark": "so so",
        "processor": "x",
        "cores": "2",
        "torch": "2",
        "commit": "c" * 40,
    }


def test_nothing_measured(data_page):
    assert data_page.section([]) == []


def test_fastest_first_and_gates_judged(data_page):
    text = "\n".join(data_page.section([row("published", 9.0), row("fiber", 1.5)]))
    ours = "| fiber | 1.5 (1 to 9) | 7 | 100 | 50 | 0.1 | thing 1 | so so |"
    assert text.index(ours) < text.index("| published | 9.0 (1 to 9) |")
    assert f"| {LINE} | published | 6.00 | 5: met | 8: missed |" in text
    # What was not measured is not judged.
    assert "dali" not in text
    assert "x, 2 cores, torch 2, commit cccccccccccc." in text


def test_a_missed_gate_says_so(data_page):
    text = "\n".join(data_page.section([row("published", 4.0), row("fiber", 1.0)]))
    assert "| 4.00 | 5: missed | 8: missed |" in text


def test_the_fastest_rival_counts(data_page):
    line = "squash coco640 uint8"
    rivals = [
        row("torchvision-threads", 3.0, line=line),
        row("torchvision-jemalloc", 2.6, line=line),
    ]
    text = "\n".join(data_page.section([*rivals, row("fiber", 2.0, line=line)]))
    assert f"| {line} | torchvision-jemalloc | 1.30 | 1.3: met | 2: missed |" in text


def test_the_newest_rows_count(data_page):
    old = [row("published", 5.0, date="2026-01-01"), row("dali", 5.0, date="2026-01-01")]
    new = [row("fiber", 3.0), row("fiber", 2.0), row("published", 4.0)]
    text = "\n".join(data_page.section(old + new))
    assert f"| {LINE} | published | 2.00 |" in text
    assert "dali" not in text
