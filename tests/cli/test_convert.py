"""`fiber convert`: from one form into another, with a report."""

import json

import pytest
import torch
from safetensors.torch import load_file

import fiber
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.cli import main

from ..conftest import ANSWERS
from ..published_keys import coarse_keys, fine_keys, small_state
from .output import error_line


def test_published_to_fiber_and_back(desk, capsys):
    vocabulary = fiber.load("runs/demo/coarse", device="cpu").config.roberta.vocab_size
    state = small_state(coarse_keys(), vocabulary, len(ANSWERS))
    torch.save({"state_dict": state}, "published.ckpt")
    arguments = ["--tokenizer", "runs/demo/coarse", "--answers", "runs/demo/coarse/answers.json"]
    assert main(["convert", "published.ckpt", "ours", "--to", "fiber", *arguments]) == 0
    report = capsys.readouterr().out
    assert (
        "read published.ckpt: coarse-stage model with itc, itm, mlm, vqa, nlvr2, caption" in report
    )
    assert "window size 12, image size 384" in report
    assert "skipped: 77 tensors" in report
    assert "missing from the file: 0 tensors\n" in report
    assert "stale copy of row 1 of the ITM head:\n    rank_output.weight" in report
    assert "crossattention_t2i.output.LayerNorm.weight\n      6 with * = 6 7 8 9 10 11" in report
    assert "  no " not in report.split("wrote ")[1]
    assert json.loads((desk / "ours" / "answers.json").read_text()) == list(ANSWERS)
    assert main(["convert", "ours", "back.pth", "--to", "published"]) == 0
    back = read_checkpoint(desk / "back.pth").state
    assert len(back) == 754 - 77
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_what_the_file_does_not_hold_is_said(desk, capsys):
    state = small_state(coarse_keys())
    for name in [name for name in state if "queue" in name or name == "temp"]:
        del state[name]
    torch.save({"state_dict": state}, "released.ckpt")
    assert main(["convert", "released.ckpt", "ours", "--to", "fiber"]) == 0
    report = capsys.readouterr().out
    assert "missing from the file: 1 tensor\n  temperature: set to 0.07\n" in report
    assert "older published files" in report
    assert load_file(desk / "ours" / "model.safetensors")["temperature"].item() == pytest.approx(
        0.07
    )
    # Without its projections there is no head, and nothing to set.
    for name in [name for name in state if "_itc." in name]:
        del state[name]
    torch.save({"state_dict": state}, "without.ckpt")
    assert main(["convert", "without.ckpt", "plain", "--to", "fiber"]) == 0
    report = capsys.readouterr().out
    assert "coarse-stage model with itm, mlm, vqa, nlvr2, caption;" in report
    assert "missing from the file: 0 tensors" in report
    assert main(["convert", "plain", "back.ckpt", "--to", "published"]) == 0
    assert not [
        name
        for name in read_checkpoint(desk / "back.ckpt").state
        if "_itc." in name or name == "temp"
    ]


def test_moving_average_of_a_fine_file(desk, capsys):
    state = small_state(fine_keys("v2"))
    average = {
        name: tensor if "cell_anchors" in name else torch.zeros_like(tensor)
        for name, tensor in state.items()
    }
    torch.save({"model": state, "model_ema": average}, "fine.pth")
    assert main(["convert", "fine.pth", "ours", "--to", "fiber", "--weights", "ema"]) == 0
    report = capsys.readouterr().out
    assert "read fine.pth, moving average: fine-stage model v2 with grounding" in report
    assert "no tokenizer: the model cannot process text (--tokenizer)" in report
    assert not load_file(desk / "ours" / "model.safetensors")["head.text_bias"].any()


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_towers(desk, capsys, stage):
    arguments = ["convert", f"runs/demo/{stage}", "towers", "--to", "towers", "--layout", "timm"]
    assert main(arguments) == 0
    report = capsys.readouterr().out
    assert "wrote towers/swin.safetensors: " in report
    assert ("without Swin's last norm" in report) == (stage == "fine")
    assert "layers.1.downsample.norm.bias" in load_file(desk / "towers" / "swin.safetensors")
    assert main(arguments) == 2
    assert "already contains swin.safetensors" in error_line(capsys)


def test_another_size(desk, capsys):
    arguments = ["convert", "runs/demo/coarse", "larger", "--to", "fiber", "--image-size", "128"]
    assert main(arguments) == 0
    assert "window size 4, image size 128" in capsys.readouterr().out
    model = json.loads((desk / "larger" / "config.json").read_text())["model"]
    assert (model["image_size"], model["swin"]["window_size"]) == (128, 4)
    assert main(arguments) == 2
    assert "larger already contains config.json" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.ckpt", "out", "--to", "fiber"], "none.ckpt does not exist"),
        (["words.jpg", "out", "--to", "fiber"], "words.jpg is not a checkpoint"),
        (
            ["runs/demo/fine", "out.zip", "--to", "published"],
            "out.zip: a published file must have one of the suffixes .ckpt, .pt, .pth,",
        ),
        (
            ["none.ckpt", "out", "--to", "published"],
            "out: a published file must have one of the suffixes",
        ),
        *(
            (
                ["none.ckpt", f"out{ending}", "--to", form],
                f"out{ending}: expected a folder for format {form!r}",
            )
            for form in ("fiber", "towers")
            for ending in (".ckpt", ".pt", ".pth", ".safetensors", ".CKPT")
        ),
        (
            ["runs/demo/fine", "out", "--to", "fiber", "--image-size", "99"],
            "image_size 99: fine-stage",
        ),
        (
            ["runs/demo/fine", "out", "--to", "fiber", "--weights", "ema"],
            "weights='ema' requires a checkpoint file; expected 'raw' for the folder",
        ),
    ],
)
def test_wrong_use(desk, capsys, arguments, message):
    assert main(["convert", *arguments]) == 2
    assert message in error_line(capsys)
    assert not list(desk.glob("out*"))
