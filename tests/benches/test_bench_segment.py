"""The bench of X-Decoder runs, compares before it reports, and keeps no row of a tiny model."""

import sys

import pytest
import torch


@pytest.fixture
def quiet(bench, monkeypatch):
    monkeypatch.setattr(bench, "refuse_debug_build", lambda: None)
    # The bench has threads of its own; other tests keep theirs.
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda count: None)


@pytest.fixture(scope="module")
def case(bench):
    return bench.draw_case(bench.size_of(micro=True))


def test_every_work_is_timed_after_both_sides_agree(
    bench, quiet, case, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bench, "draw_case", lambda size: case)
    arguments = ["--micro", "--part", "time", "--rounds", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    assert capsys.readouterr().out.count("differs from the peer by") == len(bench.WORKS)
    rows = (tmp_path / "segment.csv").read_text()
    for title in ("panoptic, 64 x 96", "class vectors, 4 names by 81", "caption, 64", "3 phrases"):
        assert f"fiber, {title}" in rows


@pytest.mark.parametrize(
    ("work", "parameter"),
    [
        ("panoptic", "decoder.layers.1.mlp.2.weight"),
        ("phrases", "decoder.mask_mlp.4.weight"),
        ("classes", "backbone.text.blocks.1.qkv.weight"),
        ("caption", "decoder.caption_projection"),
    ],
)
def test_models_that_differ_are_not_reported(bench, case, tmp_path, work, parameter):
    # The sides share their weights.
    own = case.network.get_parameter(parameter)
    kept = own.data
    own.data = 1.5 * kept.roll(1, 0)
    try:
        with pytest.raises(SystemExit, match="expected at most 1e-03"), torch.no_grad():
            bench.time_work(bench.WORKS[work](case), 1, tmp_path)
    finally:
        own.data = kept
    assert list(tmp_path.iterdir()) == []


def test_some_masks_pass_and_are_of_things_and_stuff(bench, case):
    with torch.no_grad():
        found = case.model.segment(
            case.image,
            case.vectors,
            stuff=case.stuff,
            score_threshold=case.score_threshold,
            overlap_threshold=0.0,
        )
    assert {each.is_thing for each in found.segments} == {True, False}


def test_the_threshold_is_where_scores_are_farthest_apart(bench):
    # The gaps after 2 and 30 masks are wider, but these are too few and too many.
    steps = [(2, 9.0), (18, 5.0), (10, 4.0), (10, 1.0)]
    logits = torch.cat([top - torch.arange(count) / 100 for count, top in steps])
    class_logits = torch.stack((logits, torch.zeros(40)), 1)
    kept = class_logits.softmax(-1)[:, 0] > bench.score_threshold(class_logits)
    assert kept.tolist() == [True] * 20 + [False] * 20


@pytest.mark.slow
def test_a_peak_is_measured_in_a_new_process(bench, case, tmp_path):
    with torch.no_grad():
        bench.compare_memory(case, tmp_path)
    lines = (tmp_path / "segment_memory.csv").read_text().splitlines()
    assert len(lines) == 3 and all("output of 160 x 240" in line for line in lines[1:])


def test_rows_of_a_tiny_model_need_a_directory_of_their_own(bench, quiet, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--micro"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "expected --results" in capsys.readouterr().err
