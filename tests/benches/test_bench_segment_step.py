"""The bench of a step on masks compares before it reports, and keeps no row of a small batch."""

import csv

import pytest
import torch


@pytest.fixture(scope="module")
def case(bench):
    return bench.draw_case(bench.scenes_pixel(), batch_size=2)


@pytest.fixture
def run(bench, case, monkeypatch):
    monkeypatch.setattr(bench, "refuse_debug_build", lambda: None)
    # The bench times one thread; other tests keep theirs.
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(bench, "draw_case", lambda config, batch_size: case)
    return bench.main


def test_a_step_is_timed_after_both_sides_agree(bench, run, tmp_path, capsys):
    run(["--micro", "--rounds", "2", "--results", str(tmp_path)])
    assert "differ from the peer's by" in capsys.readouterr().out
    with (tmp_path / "segment_step.csv").open(newline="") as file:
        assert [row["side"] for row in csv.DictReader(file)] == [bench.PEER, bench.OURS]


@pytest.mark.parametrize("part", ["backbone.text.blocks.1.mlp.2", "decoder.layers.0.mlp.2"])
def test_models_that_differ_are_not_reported(bench, case, part):
    models, seeded = bench.draw_models(case), bench.train.seeded_points
    with torch.no_grad():
        models[bench.OURS].get_parameter(f"{part}.weight").mul_(1.01)
    with pytest.raises(SystemExit, match="expected less than 1e-06"):
        bench.check_agreement(models, case)
    assert bench.train.seeded_points is seeded


def test_rows_of_a_small_batch_need_a_directory_of_their_own(run, capsys):
    with pytest.raises(SystemExit):
        run(["--micro"])
    assert "expected --results" in capsys.readouterr().err
