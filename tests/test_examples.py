"""The scripts of examples/ run as they stand."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import kernels
from fiber.cli import main
from fiber.training.run_dir import RunFolder
from tests.processes import run_python

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder: Path, script: str, *arguments: object) -> str:
    done = run_python([EXAMPLES / script, *arguments], folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run_here():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))


def test_ground_phrases(tmp_path, micro_models, scene_picture):
    out = run(
        tmp_path, "ground_phrases.py", micro_models["fine"], scene_picture, "a circle", "the square"
    )
    assert len(out.splitlines()) == 2
    assert "  a circle: from (" in out
    assert (tmp_path / "annotated.png").stat().st_size > 0


def test_answer_questions(tmp_path, micro_models, scene_picture):
    out = run(tmp_path, "answer_questions.py", micro_models["coarse"], scene_picture, "is it red?")
    assert out.startswith("is it red? ")
    assert len(out.splitlines()) == 3


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    """Cut-outs of four kinds of things, and a photograph."""
    folder, random = tmp_path_factory.mktemp("cutouts"), np.random.default_rng(0)
    for name in ("frog", "owl", "mug", "tent"):
        pixels = random.integers(0, 256, (60, 60, 4)).astype(np.uint8)
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A {name}.")
    (folder / "photos").mkdir()
    noise = random.integers(0, 256, (90, 130, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "photos" / "a.jpg")
    return ["--stamps", folder, "--backgrounds", folder / "photos"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "roboflow", "single"])
def test_coco_folder_and_what_is_done_with_one(layout, cutouts, tmp_path, monkeypatch, capsys):
    """A folder of one's own: trained on, measured and looked at, with nothing but its name."""
    arguments = ["--layout", layout, "--images", "10", "--classes", "3", "--image-size", "96"]
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, "coco_folder.py", "own", *arguments, *cutouts) == "own\n"
    few = ["train.steps=2", "data.batch_size=2", "train.checkpoint_every=1"]
    settings = [word for change in few for word in ("--set", change)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if layout != "coco":
        # Drawing the curves takes longer than the two steps.
        monkeypatch.setattr(RunFolder, "draw", lambda folder, priors: None)
    command = ["train", "small_detection", "--data", "own", "--output", "run"]
    assert main([*command, *settings, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.out == "run\n"
    held_out = "so 2 of its 10 images, chosen by a hash of their names, are held out as split 'val'"
    assert (held_out in said.err) == (layout == "single")
    assert f"records: grounding {8 if layout == 'single' else 10}" in said.err
    assert "a tokenizer with" in said.err and "coco on val 0." in said.err
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["validation"].keys() >= {"ap", "ap50"}

    assert main(["eval", "run", "coco", "--data", "own", "--split", "val"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"ap", "ap50"}
    picture = next(str(path) for path in sorted(Path("own").rglob("*.jpg")))
    asked = ["--model", "run", "--threshold", "0", "--save", "seen", "--max-detections", "3"]
    assert main(["detect", picture, *asked]) == 0
    said = capsys.readouterr()
    classes = json.loads(Path("run/classes.json").read_text())
    assert len(classes) == 3 and f"classes: {', '.join(classes)}" in said.err
    found = json.loads(said.out)["detections"]
    assert len(found) == 3 and {box["label"] for box in found} <= set(classes)
    assert len(list(Path("seen").glob("*.png"))) == 1


@pytest.mark.slow
def test_train_on_your_own_records(tmp_path):
    out = run(tmp_path, "train_on_your_own_records.py", tmp_path / "run")
    found = re.fullmatch(r"(\d+) of 50 squares found\n", out)
    assert found
    # A box of the other square never counts, so guessing one of the two is right for half of them;
    # two runs with other learning rates found 59 of 60.
    assert int(found.group(1)) >= 40
    assert (tmp_path / "run" / "model.safetensors").exists()


SWIN_SIZES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}


@pytest.mark.parametrize(
    "side", [(28, 28), (56, 84), (50, 68), (60, 20)], ids=["small", "whole", "odd", "one side"]
)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_other_swins_give_the_same(library, side, monkeypatch):
    """In float64, of outputs and of the gradient of every weight; dropout of paths is off."""
    monkeypatch.syspath_prepend(EXAMPLES)
    recipe = importlib.import_module("swin_kernels")
    torch.manual_seed(0)
    if library == "torchvision":
        swin = importlib.import_module("torchvision.models.swin_transformer")
        model = swin.SwinTransformer([4, 4], window_size=[7, 7], **SWIN_SIZES)
        change = recipe.use_in_torchvision
    else:
        swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
        model = swin.SwinTransformer(
            img_size=side, window_size=7, always_partition=True, **SWIN_SIZES
        )
        change = recipe.use_in_timm
    model = model.double().eval()
    pictures = torch.randn(2, 3, *side, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        out = model(pictures)
        return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    before, calls = run(), []
    attention = kernels.window_attention
    monkeypatch.setattr(
        kernels, "window_attention", lambda *a, **k: calls.append(k) or attention(*a, **k)
    )
    assert change(model) == 4
    after = run()
    # Blocks that do not shift run it on every map.
    assert len(calls) >= 2
    for ours, theirs in zip(after, before, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max().clamp(min=1)


def test_swin_kernels(tmp_path):
    out = run(tmp_path, "swin_kernels.py")
    assert "torchvision: 4 blocks, largest difference " in out
