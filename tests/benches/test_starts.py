"""Every arm of the bench of initializations trains and is measured, in a few steps."""

import csv
from pathlib import Path

import pytest

import fiber
from fiber.config_io import replace_fields
from fiber.demo.plan import find_plan
from fiber.synthetic.scenes import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def starts(bench):
    return bench


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    generate(folder / "data", train=80, val=12, novel=40)
    packaged = Path(fiber.__file__).parent / "packaged" / "scenes"
    (folder / "fine").symlink_to(packaged / "fine", target_is_directory=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("embeddings", "on"),
        ("answers", "off"),
        ("pyramid", "on"),
        ("pyramid", "off"),
        ("weights", "off"),
    ],
)
def test_an_arm_runs_with_or_without_its_method(starts, demo, monkeypatch, name, arm):
    chosen = starts.STARTS[name]
    owner, method = chosen.method
    calls = []
    real = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *a, **b: calls.append(real(*a, **b)))
    row = short_run(starts, demo, monkeypatch, name, arm)
    # A model is built twice: to train it, and to load it.
    assert bool(calls) == (arm == "on")
    assert (row["start"], row["arm"], row["seed"], row["steps"]) == (name, arm, 0, 2)
    assert 0 <= float(row["val"]) <= 1


def short_run(starts, demo, monkeypatch, name, arm, records=6):
    chosen = starts.STARTS[name]
    changes = {**chosen.changes, "data.batch_size": 4}
    short = chosen._replace(steps=2, changes=changes, records=records)
    monkeypatch.setitem(starts.STARTS, name, short)
    [row] = starts.run(demo, name, arm, 0)
    return row


@pytest.fixture
def trained(starts, monkeypatch):
    """Config and initial model of every run."""
    real, seen = starts.train, []

    def recorded(config, **options):
        seen.append((config, options["init"]))
        return real(config, **options)

    monkeypatch.setattr(starts, "train", recorded)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["on", "off"])
def test_an_arm_runs_with_or_without_muon_and_an_initial_model(
    starts, demo, monkeypatch, trained, arm
):
    for name in ("muon", "boxes first"):
        short_run(starts, demo, monkeypatch, name, arm)
    on = [(2.0, None), (2.0, "scenes/fine")]
    found = [(config.optim.muon_lr_multiplier, init) for config, init in trained]
    assert found == (on if arm == "on" else [(0.0, None), (2.0, None)])


@pytest.mark.parametrize("arm", ["on", "off"])
def test_fixed_stages_start_from_the_fine_stage_of_the_demo(
    starts, demo, monkeypatch, trained, arm
):
    short_run(starts, demo, monkeypatch, "fixed stages", arm)
    frozen = find_plan("scenes", "default").runs["coarse"]["optim.frozen"]
    assert frozen
    [(config, init)] = trained
    assert (config.optim.frozen, init) == (frozen if arm == "on" else (), demo / "fine")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["on", "off"])
def test_captions_are_a_third_or_a_fifth_of_the_coarse_steps(
    starts, demo, monkeypatch, trained, arm
):
    short_run(starts, demo, monkeypatch, "enough captions", arm)
    [(config, init)] = trained
    tasks = config.tasks
    assert (tasks.image_text.share, tasks.question.share) == (1, 2 if arm == "on" else 4)
    assert init == demo / "fine"


@pytest.mark.parametrize("arm", ["on", "off"])
def test_relations_come_first_as_in_the_demo(starts, demo, monkeypatch, trained, arm):
    row = short_run(starts, demo, monkeypatch, "relations first", arm)
    assert row["metric"] == "refcoco/relation/accuracy_at_1"
    [(config, init)] = trained
    assert init is None
    of_demo = find_plan("scenes", "default").config("fine", 0)
    assert of_demo.tasks.grounding.first_sources
    own = {"tasks.grounding.first_sources": (), "tasks.grounding.first_steps": 0}
    assert config.tasks == (replace_fields(of_demo, own) if arm == "off" else of_demo).tasks


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["on", "off"])
def test_color_and_shape_come_first_as_in_the_demo(starts, demo, monkeypatch, trained, arm):
    row = short_run(starts, demo, monkeypatch, "binding first", arm, records=60)
    assert row["metric"] == "vqa/shape/accuracy"
    [(config, init)] = trained
    assert init == demo / "fine"
    of_demo = find_plan("scenes", "default").config("coarse", 0)
    assert of_demo.tasks.question.first_sources
    own = {"tasks.question.first_sources": (), "tasks.question.first_steps": 0}
    assert config.tasks == (replace_fields(of_demo, own) if arm == "off" else of_demo).tasks


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["on", "off"])
def test_classes_are_in_file_order_or_shuffled(starts, demo, monkeypatch, trained, arm):
    short_run(starts, demo, monkeypatch, "class order", arm)
    [(config, _)] = trained
    assert config.tasks.grounding.shuffle_classes == (arm == "off")


def read(name):
    with (ROOT / "benches" / "results" / f"{name}.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_what_the_evidence_page_says_of_them(starts):
    rows = {(r["start"], r["arm"], r["seed"]): r for r in read("starts")}
    # The table has no other starts.
    assert {start for start, _, _ in rows} == {*starts.STARTS}
    text = " ".join((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").split())
    assert (
        "On val, each of these was better with it on every seed. On new combinations, so were all"
        " but the pyramid and *binding first*, each on two seeds of three." in text
    )
    wins = {
        (start, split): sum(
            float(rows[start, "on", seed][split]) > float(rows[start, "off", seed][split])
            for seed in "012"
        )
        for start in starts.STARTS
        for split in ("val", "novel")
    }
    assert wins.pop(("pyramid", "novel")) == wins.pop(("binding first", "novel")) == 2
    assert set(wins.values()) == {3}
    assert (
        "questions about shape are answered better than by naming the shape of any object of the"
        " picture, on new combinations too;" in text
    )
    guesses = {
        r["split"]: float(r["chance"])
        for r in read("evidence_guesses")
        if r["metric"] == "vqa/shape/accuracy"
    }
    for split in ("val", "novel"):
        least = min(float(rows["binding first", "on", seed][split]) for seed in "012")
        assert least > guesses[split] + 0.09
