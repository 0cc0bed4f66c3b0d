"""The bench of fusion trains and measures every arm, and equal time follows from its rows."""

import pytest

from fiber.checkpoints.model_dir import load_model
from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def evidence(bench):
    return bench


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("evidence") / "scenes", train=80, val=40, novel=40)


@pytest.mark.slow
def test_a_run_has_a_row_with_every_metric(evidence, scenes, monkeypatch):
    monkeypatch.setattr(
        evidence, "TASKS", {task: (40, stage) for task, (_, stage) in evidence.TASKS.items()}
    )
    [row] = evidence.run(scenes, "no fusion", 1, {"fine": 2, "coarse": 2})
    assert (row["arm"], row["seed"], row["fine_steps"], row["coarse_steps"]) == (
        "no fusion",
        1,
        2,
        2,
    )
    for task, metric in evidence.METRICS:
        values = [row[f"{task}/{metric}/{split}"] for split in ("val", "novel")]
        assert values[0] != ""
        assert all(0 <= float(value) <= 1 for value in values if value)
    assert float(row["cpu_seconds"]) >= float(row["fine_cpu_seconds"]) > 0


def test_both_stages_have_the_fusion_of_the_arm(evidence, scenes, tmp_path):
    evidence.train_arm(scenes, tmp_path, 1, 0, {"fine": 1, "coarse": 1})
    for stage in ("fine", "coarse"):
        model = load_model(tmp_path / stage)
        assert len(model.network.backbone.fusion) == 1
        assert model.config.stage == stage


def test_steps_of_equal_time(evidence):
    paces = {"fusion in 5 blocks": 300, "no fusion": 200}
    rows = [
        {"arm": arm, "fine_cpu_seconds": str(seconds), "coarse_cpu_seconds": str(seconds)}
        for arm, seconds in paces.items()
    ]
    assert evidence.steps_of("no fusion", rows) == evidence.STEPS
    longer = evidence.steps_of("no fusion, equal time", rows)
    assert longer == {
        stage: round(steps * 1.5 / 20) * 20 for stage, steps in evidence.STEPS.items()
    }
