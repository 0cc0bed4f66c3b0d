"""The mistakes fit today's source, and the command tells a seen one from one that survives."""

import json
import re
from pathlib import Path

import pytest

from tests.golden import COARSE, FINE, XDECODER
from tests.golden import METER as METER_CASES
from tests.plant import __main__ as plant
from tests.plant.kernel_mistakes import ACCESSES, KERNELS
from tests.plant.meter_mistakes import METER, NOT_PLANTED, RECORDED
from tests.plant.mistakes import MISTAKES, Mistake
from tests.plant.xdecoder_mistakes import RECORDED as RECORDED_XDECODER

ROOT = Path(__file__).parents[2]

ALL = [
    pytest.param(mistake, id=f"{kind} {mistake.name}")
    for kind, mistakes in plant.ALL.items()
    for mistake in mistakes
]


@pytest.mark.parametrize("mistake", ALL)
def test_mistakes_fit_the_source(mistake):
    source = (ROOT / mistake.file).read_text()
    assert mistake.planted(source) != source


def test_a_mistake_that_does_not_fit_is_an_error():
    mistake = Mistake("gone", "a.py", "x = 1", "x = 2")
    with pytest.raises(ValueError, match=r"gone: expected 'x = 1' once in a\.py, found it 2 times"):
        mistake.planted("x = 1\nx = 1\n")


@pytest.mark.parametrize("case", ["micro", "tiny", "tinyhot"])
def test_every_recorded_mistake_is_planted(case):
    recorded = json.loads((COARSE / f"{case}_mutations.json").read_text())
    mistakes = {name for name in recorded if not name.startswith(("noise", "magnitude"))}
    assert mistakes == {mistake.name for mistake in MISTAKES["coarse"]}


def test_every_recorded_fine_mistake_is_planted():
    _, _, table = (
        (FINE / "mutation_sensitivity.txt").read_text().partition("---- mutations vs sharp\n")
    )
    lines = table.partition("---- ")[0].splitlines()
    recorded = {line.partition(" C3=")[0].strip() for line in lines}
    assert len(recorded) == 16
    assert recorded == {mistake.name for mistake in MISTAKES["fine"]}


def test_every_recorded_mistake_of_xdecoder_is_planted():
    recorded = json.loads((XDECODER / "micro_mutations.json").read_text())
    # The README has one more.
    assert {mistake.name for mistake in RECORDED_XDECODER} == {
        *recorded,
        "norm1 inside the branch (Focal-L's order)",
    }


def test_every_recorded_mistake_of_meter_is_planted():
    recorded = {
        name
        for case in ("clip", "swin")
        for name in json.loads((METER_CASES / f"{case}_micro_mutations.json").read_text())
        if not name.startswith(("noise", "none"))
    }
    # A place in brackets follows the name.
    planted = [re.sub(r" \[.*\]$", "", mistake.name) for mistake in RECORDED]
    assert recorded == set(planted)
    assert len({mistake.name for mistake in METER}) == len(METER)


@pytest.mark.slow
def test_seen_and_surviving_mistakes(monkeypatch, capsys):
    seen = next(each for each in MISTAKES["coarse"] if each.name == "no shifted-window mask")
    harmless = Mistake("harmless", seen.file, seen.right, seen.right + "  # as before")
    monkeypatch.setitem(plant.ALL, "coarse", (seen, harmless))
    assert plant.main(["coarse"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "test_micro_equals_the_recorded_tensors" in lines[0]
    assert lines[1].split() == ["harmless", "SURVIVES"]
    assert lines[2] == "1 of 2 mistakes are seen"


@pytest.mark.slow
def test_a_fine_mistake_is_seen(capsys):
    """The smallest of all in the recorded table; `python -m tests.plant fine` plants the others."""
    assert plant.main(["fine", "GELU tanh"]) == 0
    out = capsys.readouterr().out
    assert "test_the_committed_case_equals_the_recorded_tensors" in out
    assert "1 of 1 mistakes are seen" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seen_by"),
    [
        # The smallest of all in the recorded tables, and one that the recorded cases do not see.
        ("image tower LayerNorm eps 1e-6 [Swin]", "test_the_committed_case_equals[swin_micro]"),
        ("zero-shot ranking", "test_without_a_ranking_head_the_logit_of_a_match_ranks"),
    ],
)
def test_a_mistake_in_meter_is_seen(name, seen_by, capsys):
    """`python -m tests.plant meter` plants the others."""
    assert plant.main(["meter", name]) == 0
    assert seen_by in capsys.readouterr().out.splitlines()[0]


def test_the_command_says_what_it_does_not_plant(monkeypatch, capsys):
    monkeypatch.setattr(plant, "first_failure", lambda copy, check: "")
    monkeypatch.setattr(plant, "copy_package", lambda folder: ROOT)
    monkeypatch.setattr(plant, "_plant", lambda copy, mistake, check: True)
    assert plant.main(["meter"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{len(METER)} of {len(METER)} mistakes are seen"
    assert [line.split(": ")[1] for line in lines[1:]] == [n.split(": ")[0] for n in NOT_PLANTED]


@pytest.mark.slow
def test_a_mistake_in_a_kernel_is_seen_by_its_check(monkeypatch, capsys):
    """`python -m tests.plant kernels` plants the others."""
    pytest.importorskip("triton")
    seen = next(each for each in KERNELS if each.check == ACCESSES)
    monkeypatch.setitem(plant.ALL, "kernels", (seen,))
    assert plant.main(["kernels"]) == 0
    assert "test_window_attention_" in capsys.readouterr().out.splitlines()[0]


def test_unknown_mistake_is_named(capsys):
    assert plant.main(["coarse", "no such thing"]) == 2
    assert "there are: no relative position bias; " in capsys.readouterr().err
