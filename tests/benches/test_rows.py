import csv
import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benches" / "rows.py"


@pytest.fixture
def rows(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("rows", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_sides_take_turns_and_the_first_round_does_not_count(rows):
    order = []

    def side(name):
        def measure():
            order.append(name)
            return float(len(order))

        return measure

    values = rows.interleave({"a": side("a"), "b": side("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert values == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_rows_hold_median_ratio_and_machine(rows, tmp_path, capsys):
    values = {"ours": [1.0, 2.0, 9.0], "theirs": [4.0, 4.0, 5.0]}
    rows.report("thing", "ms", values, peer="theirs")
    rows.report("thing", "ms", values, peer="theirs")
    with (tmp_path / "thing.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["side"] for row in found] == ["ours", "theirs"] * 2
    assert (found[0]["median"], found[0]["ratio_to_peer"], found[0]["peer"]) == (
        "2",
        "0.5",
        "theirs",
    )
    assert found[0]["commit"] and found[0]["processor"] and found[0]["rounds"] == "3"
    assert "0.500 of theirs" in capsys.readouterr().out
    rows.report("thing", "ms", values, "theirs", tmp_path / "new" / "folder")
    assert len((tmp_path / "new" / "folder" / "thing.csv").read_text().splitlines()) == 3


def test_debug_build_is_refused(rows, monkeypatch):
    monkeypatch.setattr(rows._core, "build_profile", "release")
    rows.refuse_debug_build()
    monkeypatch.setattr(rows._core, "build_profile", "debug")
    with pytest.raises(SystemExit, match="debug build"):
        rows.refuse_debug_build()
