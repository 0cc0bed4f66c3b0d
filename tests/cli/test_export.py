"""`fiber export`: a folder of graphs, and what it refuses. tests/export has the rest."""

import json
import re
import sys

import numpy as np
import pytest

import fiber
from fiber.cli import main
from fiber.export import formats
from fiber.runtime.graphs import Graphs

from .output import error_line


@pytest.mark.slow
def test_embeddings_without_other_packages(desk, capsys):
    try:
        formats.check_torch()
    except ValueError as error:
        pytest.skip(str(error))
    arguments = ["runs/demo/coarse", "graphs", "--to", "torch", "--heads", "itc"]
    assert main(["export", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "embed_texts.pt2: text (batch, length, 32), text_mask (batch, length)" in printed
    assert "checked at 3 sizes" in printed
    graphs = Graphs("graphs", engine="torch")
    assert graphs.metadata.heads == ("itc",)
    assert {"tokenizer.json", "metadata.json"} < {path.name for path in desk.glob("graphs/*")}
    model = fiber.load("runs/demo/coarse", device="cpu")
    assert model.tokenizer is not None
    texts = model.tokenizer.encode_batch(["a red circle", "two dogs"])
    given = {name: np.asarray(texts[name]) for name in ("token_ids", "text_mask")}
    text = graphs.run("text_prefix", given)["text"]
    found = graphs.run("embed_texts", {"text": text, "text_mask": given["text_mask"]})
    np.testing.assert_allclose(
        found["text_vectors"], model.embed_texts(["a red circle", "two dogs"]), rtol=0, atol=1e-5
    )
    values = json.loads((desk / "graphs" / "metadata.json").read_text())
    assert values["image_transform"]["name"] == "squash"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/demo", "runs"], "runs exists; expected a new or empty folder"),
        (["runs/demo", "out", "--heads", "itm,zzz"], "heads: expected some of itc, itm, .*'zzz'"),
        (["runs/demo/fine", "out", "--heads", "vqa"], "expected some of grounding, got .vqa"),
        (["runs/demo", "out", "--image-size", "96"], "runs/demo has the stages coarse, fine"),
        (["runs/none", "out"], "model runs/none does not exist"),
    ],
)  # fmt: skip
def test_bad_arguments(desk, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(formats, "need_packages", lambda to: None)
    assert main(["export", *arguments, "--to", "torch"]) == 2
    assert re.search(message, error_line(capsys))
    assert not (desk / "out").exists()


def test_a_missing_package_names_the_extra(desk, capsys, monkeypatch):
    monkeypatch.setattr(formats, "check_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "runs/demo/coarse", "out"]) == 2
    assert "pip install 'fiber-vl[onnx]'" in capsys.readouterr().err
    assert not (desk / "out").exists()


def test_heads_and_formats_on_the_command_line(capsys):
    for arguments in (["--heads", "itm,,vqa"], ["--to", "onxx"]):
        with pytest.raises(SystemExit) as stopped:
            main(["export", "model", "out", *arguments])
        assert stopped.value.code == 2
    assert "did you mean onnx?" in capsys.readouterr().err
