"""The mistakes fit today's source, and the command tells a seen one from one that survives."""

import json
from pathlib import Path

import pytest

from tests.plant import __main__ as plant
from tests.plant.mistakes import MISTAKES, Mistake

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/golden/coarse"

ALL = [mistake for mistakes in MISTAKES.values() for mistake in mistakes]


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.name)
def test_mistakes_fit_the_source(mistake):
    source = (ROOT / mistake.file).read_text()
    assert mistake.planted(source) != source


def test_a_mistake_that_does_not_fit_is_an_error():
    mistake = Mistake("gone", "a.py", "x = 1", "x = 2")
    with pytest.raises(ValueError, match=r"gone: expected 'x = 1' once in a\.py, found it 2 times"):
        mistake.planted("x = 1\nx = 1\n")


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent")
@pytest.mark.parametrize("case", ["micro", "tiny", "tinyhot"])
def test_every_recorded_mistake_is_planted(case):
    recorded = json.loads((SHARED / f"{case}_mutations.json").read_text())
    mistakes = {name for name in recorded if not name.startswith(("noise", "magnitude"))}
    assert mistakes == {mistake.name for mistake in MISTAKES["coarse"]}


@pytest.mark.slow
def test_seen_and_surviving_mistakes(monkeypatch, capsys):
    seen = next(mistake for mistake in ALL if mistake.name == "no shifted-window mask")
    harmless = Mistake("harmless", seen.file, seen.right, seen.right + "  # as before")
    monkeypatch.setitem(plant.MISTAKES, "coarse", (seen, harmless))
    assert plant.main(["coarse"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "test_micro_equals_the_recorded_tensors" in lines[0]
    assert lines[1].split() == ["harmless", "SURVIVES"]
    assert lines[2] == "1 of 2 mistakes are seen"
    assert plant.main(["coarse", "shifted"]) == 0


def test_unknown_mistake_is_named(capsys):
    assert plant.main(["coarse", "no such thing"]) == 2
    assert "there are: no relative position bias; " in capsys.readouterr().err
