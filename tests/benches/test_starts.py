"""Every arm of the bench of initializations trains and is measured, in a few steps."""

import sys
from pathlib import Path

import pytest

from fiber.synthetic.scenes import generate

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture(scope="module")
def starts():
    sys.path.insert(0, str(BENCHES))
    try:
        import starts
    finally:
        sys.path.remove(str(BENCHES))
    return starts


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("starts") / "scenes", train=80, val=12, novel=12)


@pytest.mark.parametrize(
    ("name", "arm"),
    [("embeddings", "on"), ("answers", "off"), ("pyramid", "on"), ("token logits", "off")],
)
def test_an_arm_runs_with_or_without_its_method(starts, scenes, monkeypatch, name, arm):
    chosen = starts.STARTS[name]
    calls = []
    real = getattr(chosen.owner, chosen.method)
    monkeypatch.setattr(
        chosen.owner, chosen.method, lambda *arguments: calls.append(real(*arguments))
    )
    changes = {**chosen.changes, "train.steps": 2, "data.batch_size": 4}
    monkeypatch.setitem(starts.STARTS, name, chosen._replace(changes=changes, records=6))
    [row] = starts.run(scenes, name, arm, 0)
    # A model is built twice: to train it, and to load it.
    assert bool(calls) == (arm == "on")
    assert (row["start"], row["arm"], row["seed"], row["steps"]) == (name, arm, 0, 2)
    assert 0 <= float(row["val"]) <= 1
