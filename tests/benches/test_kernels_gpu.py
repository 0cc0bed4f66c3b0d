"""The GPU bench of the kernels as far as a machine without a GPU runs it: it is not broken."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fiber.config import FiberConfig, FusionConfig, RobertaConfig, SwinConfig

BENCHES = Path(__file__).parents[2] / "benches"
#: What table 1.3 of the kernels' facts says of an H100: bytes, products and exponentials a second.
H100 = (3.0e12, 800e12, 16 * 132 * 1.755e9)


@pytest.fixture(autouse=True)
def benches(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))


@pytest.fixture
def bench():
    return importlib.import_module("kernels_gpu")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "kernels_gpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_dry_run_verifies_and_writes_a_row_for_every_side(bench, tmp_path, capsys):
    assert bench.main(["--dry", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ok: windows of 4, own maps, torch.float32" in printed
    assert "3 backward passes of every call: the same bits" in printed
    rows = rows_of(tmp_path)
    sides = {(row["operation"], row["pass"], row["side"]) for row in rows}
    for operation in ("windows", "image to text", "text to image", "text"):
        for what in bench.PASSES:
            assert {side for o, w, side in sides if (o, w) == (operation, what)} == set(bench.SIDES)
    for row in rows:
        assert bool(row["median_ms"]) != row["note"].startswith("refused: "), row
        assert row["card"] == "none (dry run)"
    measured = {row["side"] for row in rows if row["median_ms"]}
    assert {"fiber", "eager", "sdpa math", "flex attention"} <= measured
    kept = [row for row in rows if row["side"] == "fiber" and row["pass"] == "backward"]
    assert all(float(row["saved_mib"]) > 0 for row in kept)


@pytest.mark.slow
def test_the_kernels_themselves_are_verified_in_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    script = (
        "import torch; from fiber import kernels; kernels.use_backend('triton');"
        "from gpu_verify import verify;"
        "print(verify(torch.device('cpu'), [torch.float32], micro=True, times=1))"
    )
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(BENCHES), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.slow),
        pytest.param(torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_checks_of_a_gpu_hold_for_plain_pytorch(dtype):
    verify = importlib.import_module("gpu_verify")
    every = list(verify.checks(dtype, micro=False))
    assert len(every) >= 7
    cpu = torch.device("cpu")
    assert [told for check in every for told in verify.failures(check, cpu, dtype)] == []


def test_a_wrong_gradient_stops_before_anything_is_timed(bench, tmp_path, monkeypatch, capsys):
    verify = importlib.import_module("gpu_verify")
    true = verify.kernels.window_attention

    def bias_gradient_halved(qkv, table, bias, **keywords):
        return true(qkv, 0.5 * table + 0.5 * table.detach(), bias, **keywords)

    monkeypatch.setattr(verify.kernels, "window_attention", bias_gradient_halved)
    assert bench.main(["--dry", "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "gradient of input 2: off by 0.5" in printed
    assert "nothing is timed" in printed
    assert not list(tmp_path.iterdir())


def test_a_backward_pass_that_changes_is_told():
    verify = importlib.import_module("gpu_verify")
    calls = iter(range(1000))

    def drifting(x, y, weight, bias, gate):
        return x + y[..., :1] * next(calls)

    check = dataclasses.replace(verify.gate_check(), name="drifting", ours=drifting)
    check = dataclasses.replace(check, ours=lambda *t: drifting(*t) + 0 * sum(e.sum() for e in t))
    told = verify.changing(check, torch.device("cpu"), torch.float32, 3)
    assert told == ["drifting, torch.float32: run 2 gives another output"]


def test_a_peer_that_gives_other_numbers_is_refused(bench):
    peers = importlib.import_module("gpu_peers")
    shapes = importlib.import_module("gpu_shapes")
    shape = next(iter(shapes.micro_shapes()))
    sides = peers.sides(shape, torch.device("cpu"), torch.float32)
    ours = peers.comparable(shape, "fiber", sides["fiber"]().outputs[0])
    assert callable(bench.prepare(shape, "eager", sides["eager"], ours, "backward"))
    said = bench.prepare(shape, "eager", sides["eager"], ours + 1, "forward")
    assert said.startswith("refused: its numbers differ from ours by 1")


def test_what_does_not_fit_into_the_minutes_is_a_row(bench, tmp_path):
    assert bench.main(["--dry", "--output", str(tmp_path), "--minutes", "0"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 8
    assert {row["note"] for row in rows} == {"left out: the minutes are over"}


@pytest.mark.parametrize(
    ("operation", "name", "batch", "forward", "backward"),
    # Microseconds from the table; its backward passes of windows count 8 passes, ours 7.
    [
        ("windows", "384, stage 1", 64, 201, 409 * 7 / 8),
        ("windows", "384, stage 4", 8, 3.2, 6.4 * 7 / 8),
        ("windows", "576, stage 1", 1, 7.25, None),
        ("windows", "800x1344, stage 1", 1, 22.9, None),
        ("image to text", "384, stage 3, 40 of 40 tokens", 64, 27, 55),
        ("image to text", "800x1344, stage 3, 256 of 256 tokens", 1, 4.6, None),
        ("text to image", "384, stage 3, 40 of 40 tokens", 64, 40, 81),
        ("text", "40 tokens", 64, 5.2, 11),
    ],
)
def test_floors_are_those_of_the_table(operation, name, batch, forward, backward):
    shapes = importlib.import_module("gpu_shapes")
    (shape,) = (
        each
        for each in shapes.shapes(quick=False)
        if (each.operation, each.name, each.batch) == (operation, name, batch)
    )
    card = shapes.Card("H100", "", *H100)
    for expected, is_backward in ((forward, False), (backward, True)):
        if expected is not None:
            got = 1000 * card.floor_milliseconds(shapes.work(shape, 2, backward=is_backward))
            assert got == pytest.approx(expected, rel=0.05)


def test_every_call_of_the_table_is_there():
    shapes = importlib.import_module("gpu_shapes")
    every = list(shapes.shapes(quick=False))
    for batch in (1, 8, 64):
        calls = [each for each in every if each.batch == batch and "384" in each.name]
        assert len(calls) == 8
    assert len({(each.operation, each.name, each.batch) for each in every}) == len(every)


def test_the_model_parts_run_on_a_cpu():
    model = importlib.import_module("gpu_model")
    config = FiberConfig(
        image_size=64,
        max_tokens=16,
        swin=SwinConfig(
            embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=2, drop_path=0.0
        ),
        roberta=RobertaConfig(
            vocab_size=60,
            width=12,
            num_layers=3,
            num_heads=2,
            ffn_width=24,
            max_positions=20,
            dropout=0.0,
        ),
        fusion=FusionConfig(num_fused_layers=2),
    )
    found = model.training_step(torch.device("cpu"), config, 2, 1)
    assert set(found) == set(model.STEP_SIDES)
    assert all(len(passes.milliseconds) == 1 for passes in found.values())
    forward = model.PairForward(torch.device("cpu"), config, torch.float32)
    assert torch.isfinite(forward()).all()


def test_without_a_gpu_it_says_what_it_needs(bench, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench.main([])
    assert ended.value.code == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err
