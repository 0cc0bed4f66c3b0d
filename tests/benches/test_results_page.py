import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

import page_tables
import results_page

#: A number with a unit of speed or memory, or with decimals.
MEASURED = re.compile(
    r"\d[\d.,]* ?(ms|us|µs|ns|s|seconds?|minutes|[KMGT]i?B|G?FLOPs?|x|times|%/s|fps|per second)\b"
    r"|\d\.\d"
)
#: Constants of the method and sizes that look like measurements: reviewed by hand.
CONSTANTS = ("Above 1x", "10 MB of floats")


def row(side, median, *, date="2026-01-02", peer="eager", **more):
    return {
        "date": date,
        "side": side,
        "unit": "ms",
        "median": str(median),
        "peer": peer,
        "ratio_to_peer": "0.5",
        "processor": "x",
        "cores": "2",
        "torch": "2",
        "commit": "c" * 40,
    } | more


def with_rows(monkeypatch, **rows):
    monkeypatch.setattr(results_page, "read", lambda name: rows[name])


def data_row(side, median, *, line="squash coco640 float32", **more):
    return row(side, median, peer="fiber", line=line, material="512 pictures", **more)


def test_a_page_without_its_blocks_is_refused():
    with pytest.raises(ValueError, match="has the blocks"):
        results_page.fill("")
    with pytest.raises(ValueError, match="has the blocks"):
        results_page.fill("<!-- rows: unknown -->\n<!-- end -->")


def test_the_page_is_what_its_rows_give():
    page = results_page.PAGE.read_text(encoding="utf-8")
    assert page == results_page.fill(page), "run python benches/results_page.py"


def test_measured_values_are_in_blocks_only():
    prose = results_page.MARKED.sub("", results_page.PAGE.read_text(encoding="utf-8"))
    for constant in CONSTANTS:
        assert constant in prose
        prose = prose.replace(constant, "")
    assert [found[0] for found in MEASURED.finditer(prose)] == []


@pytest.mark.parametrize("text", ["1.5", "takes 3 ms", "40 MB", "2x faster", "12 seconds"])
def test_measured_values_are_recognised(text):
    assert MEASURED.search(text)


def test_the_last_rows_of_the_last_day_count():
    rows = [row("a", 1, date="2026-01-01"), row("old", 1, date="2026-01-01")]
    rows += [row("a", 2), row("b", 3), row("a", 4)]
    found = page_tables.newest(rows)
    assert {side: each["median"] for side, each in found.items()} == {"a": "4", "b": "3"}


@pytest.mark.parametrize(
    ("name", "ratio", "judged"),
    [
        ("detector_backbone", "0.7", "1.5x **missed**, gate 1.3x met"),
        ("detector", "0.9", "1.4x **missed**, gate 1.14x **missed**"),
        ("detector_memory", "0.6", "1.67x met"),
        ("detector_short", "0.1", ""),
    ],
)
def test_a_ratio_is_held_against_its_target_and_its_gate(name, ratio, judged):
    assert page_tables.judged(name, {"side": "fiber", "ratio_to_peer": ratio}) == judged


@pytest.mark.parametrize(("median", "met"), [("0.15", "met"), ("0.151", "**missed**")])
def test_a_time_is_held_against_its_target(median, met):
    found = page_tables.judged("rand_augment", row("fiber", median))
    assert found == f"0.15 ms {met}"


def test_a_task_is_learned_only_above_everything_that_misses_an_input(monkeypatch):
    def rows(inputs, values):
        known = {"data": "scenes", "task": "nlvr2", "metric": "accuracy", "split": "val"}
        return [{**known, "inputs": inputs, "value": str(value)} for value in values]

    seen = rows("both", [0.7, 0.8]) + rows("text", [0.5]) + rows("picture", [0.71])
    with_rows(monkeypatch, finetune=seen)
    assert "| - | - | 0.500 | 0.710 | 0.750 (0.700 to 0.800) | **no** |" in results_page.finetuned()
    with_rows(monkeypatch, finetune=seen[:-1])
    assert "| 0.500 | - | 0.750 (0.700 to 0.800) | yes |" in results_page.finetuned()


