import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def kernels_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("kernels_page", "page_parts", "bench_kernels", "experiments"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import kernels_page

    return kernels_page


def rows_of(times, date="2026-11-26", commit="c"):
    """Rows by (operation, pass): milliseconds of the three sides."""
    return [
        {
            "date": date,
            "side": f"{side}, {operation}, {what}, 384, batch 1, stage 3",
            "median": str(median),
            "processor": "x",
            "cores": "2",
            "torch": "2",
            "commit": commit,
        }
        for (operation, what), medians in times.items()
        for side, median in zip(("fiber", "eager", "sdpa"), medians, strict=True)
    ]


def test_no_section_without_rows(kernels_page):
    assert kernels_page.section([]) == []


def test_means_and_gates(kernels_page):
    rows = rows_of(
        {
            ("windows", "forward"): (2, 4, 3),
            ("image to text", "forward"): (2, 2, 2),
        }
    )
    text = "\n".join(kernels_page.section(rows))
    assert "| all beside eager | forward | 1.41 | 1.3: met |" in text
    assert "| windows beside SDPA | forward | 1.50 | 1.0: met |" in text
    assert "| image to text beside SDPA | forward | 1.00 | 1.3: missed |" in text
    assert "| windows | 384, batch 1, stage 3 | forward | 2 | 4 | 3 | 2.00 | 1.50 |" in text
    assert "all do (the least ratio is 1.00)" in text


def test_slow_calls_are_named_unless_they_are_short(kernels_page):
    rows = rows_of(
        {("windows", "forward"): (2, 1.5, 3), ("text to image", "forward"): (0.4, 0.2, 0.2)}
    )
    text = "\n".join(kernels_page.section(rows))
    assert "Of the 1 calls" in text
    assert "missed: windows, forward, 384, batch 1, stage 3 (0.75)." in text


def test_only_the_newest_rows_count(kernels_page):
    old = rows_of({("windows", "forward"): (9, 1, 1)}, date="2026-11-25")
    new = rows_of({("windows", "forward"): (1, 2, 3)})
    assert kernels_page.section(old + new) == kernels_page.section(new)


def test_of_one_day_only_the_last_run_counts(kernels_page):
    first = rows_of({("windows", "forward"): (9, 1, 1)}, commit="first")
    last = rows_of({("windows", "forward"): (1, 2, 3)}, commit="last")
    assert kernels_page.section(first + last) == kernels_page.section(last)
    assert "first" not in "".join(kernels_page.section(first + last))
