import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def results_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    names = ("results_page", "boxes_page", "data_page", "page_parts", "boxes", "finetune", "ablate")
    names += ("experiments", "box_measures")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import results_page

    return results_page


def test_the_page_is_what_its_rows_give(results_page):
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page(), (
        "docs/results.md is not what its rows give; run python benches/results_page.py"
    )


def test_a_difference_needs_separate_seeds_and_two_deviations(results_page):
    change = results_page.change
    assert change([0.5, 0.5, 0.52], [0.3, 0.31, 0.3]) == "falls by 0.203"
    assert change([0.3, 0.31, 0.3], [0.5, 0.5, 0.52]) == "rises by 0.203"
    assert change([0.5, 0.6, 0.7], [0.69, 0.8, 0.9]) == ""
    # Separate, but less than two deviations apart.
    assert change([0.1, 0.3, 0.5], [0.51, 0.52, 0.53]) == ""
    assert change([0.5], [0.1]) == ""


def test_a_task_is_learned_only_above_everything_that_misses_an_input(results_page):
    def rows(inputs, values):
        return [
            {
                "data": "scenes",
                "task": "nlvr2",
                "inputs": inputs,
                "split": split,
                "metric": "accuracy",
                "value": str(value),
                "coarse_steps": "9",
                "steps": "5",
                "batch_size": "32",
                "train_seconds": "60",
                "processor": "x",
                "cores": "2",
                "torch": "2",
                "commit": "c",
            }
            for split in ("val", "novel")
            for value in values
        ]

    seen = rows("both", [0.7, 0.8]) + rows("text", [0.5]) + rows("picture", [0.71])
    text = "\n".join(results_page._finetuned(seen))
    assert "0.750 (0.700 to 0.800)" in text
    assert "9 steps of coarse pre-training before, then 5 of 32 for nlvr2." in text
    assert "Learned from both inputs: nothing." in text
    text = "\n".join(results_page._finetuned(seen[:-2]))
    assert "Not learned: nothing." in text


@pytest.mark.parametrize(
    ("name", "ratio", "judged"),
    [
        ("detector_backbone", "0.7", "0.667: missed; gate 0.769: met"),
        ("detector", "0.9", "0.714: missed; gate 0.877: missed"),
        ("detector_memory", "0.6", "0.600: met"),
        ("detector_short", "0.1", ""),
    ],
)
def test_a_ratio_is_held_against_its_aim_and_its_gate(results_page, name, ratio, judged):
    row = {"side": "fiber", "ratio_to_peer": ratio}
    assert results_page._judged(name, row) == judged
