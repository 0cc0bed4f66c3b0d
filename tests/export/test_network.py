"""A network of exported graphs beside the network that was exported, in float32 and in int8."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import fiber
from fiber.cli import main
from fiber.export.export import export_model
from fiber.export.network import load_graphs
from fiber.inference.model import Model
from fiber.models.abilities import ScoresPairs, need_ability
from fiber.models.heads import MissingHeadError
from fiber.runtime.graphs import Graphs
from fiber.synthetic import scenes
from tests.export import networks

pytestmark = pytest.mark.slow
#: Largest difference of an output, as of the graphs themselves.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def drawings():
    """Six drawings, as arrays."""
    draw = np.random.default_rng(0)
    images = []
    for side in (96, 120, 96, 160, 96, 96):
        image = np.full((side, 96, 3), 255, np.uint8)
        for color in ((220, 30, 30), (30, 60, 220)):
            top, left = draw.integers(5, 50, 2)
            image[top : top + 30, left : left + 30] = color
        images.append(image)
    return images


def test_a_model_of_graphs_answers_as_the_model(exported, drawings):
    ours, theirs = {}, {}
    for stage in ("coarse", "fine"):
        stored = load_graphs(exported(stage, "onnx"), threads=1)
        ours[stage] = Model(
            stored.network, stored.tokenizer, stored.answers, classes=stored.classes
        )
        theirs[stage] = fiber.load(f"scenes/{stage}", device="cpu")
    found = (model["fine"].ground(drawings, "a red square") for model in (ours, theirs))
    for own, expected in zip(*found, strict=True):
        np.testing.assert_allclose(own.boxes_xyxy, expected.boxes_xyxy, atol=100 * TOLERANCE)
        np.testing.assert_allclose(own.scores, expected.scores, atol=TOLERANCE)
        assert list(own.labels) == list(expected.labels)
        assert len(expected.scores)
    for model in (ours, theirs):
        model["captions"] = model["coarse"].caption(drawings)
        model["answers"] = model["coarse"].answer(drawings, "what color is the square?")
        model["hits"] = model["coarse"].search("a red square", drawings)
        model["match"] = model["coarse"].match(drawings, ["a red square", "a blue circle"])
    assert ours["captions"] == theirs["captions"]
    for own, expected in zip(ours["answers"], theirs["answers"], strict=True):
        assert [each.answer for each in own] == [each.answer for each in expected]
    assert [hit.index for hit in ours["hits"]] == [hit.index for hit in theirs["hits"]]
    np.testing.assert_allclose(ours["match"], theirs["match"], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["METER", "METER BERT"])
def test_statements_and_masked_tokens_of_meter(exported, name):
    network = networks.network(name)
    ours = load_graphs(exported(name, "onnx")).network
    assert tuple(ours.config.heads) == tuple(network.config.heads)
    draw = torch.Generator().manual_seed(0)
    side = network.config.image_size
    images = torch.randn(3, 2, 3, side, side, generator=draw)
    ids = torch.randint(3, network.config.vocab_size, (3, 7), generator=draw)
    mask = torch.arange(7) < torch.tensor([7, 4, 6])[:, None]
    positions = torch.rand(3, 7, generator=draw) < 0.5
    with torch.no_grad():
        outputs = []
        for each in (ours, network):
            fused = each.backbone.encode_pair(images[:, 0], ids, mask, wanted="text")
            pooled = each.pooled(
                each.backbone.encode_pair(images[:, 0], ids, mask, wanted="pooled")
            )
            outputs.append(
                [
                    each.statement_logits(images, ids, mask),
                    each.mlm_logits(fused.text, positions & mask),
                    each.ranking_scores(pooled),
                    each.snli_logits(pooled),
                ]
            )
    for own, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=TOLERANCE)


def test_exported_heads_only(tmp_path):
    networks.save("METER", tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "graphs", heads=["vqa"])
    network = load_graphs(tmp_path / "graphs").network
    assert network.config.heads == ("vqa",)
    with pytest.raises(MissingHeadError, match="'nlvr2'; this model has vqa"):
        need_ability(network, ScoresPairs, "task 'nlvr2'", "nlvr2")


def test_masks_are_evaluated(exported, tmp_path):
    scenes.generate(tmp_path / "data", train=1, val=3, novel=1, stuff=True)
    folder = exported("X-Decoder", "onnx")
    for task in ("panoptic", "refseg"):
        found, expected = (
            fiber.evaluate(model, task, tmp_path / "data")
            for model in (load_graphs(folder, threads=1), folder.parent / "model")
        )
        assert found.keys() == expected.keys() and len(found) > 2
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-3), name
    boxes = load_graphs(exported("fine two blocks", "onnx"), threads=1)
    model = exported("fine two blocks", "onnx").parent / "model"
    found, expected = (fiber.evaluate(each, "refseg", tmp_path / "data") for each in (boxes, model))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-3), name


def test_images_of_several_sizes_in_a_batch(exported):
    network = load_graphs(exported("fine", "onnx")).network
    images = torch.zeros(2, 3, 128, 64)
    network.image_prefix(images, torch.tensor([[120, 60], [101, 64]]))
    with pytest.raises(
        ValueError, match=r"one size; got \[\[120, 60\], \[64, 64\]\] in .* 128 x 64"
    ):
        network.image_prefix(images, torch.tensor([[120, 60], [64, 64]]))


def test_int8_keeps_metrics_and_halves_the_files(exported, small_scenes, tmp_path, capsys):
    # A folder of two stages, of which `fiber eval` takes the one that has the task.
    for stage in ("coarse", "fine"):
        shutil.copytree(exported(stage, "onnx", int8=True), tmp_path / stage)
    for stage, task, metric in (
        ("fine", "coco", "ap50"),
        ("fine", "refcoco", "accuracy_at_1"),
        ("coarse", "vqa", "accuracy"),
    ):
        folders = [exported(stage, "onnx"), tmp_path / stage]
        assert Graphs(folders[1]).metadata.precision == "int8"
        sizes = [sum(path.stat().st_size for path in each.iterdir()) for each in folders]
        assert sizes[1] < 0.6 * sizes[0]
        found = []
        for folder in (folders[0], tmp_path):
            assert main(["eval", str(folder), task, "--data", str(small_scenes)]) == 0
            found.append(json.loads(capsys.readouterr().out)[metric])
        own = fiber.evaluate(f"scenes/{stage}", task, small_scenes)[metric]
        assert found[0] == pytest.approx(own, abs=1e-3)
        # The bound of the gate: a point.
        assert found[1] == pytest.approx(own, abs=0.01), (task, found, own)


@pytest.mark.parametrize("name", ["METER Swin", "METER merged"])
def test_every_network_in_int8(exported, name):
    import onnx

    folder = exported(name, "onnx", int8=True)
    products = 0
    for path in folder.glob("*.onnx"):
        nodes = onnx.load(path, load_external_data=False).graph.node
        products += sum(node.op_type == "MatMulInteger" for node in nodes)
        assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert products > 20


def test_what_int8_and_eval_refuse(exported, capsys, tmp_path):
    folder = str(exported("coarse", "onnx"))
    assert main(["export", "scenes/coarse", str(tmp_path / "a"), "--int8", "--to", "openvino"]) == 2
    assert "int8: graphs in 8-bit integers are ONNX; got the format 'openvino'" in (
        capsys.readouterr().err
    )
    arguments = ["eval", folder, "vqa", "--data", str(tmp_path), "--image-size", "64"]
    assert main(arguments) == 2
    assert f"--image-size: {folder} has exported graphs" in capsys.readouterr().err
