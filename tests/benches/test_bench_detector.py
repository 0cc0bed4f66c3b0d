"""The bench of the detector runs, compares before it times, and keeps no row of a tiny model."""

import sys
from pathlib import Path

import pytest
import torch

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    names = ("bench_detector", "bench_model", "eager_detector", "eager_detections", "rows")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import bench_detector

    monkeypatch.setattr(bench_detector, "refuse_debug_build", lambda: None)
    return bench_detector


def test_the_prompt_has_as_many_tokens_as_cocos_classes(bench):
    config = bench.preset("base", stage="fine")
    case = bench.draw_case(config, (32, 32), bench.COCO_TOKENS)
    assert len(case.token_map) == 80
    # Recorded with RoBERTa's vocabulary: golden/fine, spec section 5.1.
    assert case.ids.shape == (1, 194)


def test_every_part_but_compiling_runs(bench, monkeypatch, capsys):
    before = sorted(bench.RESULTS.iterdir())
    parts = [part for part in bench.PARTS if part not in ("compiled", "memory")]
    arguments = [word for part in parts for word in ("--part", part)]
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--rounds", "2", *arguments])
    bench.main()
    printed = capsys.readouterr().out
    assert "largest difference of logits and deltas" in printed
    for name in ("detector_backbone", "detector", "detector_short", "detector_options"):
        assert f"{name}.csv" in printed
    assert sorted(bench.RESULTS.iterdir()) == before


@pytest.mark.slow
def test_a_peak_is_measured_in_a_new_process(bench, tmp_path):
    config = bench.preset("micro").fine(max_tokens=32)
    for number, model in enumerate(bench.draw_models(config)):
        path = tmp_path / f"{number}.pt"
        torch.save(model, path)
        assert bench.peak_mebibytes(path, quick=True) > 1


def test_models_that_differ_are_not_timed(bench):
    config = bench.preset("micro").fine(max_tokens=32)
    case = bench.draw_case(config, (96, 160), bench.SHORT_TOKENS)
    eager, ours = bench.draw_models(config)
    with torch.no_grad():
        bench.check_alike(eager, ours, case)
        ours.head.bias += 0.01
        with pytest.raises(SystemExit, match="the models differ by"):
            bench.check_alike(eager, ours, case)
