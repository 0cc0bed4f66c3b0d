"""FLOPs of METER at the published size, counted on the meta device, meet their gates."""

import sys
from pathlib import Path

import pytest
import torch

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    for name in ("meter_cost", "rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import meter_cost

    monkeypatch.setattr(meter_cost, "refuse_debug_build", lambda: None)
    return meter_cost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published", "gate"),
    [("pretraining", 221.2, 1.45), ("retrieval_pair", 186.2, 2.9), ("vqa", 456.5, 1.07)],
)
def test_gates(bench, name, published, gate):
    config = bench.meter_config(bench.WORKS[name])
    peer = bench.forward_gflops(bench.PEER, name, config)
    # The peer computes what the published code does: as many FLOPs, to the digits known.
    assert peer == pytest.approx(published, abs=0.06)
    ours = bench.forward_gflops(bench.OURS, name, config)
    assert ours <= published / gate
    assert (bench.WORKS[name].published_gflops, bench.WORKS[name].gate) == (published, gate)
    # Padding costs the peer as much as words; fiber's batches have none.
    tokens = {"tokens": bench.SHORT_TEXT}
    assert bench.forward_gflops(bench.PEER, name, config, **tokens) == peer
    assert bench.forward_gflops(bench.OURS, name, config, **tokens) < ours


@pytest.mark.slow
def test_a_step_of_retrieval_is_counted_with_all_its_passes(bench):
    name, config = "retrieval_step", bench.meter_config(bench.WORKS["retrieval_step"])
    pair = bench.forward_gflops(bench.PEER, "retrieval_pair", config)
    step = bench.forward_gflops(bench.PEER, name, config)
    # 16 texts and a pair for ITM.
    assert step == pytest.approx((1 + bench.FALSE_TEXTS + 1) * pair, rel=1e-5)
    assert step == pytest.approx(bench.WORKS[name].published_gflops, rel=1e-3)
    assert bench.forward_gflops(bench.OURS, name, config) < step / 2.4


@pytest.mark.slow
def test_meta_counts_are_those_of_a_real_run(bench):
    """What the meta device counts is what the losses compute on numbers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name, work in bench.WORKS.items():
        config = bench.meter_config(work, micro=True)
        drawn = bench.draw_batch(config, 2, 20).trimmed()
        model = bench.MeterImageText(config).train()
        with torch.no_grad():
            is_pair = name == "retrieval_pair"
            score = bench.prepare_pair(model, drawn) if is_pair else None
            # Fused attention on a CPU is not counted by every version of torch.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                if score is not None:
                    assert score().shape == (2,)
                else:
                    losses = list(bench.our_losses(model, name, drawn))
                    assert sum(losses).isfinite()
        counted = bench.forward_gflops(bench.OURS, name, config, tokens=20)
        assert counted == pytest.approx(counter.get_total_flops() / 2 / 1e9), name


@pytest.mark.slow
def test_rows_are_printed_and_a_missed_gate_is_named(bench, monkeypatch, tmp_path, capsys):
    work = bench.WORKS["retrieval_pair"]._replace(image_size=32)
    monkeypatch.setitem(bench.WORKS, "retrieval_pair", work._replace(gate=1.5))
    arguments = ["bench", "--work", "retrieval_pair", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert bench.main() == 0
    assert "fiber, retrieval pair at 384, texts of 20 tokens" in capsys.readouterr().out
    assert (tmp_path / "meter_flops.csv").exists()
    monkeypatch.setitem(bench.WORKS, "retrieval_pair", work._replace(gate=1000.0))
    assert bench.main() == 1
    assert "retrieval pair at 384: expected 1000.0x, got" in capsys.readouterr().err


def test_trimming_drops_padding_only(bench):
    config = bench.meter_config(bench.WORKS["pretraining"], micro=True)
    drawn = bench.draw_batch(config, 3, 20)
    assert drawn.pairs.ids.shape == (3, 50)
    pairs = drawn.trimmed().pairs
    assert pairs.ids.shape == pairs.mlm_labels.shape == (3, 20)
    assert pairs.false_ids.shape == (3, bench.FALSE_TEXTS, 20)
    assert pairs.text_mask.all() and pairs.false_mask.all()
    assert (pairs.mlm_labels != -100).sum(1).tolist() == [bench.PICKED] * 3