def test_the_small_meter_is_learned_only_far_above_blind_runs(monkeypatch):
    def rows(inputs, *values):
        machine = {"processor": "P", "cores": "2", "torch": "2", "commit": "0123456789abcdef"}
        return [{"inputs": inputs, **machine, "vqa/accuracy/val": str(value)} for value in values]

    blind = rows("counted", 0.3) + rows("text", 0.3, 0.31, 0.32)
    with_rows(monkeypatch, small_meter=blind + rows("both", 0.5, 0.51, 0.52))
    assert "| 0.300 | 0.310 (0.300 to 0.320) | 0.510 (0.500 to 0.520) | yes |" in (
        results_page.small_meter()
    )
    # Two standard deviations are not enough.
    with_rows(monkeypatch, small_meter=blind + rows("both", 0.33, 0.34, 0.35))
    assert "| **no** |" in results_page.small_meter()


def test_the_fastest_loader_is_first_and_ratios_are_to_fiber(monkeypatch):
    name = "squash coco640 float32"
    chosen = [each for each in results_page.workloads.WORKLOADS if each.name == name]
    monkeypatch.setattr(results_page.workloads, "WORKLOADS", chosen)
    fifths = {"p20": "1", "p80": "2"}
    rows = [data_row("published", 9.0, **fifths), data_row("fiber", 1.5, **fifths)]
    with_rows(monkeypatch, data=rows)
    text = results_page.data_cpu()
    assert text.index("| fiber | 1.5 |") < text.index("| published | 9.0 (6.00x) |")
    assert "Measured on x, 2 cores, torch 2 (cccccccccccc)." in text


def gated(monkeypatch, line, medians):
    gates = [
        gate
        for gate in results_page.workloads.GATES
        if f"{gate.kind} {gate.corpus} {gate.output}" == line and set(gate.rivals) <= set(medians)
    ]
    monkeypatch.setattr(results_page.workloads, "GATES", gates)
    lines = [each for each in results_page.workloads.WORKLOADS if each.name == line]
    monkeypatch.setattr(results_page.workloads, "WORKLOADS", lines)
    with_rows(monkeypatch, data=[data_row(*item, line=line) for item in medians.items()])
    return results_page.data_gates()


def test_gates_and_targets_of_the_data_path(monkeypatch):
    line = "squash coco640 float32"
    text = gated(monkeypatch, line, {"published": 9.0, "fiber": 1.5})
    assert f"| {line} | 6.00x: gate 5 met, target 8 **missed** |" in text


def test_a_missed_gate_says_so(monkeypatch):
    text = gated(monkeypatch, "squash coco640 float32", {"published": 4.0, "fiber": 1.0})
    assert "4.00x: gate 5 **missed**, target 8 **missed**" in text


def test_the_fastest_rival_counts(monkeypatch):
    medians = {"torchvision-threads": 3.0, "torchvision-jemalloc": 2.6, "fiber": 2.0}
    text = gated(monkeypatch, "squash coco640 uint8", medians)
    assert "1.30x: gate 1.3 met, target 2 **missed**" in text


def kernel_rows(medians):
    """Rows by (operation, pass): milliseconds of the three sides."""
    return [
        row(f"{side}, {operation}, {what}, 384, batch 1, stage 3", value)
        for (operation, what), values in medians.items()
        for side, value in zip(("fiber", "eager", "sdpa"), values, strict=True)
    ]


def test_means_of_the_kernels_and_their_gates(monkeypatch):
    medians = {("windows", "forward"): (2, 4, 3), ("image to text", "forward"): (2, 2, 2)}
    with_rows(monkeypatch, kernels=kernel_rows(medians))
    text = results_page.attention()
    assert "| all, vs eager | forward | 1.41x | 1.3x met |" in text
    assert "| windows, vs sdpa | forward | 1.50x | 1.0x met |" in text
    assert "| image to text, vs sdpa | forward | 1.00x | 1.3x **missed** |" in text
    assert "Missed by: none. Smallest ratio: 1.00x." in text
    assert "| windows | stage 3 | 2 (2.00x, 1.50x) |" in results_page.attention_calls()


def test_slow_calls_are_named_unless_they_are_short(monkeypatch):
    medians = {("windows", "forward"): (2, 1.5, 3), ("text to image", "forward"): (0.4, 0.2, 0.2)}
    with_rows(monkeypatch, kernels=kernel_rows(medians))
    text = results_page.attention()
    assert "for the 1 calls" in text
    assert "Missed by: windows, forward, 384, batch 1, stage 3 (0.75x)." in text
