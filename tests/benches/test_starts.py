"""Every arm of the bench of initializations trains and is measured, in a few steps."""

import pytest

from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def starts(bench):
    return bench


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("starts") / "scenes", train=80, val=12, novel=12)


@pytest.mark.parametrize(
    ("name", "arm"),
    [("embeddings", "on"), ("answers", "off"), ("pyramid", "on"), ("token logits", "off")],
)
def test_an_arm_runs_with_or_without_its_method(starts, scenes, monkeypatch, name, arm):
    chosen = starts.STARTS[name]
    owner, method = chosen.method
    calls = []
    real = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *arguments: calls.append(real(*arguments)))
    row = short_run(starts, scenes, monkeypatch, name, arm)
    # A model is built twice: to train it, and to load it.
    assert bool(calls) == (arm == "on")
    assert (row["start"], row["arm"], row["seed"], row["steps"]) == (name, arm, 0, 2)
    assert 0 <= float(row["val"]) <= 1


def short_run(starts, scenes, monkeypatch, name, arm):
    chosen = starts.STARTS[name]
    changes = {**chosen.changes, "data.batch_size": 4}
    short = chosen._replace(steps=2, changes=changes, records=6)
    monkeypatch.setitem(starts.STARTS, name, short)
    [row] = starts.run(scenes, name, arm, 0)
    return row


@pytest.mark.parametrize("arm", ["on", "off"])
def test_an_arm_runs_with_or_without_muon_and_an_initial_model(starts, scenes, monkeypatch, arm):
    real, seen = starts.train, []

    def recorded(config, **options):
        seen.append((config.optim.muon_lr_multiplier, options["init"]))
        return real(config, **options)

    monkeypatch.setattr(starts, "train", recorded)
    for name in ("muon", "boxes first"):
        short_run(starts, scenes, monkeypatch, name, arm)
    on = [(2.0, None), (2.0, "scenes/fine")]
    assert seen == (on if arm == "on" else [(0.0, None), (2.0, None)])
