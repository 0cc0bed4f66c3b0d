import importlib.util
import json
import math

import pytest

from fiber.training.metrics_file import draw_curves, read_metrics

LINE = {"step": 1, "losses": {"itc": 2.0}, "learning_rates": {"x1": 0.1}}


def test_no_metrics_no_picture(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    assert not draw_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    times = '"performance": {"wall_seconds": 2.5, "goodput": 1}'
    path.write_text(f'{{"step": 1, {times}}}\n{{"step": 2, {times}}}\n{{"st')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]


def test_curves_of_tasks_in_turn_are_drawn(tmp_path):
    lines = [LINE, LINE | {"step": 2, "losses": {"vqa": 1.0, "mlm": 3.0}}]
    assert draw_curves(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_known_prior_is_a_line_at_its_value(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, labels = [], []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **style: drawn.append(y))
    monkeypatch.setattr(Axes, "annotate", lambda self, text, *rest, **more: labels.append(text))
    lines = [LINE, LINE | {"step": 2, "losses": {"vqa": 1.0, "mlm": 3.0}}]
    draw_curves(lines, tmp_path / "curves.png", {"itc": 4.16, "vqa": 3.0, "nlvr2": 0.69})
    assert drawn == [4.16, 3.0]
    assert all(label.startswith("chance") for label in labels)
    assert len(labels) == 2


def test_curves_have_labels_and_are_narrow_enough_for_a_phone(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes
    from PIL import Image

    labels = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, **style: labels.append(text))
    draw_curves([LINE, LINE | {"step": 2, "validation": {"score": 0.5}}], tmp_path / "a.png")
    assert labels == ["itc loss", "learning rate", "held-out score"]
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < image.height * 1.2 < 2 * image.width


def test_without_matplotlib_a_warning_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"matplotlib.*fiber-vl\[train\]"):
        assert not draw_curves([LINE], tmp_path / "curves.png")


TIMES = {"performance": {"wall_seconds": 2.5, "goodput": 1}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 10**400}, "no step"),
        ({"step": -1}, "no step"),
        ({"step": True}, "no step"),
        ({"losses": {"itc": True}}, "losses .*expected an object of numbers"),
        ({"losses": {"itc": 2**63}}, "losses .*expected an object of numbers"),
        ({"learning_rates": dict.fromkeys(map(str, range(101)), 0.1)}, "101 learning_rates.* 100"),
        ({"performance": 5}, "performance 5; expected an object"),
        (
            {"performance": {"wall_seconds": 10**400, "goodput": 1}},
            r"wall_seconds <int of about 40",
        ),
        ({"performance": {"wall_seconds": 1, "goodput": math.inf}}, r"performance\.goodput inf;"),
        ({"performance": {"wall_seconds": math.nan, "goodput": 1}}, r"wall_seconds nan; expected"),
        ({"performance": {"wall_seconds": 1}}, r"performance\.goodput None; expected a number"),
        ({"losses": {"\ud800": 1.0}}, r"'\\ud800' in losses.*lone surrogate"),
        ({"losses": 3}, r"losses 3; expected"),
        ({"losses": {"itc": [[1]]}}, r"losses .*expected an object of numbers"),
        ({"losses": {"itc": 10**400}}, "losses .*expected an object of numbers"),
        ({"losses": {"w" * 5000: 1.0}}, "1 losses.*at most 100 names of at most 100"),
        ({"losses": {f"loss {number}": 1.0 for number in range(40)}}, "41 losses.*at most 32"),
        ({"validation": {"score": "high"}}, "validation .*expected an object of numbers"),
        ({"learning_rates": None}, "learning_rates None"),
    ],
)
def test_a_line_that_cannot_be_drawn_is_named(tmp_path, changes, named):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(TIMES | LINE | more) + "\n" for more in ({}, changes)))
    with pytest.raises(
        ValueError, match=rf"metrics\.jsonl: lines? .*2 (has|have) .*{named}"
    ) as error:
        read_metrics(path)
    assert len(str(error.value)) < 1000
    # One line more or less does not mend a run with too many losses.
    assert ("only this line" in str(error.value)) == ("at most 32" not in named)


def test_names_are_no_formulas(tmp_path):
    assert draw_curves([LINE | {"losses": {r"$\frac$": 1.0}}], tmp_path / "curves.png")
    # A line of another tool may lack losses.
    assert draw_curves([TIMES | {"step": 1}], tmp_path / "curves.png")
