"""Recorded ablations: written from a run, shown where they were not trained."""

import json

import pytest

from fiber.demo import ablations
from fiber.demo.ablations import ablation_table
from fiber.demo.folder import DemoFolder
from fiber.demo.measures import SHOWN

ENTRY = {
    "data": "scenes",
    "mode": "fast",
    "seed": 4,
    "plan": {"coarse_steps": 7, "fine_steps": 9},
    "commit": "0123456789abcdef",
    "machine": {"processor": "Z80"},
    "values": {
        "the demo": {"vqa/accuracy/val": 0.5, "detection/ap50/novel": 0.25},
        "fine from scratch": {"detection/ap50/novel": 0.125},
    },
}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ABLATIONS_FILE", tmp_path / "recorded.json")
    return tmp_path / "recorded.json"


@pytest.fixture
def folder(tmp_path):
    return DemoFolder(tmp_path / "demo", {})


def test_neither_trained_nor_recorded(folder, recorded):
    assert ablation_table(folder, "scenes", "fast") == ([], "")


def test_recorded_ones_are_shown_with_their_origin(folder, recorded):
    recorded.write_text(json.dumps({"scenes/fast": ENTRY}))
    lines, source = ablation_table(folder, "scenes", "fast")
    assert lines[0] == ("metric", "split", "the demo", "fine from scratch")
    assert len(lines) == 1 + 2 * len(SHOWN)
    names = {shown.metric: shown.name for shown in SHOWN}
    assert (names["vqa/accuracy"], "val", "0.500", "-") in lines
    assert (names["detection/ap50"], "novel", "0.250", "0.125") in lines
    for part in ("0123456789ab", "seed 4", "7 coarse and 9 fine steps", "Z80", "--ablations"):
        assert part in source
    assert ablation_table(folder, "scenes", "default") == ([], "")


def test_own_ones_come_first(folder, recorded):
    recorded.write_text(json.dumps({"scenes/fast": ENTRY}))
    own = {**ENTRY, "values": {"the demo": {"vqa/accuracy/val": 0.75}}}
    (folder.path / "ablations.json").write_text(json.dumps(own))
    lines, source = ablation_table(folder, "scenes", "fast")
    assert lines[0] == ("metric", "split", "the demo")
    assert source == "trained by this run"


def test_a_run_is_recorded_beside_others(folder, recorded, capsys):
    recorded.write_text(json.dumps({"stamps/fast": ENTRY}))
    (folder.path / "ablations.json").write_text(json.dumps(ENTRY))
    assert ablations.main([str(folder.path)]) == 0
    assert json.loads(recorded.read_text()) == {"stamps/fast": ENTRY, "scenes/fast": ENTRY}
    assert str(recorded) in capsys.readouterr().out
