import statistics
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def boxes_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("boxes_page", "page_parts", "boxes", "box_measures", "experiments"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import boxes_page

    return boxes_page


def rows_of(boxes_page, values, *, seeds=3, data="scenes"):
    """Rows of both arms: `values` gives a number by arm and percent, plus 0.01 for each seed."""
    columns = [column for column, _, _ in boxes_page._columns()]
    return [
        {
            "data": data,
            "arm": arm,
            "percent": str(percent),
            "seed": str(seed),
            "boxes": str(70 * percent + seed),
            "steps": "400",
            "batch_size": "16",
            "cpu_seconds": "1800",
            "coarse_text_to_image_recall_at_10": "",
            **dict.fromkeys(columns, f"{value + 0.01 * seed:.4f}"),
            "processor": "x",
            "cores": "2",
            "torch": "2",
            "commit": "c",
        }
        for (arm, percent), value in values.items()
        for seed in range(seeds)
    ]


def lines_of(boxes_page, coarse_fine, fine):
    parts = boxes_page.PERCENTS
    return {(boxes_page.COARSE_FINE, p): v for p, v in zip(parts, coarse_fine, strict=True)} | {
        (boxes_page.FINE, p): v for p, v in zip(parts, fine, strict=True)
    }


def test_no_section_before_a_run_is_trained(boxes_page):
    assert boxes_page.section([]) == []
    chance = rows_of(boxes_page, {(boxes_page.CHANCE, 0): 0.3}, seeds=1)
    assert boxes_page.section(chance) == []


def test_differences_are_named_part_by_part_and_the_saving_is_computed(boxes_page):
    rows = rows_of(boxes_page, lines_of(boxes_page, (0.7, 0.6, 0.3), (0.55, 0.4, 0.3)))
    text = "\n".join(boxes_page.section(rows))
    assert "- coarse, then fine beside fine only, 100 % of the boxes: phrases, R@1 (seen)" in text
    assert "beside fine only, 100 % of the boxes: phrases, R@1 (seen) rises by 0.150" in text
    assert "beside fine only, 25 % of the boxes: phrases, R@1 (seen) rises by 0.200" in text
    assert "beside fine only, 5 % of the boxes: no difference found" in text
    assert "reach that of fine only with 100 %: phrases, R@1 (seen) 25 % and 100 %;" in text
    assert "0.710 (0.700 to 0.720)" in text
    assert "18 of 38 fine runs, 9.0 CPU hours: x, 2 cores" in text


def test_a_coarse_stage_that_brings_nothing_is_told_so(boxes_page):
    rows = rows_of(boxes_page, lines_of(boxes_page, (0.5, 0.4, 0.3), (0.6, 0.4, 0.3)))
    text = "\n".join(boxes_page.section(rows))
    assert "100 % of the boxes: phrases, R@1 (seen) falls by 0.100" in text
    assert "phrases, R@1 (seen) never and 100 %;" in text


def test_boxes_that_nobody_needs_are_not_saved(boxes_page):
    rows = rows_of(boxes_page, lines_of(boxes_page, (0.5, 0.6, 0.6), (0.5, 0.4, 0.5)))
    assert "phrases, R@1 (seen) 5 % and 5 %;" in "\n".join(boxes_page.section(rows))


def test_too_few_seeds_are_not_judged(boxes_page):
    rows = rows_of(boxes_page, lines_of(boxes_page, (0.9, 0.8, 0.7), (0.3, 0.2, 0.1)), seeds=2)
    text = "\n".join(boxes_page.section(rows))
    assert "Fewer than 3 seeds have run: no difference is judged yet." in text
    assert "rises" not in text


def test_as_many_steps_without_captions_are_compared_too(boxes_page):
    values = lines_of(boxes_page, (0.7, 0.6, 0.3), (0.55, 0.4, 0.3))
    rows = rows_of(boxes_page, values | {(boxes_page.LONGER, 25): 0.8})
    text = "\n".join(boxes_page.section(rows))
    assert "beside fine only, longer, 25 % of the boxes: phrases, R@1 (seen) falls by" in text


def test_extras_and_stamps_of_all_nouns_are_told_and_counted_apart(boxes_page):
    values = lines_of(boxes_page, (0.7, 0.6, 0.3), (0.55, 0.4, 0.3))
    rows = rows_of(boxes_page, values)
    rows += rows_of(boxes_page, {(boxes_page.LONGER, 25): 0.8}, seeds=1)
    others = {(boxes_page.CHANCE, 0): 0.4, (boxes_page.FINE, 100): 0.25}
    rows += rows_of(boxes_page, others, seeds=1, data=boxes_page.ALL_STAMPS)
    text = "\n".join(boxes_page.section(rows))
    assert "### all stamps" not in text
    assert "expressions, accuracy (seen): chance 0.4000, fine only, 100 % of the boxes 0.25" in text
    counted = "18 of 38 fine runs, 9.0 CPU hours"
    assert f"{counted} (besides, fine only, longer: 0.5, all stamps: 1.0): x, 2 cores" in text


def test_a_coarse_model_trained_once_more_has_the_runs_behind_it(boxes_page):
    own = rows_of(boxes_page, lines_of(boxes_page, (0.7, 0.6, 0.3), (0.55, 0.4, 0.3)))
    coarse = rows_of(boxes_page, {(boxes_page.COARSE, 0): 0.0}, seeds=2)
    coarse[0]["coarse_text_to_image_recall_at_10"] = "0.4200"
    text = "\n".join(boxes_page.section([coarse[0], *own[:7], coarse[1], *own[7:]]))
    assert "R@10 0.4200 (runs from it: 7); 400 coarse steps" in text
    assert "R@10  (runs from it: 2); 400 of 16 (fine only). Boxes:" in text


def test_points_of_the_curve_are_mean_and_range_by_number_of_boxes(boxes_page, tmp_path):
    rows = rows_of(boxes_page, lines_of(boxes_page, (0.7, 0.6, 0.3), (0.55, 0.4, 0.3)))
    line = boxes_page.points(rows, boxes_page.FINE, "detection/ap50/unseen")
    assert [point.boxes for point in line] == [351, 1751, 7001]
    assert line[1].mean == pytest.approx(statistics.mean((0.4, 0.41, 0.42)))
    assert (line[1].least, line[1].most) == (0.4, 0.42)
    picture = tmp_path / "images" / "curve.png"
    boxes_page.draw(rows, picture)
    assert picture.stat().st_size > 10_000
