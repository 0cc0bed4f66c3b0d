import importlib.util

import pytest

from fiber.training.run_dir import draw_curves, read_metrics

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
    assert labels == ["itc loss", "learning rate", "score on held-out records"]
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < image.height * 1.2 < 2 * image.width


def test_without_matplotlib_a_warning_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"matplotlib.*fiber-vl\[train\]"):
        assert not draw_curves([LINE], tmp_path / "curves.png")
