"""What cannot be exported, and graphs that are not those of the model, with errors that name it."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from fiber.cli import main
from fiber.export.export import check_graphs, export_model
from fiber.export.parts import ExportPlan, Subgraph
from fiber.export.trace import ExportError, trace
from fiber.runtime.graphs import Graphs
from fiber.runtime.metadata import Dimension, describe_file
from tests.export import networks

#: Heads of the exported models.
HEADS = ("vqa", "itm")
SIDES = {"batch": Dimension(), "height": Dimension(32, None, 32), "width": Dimension(32, None, 32)}
SHAPES = {"images": ("batch", 3, "height", "width"), "out": ("batch",)}


@pytest.fixture(scope="session")
def folders(made_once):
    """Graphs of two models of the same shapes."""

    def make(folder):
        for number in (1, 2):
            torch.manual_seed(number)
            model = networks.small_networks.network("METER merged")
            if number == 2:
                with torch.no_grad():
                    model.vqa_head.output.bias += 1
            networks.save_model(model, folder / f"model{number}")
            target = folder / f"graphs{number}"
            export_model(folder / f"model{number}", target, heads=HEADS)

    made = made_once("export_two_models", make)
    return made / "graphs1", made / "graphs2"


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders[0], tmp_path / "graphs")


def test_heads_are_chosen(folders):
    graphs = Graphs(folders[0])
    assert graphs.metadata.heads == HEADS
    names = ["image_prefix", "text_prefix", "pair", "head_itm", "head_vqa"]
    assert list(graphs.metadata.graphs) == names


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_batches(folders, batch):
    graphs = Graphs(folders[0])
    side = graphs.metadata.graphs["image_prefix"].inputs[0].shape[-1]
    given = {"images": np.zeros((batch, 3, side, side), np.float32)}
    if batch:
        assert len(graphs.run("image_prefix", given)["tokens"]) == batch
    else:
        with pytest.raises(ValueError, match="graph image_prefix: images: batch 0 in shape"):
            graphs.run("image_prefix", given)


def test_lengths_and_sizes(folders):
    graphs = Graphs(folders[0])
    longest = graphs.metadata.dimensions["length"].most
    assert longest is not None
    for length in (1, longest + 1):
        ids = np.ones((2, length), np.int64)
        with pytest.raises(ValueError, match=f"text_prefix: token_ids: length {length} in shape"):
            graphs.run("text_prefix", {"token_ids": ids, "text_mask": ids > 0})
    with pytest.raises(ValueError, match=r"image_prefix: images: expected the shape .*3, 64, 96"):
        graphs.run("image_prefix", {"images": np.zeros((1, 3, 64, 96), np.float32)})


def test_a_graph_of_another_model(copied, folders):
    # Its weights are in another file, so only what it says of itself differs.
    shutil.copy(folders[1] / "head_vqa.onnx", copied)
    shutil.copy(folders[1] / "weights.bin", copied)
    with pytest.raises(ValueError, match=r"head_vqa\.onnx is a graph of another model"):
        Graphs(copied)


def test_a_graph_of_another_part(copied):
    shutil.copy(copied / "head_itm.onnx", copied / "head_vqa.onnx")
    with pytest.raises(ValueError, match=r"head_vqa\.onnx is the graph 'head_itm'"):
        Graphs(copied)


@pytest.mark.parametrize("name", ["pair.onnx", "weights.bin"])
def test_a_damaged_file(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged or of another export"):
        Graphs(copied)


def test_a_file_that_no_engine_loads(copied):
    path = copied / "metadata.json"
    values = json.loads(path.read_text())
    (copied / "pair.onnx").write_bytes(b"no graph")
    own = describe_file(copied / "pair.onnx")
    values["files"]["pair.onnx"] = {"bytes": own.bytes, "sha256": own.sha256}
    path.write_text(json.dumps(values))
    graphs = Graphs(copied)
    given = {}
    for each in graphs.metadata.graphs["pair"].inputs:
        shape = [each_size if isinstance(each_size, int) else 3 for each_size in each.shape]
        given[each.name] = np.zeros(shape, each.dtype)
    with pytest.raises(ValueError, match=r"pair\.onnx cannot be loaded by onnxruntime: "):
        graphs.run("pair", given)


def subgraph(function):
    return Subgraph("image_prefix", torch.nn.Linear(1, 1), function, ("images",), ("out",))


def test_a_fixed_batch_is_refused():
    part = subgraph(lambda images: images.new_zeros(len(images)) + images.mean((1, 2, 3)))
    images = torch.randn(2, 3, 64, 96)
    with pytest.raises(ExportError, match=r"graph image_prefix: .*batch"):
        trace(part, {"images": images}, SHAPES, SIDES)


def test_a_fixed_size_is_refused():
    # The tracer itself says nothing of multiples of a variable.
    part = subgraph(lambda images: images.mean((1, 2, 3)) * int(images.shape[2]))
    images = torch.randn(2, 3, 64, 96)
    with pytest.raises(ExportError, match="height"):
        trace(part, {"images": images}, SHAPES, SIDES)


def test_a_graph_that_decides_on_the_size_is_found(folders):
    """Graphs of the first model, which is said to be another one."""
    graphs = Graphs(folders[0])
    head = graphs.metadata.graphs["head_itm"]
    part = Subgraph("head_itm", torch.nn.Linear(1, 1), lambda x: x, ("pooled",), ("itm_logits",))
    plan = ExportPlan([part], is_resizable=False, divisor=1)
    pooled = torch.randn(3, head.inputs[0].shape[1])
    right = torch.from_numpy(graphs.run("head_itm", {"pooled": pooled.numpy()})["itm_logits"])
    check_graphs(graphs, plan, [{"pooled": pooled, "itm_logits": right}])
    for wrong in (right + 1e-2, right * torch.nan, right[:2]):
        with pytest.raises(ExportError, match=r"graph head_itm: itm_logits .*pooled .3, "):
            check_graphs(graphs, plan, [{"pooled": pooled, "itm_logits": wrong}])


def test_commands(folders, tmp_path, capsys, monkeypatch):
    model = str(folders[0].parent / "model1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = {
        (model, str(tmp_path / "full")): "full exists; expected a new or empty folder",
        (model, str(tmp_path / "new"), "--heads", "itc"): "heads: expected some of itm, mlm, vqa",
        ("none", str(tmp_path / "new")): "model none does not exist",
    }
    for arguments, message in cases.items():
        assert main(["export", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", model, str(tmp_path / "new")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        "onnxscript is not installed; an export to onnx needs `pip install 'fiber-vl[onnx]'`"
        in error
    )
