"""The bench of fusion trains every arm from the same encoders and counts its operations."""

import pytest
import torch

from fiber.checkpoints.model_dir import load_model
from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("fusion") / "scenes", train=80, val=40, novel=40)


@pytest.fixture(scope="module")
def starts(bench, scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "START_STEPS", 2)
        bench.train_start(scenes, folder / "1", 1)
    return folder


@pytest.mark.slow
def test_rows_of_all_arms_have_every_metric(bench, scenes, starts, monkeypatch):
    monkeypatch.setattr(bench, "RECORDS", dict.fromkeys(bench.RECORDS, 40))
    rows = [bench.run(scenes, starts, arm, 1, 3)[0] for arm in bench.ARMS]
    for row in rows:
        assert list(row) == list(rows[0])
        for task, metric in bench.METRICS:
            for split in ("val", "novel"):
                assert 0 <= float(row[f"{task}/{metric}/{split}"]) <= 1
    costs = {row["arm"]: float(row["gflop_per_step"]) for row in rows}
    # Without fusion there is the least to compute; two stacks cost more than one.
    assert min(costs, key=costs.get) == bench.NONE
    assert costs[bench.CO_ATTENTION] > costs[bench.NONE] > 1


@pytest.mark.slow
def test_arms_start_from_the_same_encoders(bench, scenes, starts, tmp_path):
    start = load_model(starts / "1")
    assert start.config.channel_order == "rgb"
    given = start.network.state_dict()
    for number, arm in enumerate(bench.ARMS):
        encoders, output = tmp_path / f"encoders{number}", tmp_path / f"run{number}"
        bench.write_encoders(starts / "1", encoders, bench.model_of(arm))
        config = bench.replace_fields(bench.run_config(arm, 1, 1), {"optim.lr": 0.0})
        bench.train(config, data=scenes, tokenizer=scenes, init=encoders, output=output, quiet=True)
        own = load_model(output).network.state_dict()
        shared = [
            name
            for name in own
            if name in given and name.startswith(("backbone.image.", "backbone.text."))
        ]
        assert len(shared) > 100
        assert all(torch.equal(own[name], given[name]) for name in shared), arm


def test_steps_of_equal_operations(bench):
    rows = [
        {"arm": arm, "gflop_per_step": cost}
        for arm, cost in zip(bench.ARMS, ("6.0", "3.0", "2.0", "1.0"), strict=True)
    ]
    assert bench.equal_flops_steps(bench.CO_ATTENTION, rows) == 2 * bench.STEPS
    assert bench.equal_flops_steps(bench.NONE, rows) == 6 * bench.STEPS
