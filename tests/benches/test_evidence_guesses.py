"""The guesses beside the tables of the evidence page."""

import csv
from dataclasses import replace

import pytest

from fiber.checkpoints.model_dir import load_model
from fiber.checkpoints.stages import packaged_model
from fiber.data.record import Record
from fiber.demo.guesses import Guesser
from fiber.synthetic.scenes import generate
from tests.benches.conftest import load_bench

STATEMENTS = (("one is red", True), ("both are blue", False), ("none is green", True))


@pytest.fixture(scope="module")
def guesses(bench):
    return bench


@pytest.fixture(scope="module")
def rows(guesses, tmp_path_factory):
    folder = generate(tmp_path_factory.mktemp("guesses") / "scenes", train=80, val=40, novel=40)
    return folder, {(r["metric"], r["split"]): r for r in guesses.make_rows(folder)}


def test_every_metric_of_both_benches_has_a_guess(guesses, rows):
    wanted = {f"{t}/{m}" for t, m in (*guesses.evidence.METRICS, *guesses.fusion.METRICS)}
    assert {metric for metric, split in rows[1] if split == "val"} == wanted


def test_questions_and_expressions_have_those_of_the_demo(guesses, rows):
    folder, found = rows
    guesser = Guesser(folder, load_model(packaged_model("scenes") / "coarse"), 0)
    for task, metric in (("vqa", "color/accuracy"), ("refcoco", "noun/accuracy_at_1")):
        records = guesses.measured_records(folder, task, "novel", 5000)
        own = guesser.guess(task, {"novel": records})["novel"]
        row = found[f"{task}/{metric}", "novel"]
        assert row["records"] == len(records)
        for kind in ("chance", "blind"):
            assert float(row[kind]) == pytest.approx(own[kind][metric], abs=1e-4)


def test_swapped_words_have_chance_alone(rows):
    for metric, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        row = rows[1][f"winoground/{metric}", "val"]
        assert float(row["chance"]) == pytest.approx(chance, abs=1e-4)
        assert row["blind"] == ""


def test_a_statement_is_guessed_from_its_text(guesses):
    seen = [Record(key=text, images=("a",), text=text, truth=truth) for text, truth in STATEMENTS]
    asked = [replace(seen[0], truth=False), seen[1], seen[2]]
    found = guesses.statements(seen, asked)
    assert found["chance"]["accuracy"] == 0.5
    assert found["blind"]["accuracy"] == pytest.approx(2 / 3)


def test_the_table_shows_the_better_guess(monkeypatch):
    tables = load_bench("page_tables")
    own = {"split": "val", "metric": "vqa/accuracy", "chance": "0.3000", "blind": "0.9"}
    monkeypatch.setattr(tables, "read", lambda name: [own, own | {"split": "novel", "blind": ""}])
    rows = [{"arm": arm, "vqa/accuracy/val": "0.5", "vqa/accuracy/novel": "0.5"} for arm in "aabb"]
    table = tables.by_arm(rows, {"vqa/accuracy": "VQA"}, ["a", "b"]).splitlines()
    assert table[0] == "| metric | split | guess | a | b |"
    assert table[2].startswith("| VQA | val | 0.900 | 0.500 ")
    assert table[3].startswith("| VQA | novel | 0.300 | 0.500 ")


def test_the_committed_rows_are_complete(guesses):
    with (guesses.Rows("evidence_guesses", ()).file).open(newline="") as file:
        known = {(row["metric"], row["split"]) for row in csv.DictReader(file)}
    for task, metric in (*guesses.evidence.METRICS, *guesses.fusion.METRICS):
        assert (f"{task}/{metric}", "val") in known
