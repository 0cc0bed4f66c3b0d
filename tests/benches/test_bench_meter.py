"""The bench of METER runs, compares before it reports, and keeps no row of a tiny model."""

import sys
from pathlib import Path

import pytest
import torch

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("bench_meter", "bench_model", "meter_cost", "rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import bench_meter

    monkeypatch.setattr(bench_meter, "refuse_debug_build", lambda: None)
    # The bench times one thread; other tests keep theirs.
    monkeypatch.setattr(bench_meter.torch, "set_num_threads", lambda count: None)
    return bench_meter


def test_every_work_is_timed_after_both_sides_agree(bench, monkeypatch, tmp_path, capsys):
    before = sorted(bench.RESULTS.iterdir())
    arguments = ["--micro", "--part", "time", "--rounds", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    printed = capsys.readouterr().out
    # The sides of each work, and one of the pairs' with reused encodings.
    assert printed.count("differs from the peer by") == len(bench.MEASURED) + 1
    rows = (tmp_path / "meter.csv").read_text()
    for measured in bench.MEASURED.values():
        assert f"fiber, {measured.title}" in rows
    assert sorted(bench.RESULTS.iterdir()) == before


def test_models_that_differ_are_not_reported(bench, monkeypatch, tmp_path):
    drawn = bench.draw_models

    def changed(config):
        models = drawn(config)
        with torch.no_grad():
            models[bench.OURS].backbone.text_layers[0].feed_forward.mlp[0].weight.mul_(1.1)
        return models

    monkeypatch.setattr(bench, "draw_models", changed)
    for measured in bench.MEASURED.values():
        with pytest.raises(SystemExit, match="expected less than 1e-06"):
            bench.time_work(measured, 1, tmp_path, micro=True)
    assert list(tmp_path.iterdir()) == []


def test_trimmed_texts_give_the_gradients_of_padded_ones(bench):
    # In float64: the gradients of a tiny model are small beside the errors of float32.
    for name in ("pretraining", "retrieval_step", "vqa"):
        config = bench.meter_config(bench.WORKS[name], micro=True)
        models, drawn = bench.draw_models(config), bench.draw_batch(config, 2, 20).double()
        peer = bench.run_step(models[bench.PEER].double(), name, drawn)
        ours = bench.run_step(models[bench.OURS].double(), name, drawn.trimmed())
        assert (peer - ours).norm() < 1e-10 * peer.norm(), name


@pytest.mark.slow
def test_a_peak_is_measured_in_a_new_process(bench):
    for side in (bench.PEER, bench.OURS):
        above, whole = bench.peak_mebibytes(side, "pretraining", micro=True)
        assert 1 < above < whole


def test_rows_of_a_tiny_model_need_a_directory_of_their_own(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--micro"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "expected --results" in capsys.readouterr().err
