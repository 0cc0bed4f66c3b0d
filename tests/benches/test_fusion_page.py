"""Table and chart of the forms of fusion have the arms that are complete."""

import pytest


@pytest.fixture
def rows(bench):
    arms = [*bench.ARMS, *(f"{arm}{bench.EQUAL_FLOPS}" for arm in bench.ARMS[1:])]
    machine = {"processor": "P", "cores": "2", "torch": "2", "commit": "0123456789abcdef"}
    return [
        {
            "arm": arm,
            "steps": "6",
            "parameters": "10",
            "gflop_per_step": "1.5",
            "train_cpu_seconds": "7",
            **machine,
            **{
                f"{metric}/{split}": str(0.1 + 0.1 * number + 0.001 * seed)
                for metric in bench.METRICS
                for split in ("val", "novel")
            },
        }
        for number, arm in enumerate(arms)
        for seed in range(3)
    ]


def test_every_arm_is_compared_with_the_first(bench, rows, monkeypatch):
    monkeypatch.setattr(bench, "read", lambda name: rows)
    page = bench.forms()
    [line] = [line for line in page.splitlines() if line.startswith("| VQA: all questions | val |")]
    # After the guess.
    assert "| 0.101 (0.100 to 0.102) | 0.201 (0.200 to 0.202) \\* |" in line
    assert page.count("against *") == len(bench.ARMS) - 1 + 3
    assert "*in the encoders* against *none*: better on nothing; worse on VQA: all" in page


def test_an_arm_without_all_seeds_is_left_out(bench, rows, monkeypatch):
    monkeypatch.setattr(bench, "read", lambda name: rows[:-1])
    page = bench.forms()
    assert "none, equal FLOPs" not in page
    assert "merged attention, equal FLOPs" in page


def test_table_and_chart_wait_for_all_arms_of_equal_steps(bench, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "read", lambda name: rows[1:])
    monkeypatch.setattr(bench, "CHART", tmp_path / "fusion.svg")
    assert bench.forms() == bench.NOT_MEASURED
    bench.draw(rows[1:])
    assert not bench.CHART.exists()


def test_every_arm_and_seed_has_a_row(bench):
    arms = [*bench.ARMS, *(f"{arm}{bench.EQUAL_FLOPS}" for arm in bench.ARMS[1:])]
    found = sorted((row["arm"], int(row["seed"])) for row in bench.read("fusion"))
    assert found == sorted((arm, seed) for arm in arms for seed in bench.SEEDS)
    assert bench.CHART.exists()


def test_the_chart_names_arms_and_metrics(bench, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CHART", tmp_path / "fusion.svg")
    bench.draw(rows)
    drawn = bench.CHART.read_text()
    assert all(f"<!-- {arm} -->" in drawn for arm in bench.ARMS)
    assert all(f"<!-- {bench.METRICS[metric]} -->" in drawn for metric in bench.DRAWN)
    assert "equal FLOPs" not in drawn
