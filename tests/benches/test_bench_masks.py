"""The bench of masks runs, compares before it reports, and keeps no row of small maps."""

import dataclasses
import sys

import pytest


@pytest.fixture
def run(bench, monkeypatch):
    monkeypatch.setattr(bench, "refuse_debug_build", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", "--micro", "--rounds", "2", *arguments])
        bench.main()

    return run


def test_it_runs_after_both_sides_agree(run, tmp_path, capsys):
    run("--results", str(tmp_path))
    assert "all 80 masks equal those of Pillow and NumPy" in capsys.readouterr().out
    rows = (tmp_path / "masks.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["side", "fiber", "Pillow and NumPy"]


def test_masks_that_differ_are_not_reported(bench, run, monkeypatch, tmp_path):
    peer = bench.by_pillow

    def mirrored(id_map, sampled, side):
        return peer(id_map, dataclasses.replace(sampled, flip=not sampled.flip), side)

    monkeypatch.setattr(bench, "by_pillow", mirrored)
    with pytest.raises(SystemExit, match="masks of map 0 differ"):
        run("--results", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_small_maps_need_a_directory_of_their_own(run, capsys):
    with pytest.raises(SystemExit):
        run()
    assert "expected --results" in capsys.readouterr().err
