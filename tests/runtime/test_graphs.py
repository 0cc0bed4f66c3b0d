"""What a folder of graphs takes, and errors that name what it does not take."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import fiber.runtime
from fiber.cli import main
from fiber.data import ImageTransform
from fiber.export import formats
from fiber.export.parts import Subgraph
from fiber.export.trace import trace
from fiber.runtime import metadata as stored
from fiber.runtime.graphs import Graphs, _read_mark, check_inputs
from fiber.runtime.image_transform import describe_transform, prepare_image, read_transform
from fiber.runtime.metadata import Dimension, Graph, Metadata, TensorSpec

SPECS = {
    "images": TensorSpec("images", "float32", ("batch", 3, "height", "width")),
    "tokens": TensorSpec("tokens", "float32", ("batch", "height/8", "width/8", 2)),
    "mask": TensorSpec("mask", "bool", ("batch", "length")),
}
DIMENSIONS = {
    "batch": Dimension(),
    "length": Dimension(2, 16),
    "height": Dimension(32, None, 32),
    "width": Dimension(32, None, 32),
}
GRAPH = Graph("pair.onnx", tuple(SPECS.values()), ())


def inputs(**shapes):
    given = {"images": (2, 3, 64, 96), "tokens": (2, 8, 12, 2), "mask": (2, 5)} | shapes
    return {name: np.zeros(shape, SPECS[name].dtype) for name, shape in given.items()}


def test_dimensions_of_good_inputs():
    found = check_inputs("pair", GRAPH, DIMENSIONS, inputs())
    assert found == {"batch": 2, "height": 64, "width": 96, "length": 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (inputs(images=(0, 3, 64, 96)), "images: batch 0 .*expected 1 or more"),
        (inputs(mask=(2, 17)), "mask: length 17 in shape .*expected 2 to 16"),
        (inputs(mask=(2, 1)), "mask: length 1 "),
        (inputs(mask=(3, 5)), "mask has the batch 3, but images has 2"),
        (inputs(images=(2, 3, 40, 96)), "images: height 40 .*32 or more, a multiple of 32"),
        (inputs(tokens=(2, 8, 8, 2)), "tokens has the width 64, but images has 96"),
        (inputs(images=(2, 4, 64, 96)), "images: expected the shape .*got .2, 4, 64, 96"),
        (inputs(mask=(10,)), "mask: expected the shape .batch, length., got .10,"),
        (inputs() | {"mask": np.zeros((2, 5))}, "mask: expected an array of bool, got float64"),
        (inputs() | {"mask": [[True]]}, "mask: expected an array of bool, got list"),
        (inputs() | {"text": np.zeros(1)}, "expected the inputs images, tokens, mask, got"),
        ({}, "expected the inputs images, tokens, mask, got none"),
    ],
)
def test_bad_inputs_are_named(given, message):
    with pytest.raises(ValueError, match=f"^graph pair:? ?.*{message}"):
        check_inputs("pair", GRAPH, DIMENSIONS, given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two graphs of torch.export: doubled and tripled numbers."""
    try:
        formats.need_packages("torch")
    except ValueError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("graphs")
    network, dimensions = torch.nn.Linear(1, 1), {"batch": Dimension(), "length": Dimension(2, 9)}
    shapes = {"text": ("batch", "length"), "more": ("batch", "length")}
    spec = {name: TensorSpec(name, "float32", shape) for name, shape in shapes.items()}
    graphs = {}
    for factor, name in ((2, "double"), (3, "triple")):
        part = Subgraph(name, network, lambda x, by=factor: x * by, ("text",), ("more",))
        program = trace(part, {"text": torch.ones(3, 4)}, shapes, dimensions)
        formats.drop_unused(program)
        mark = {stored.MODEL_KEY: "a" * 64, stored.PART_KEY: name}
        formats.write_torch(program, folder / f"{name}.pt2", mark)
        graphs[name] = Graph(f"{name}.pt2", (spec["text"],), (spec["more"],))
    metadata = Metadata(
        to="torch",
        fingerprint="a" * 64,
        model={},
        heads=(),
        files={f"{name}.pt2": stored.describe_file(folder / f"{name}.pt2") for name in graphs},
        graphs=graphs,
        dimensions=dimensions,
        image_transform={},
        text=stored.TextSettings(max_tokens=9, vocab_size=9),
    )
    (folder / "metadata.json").write_text(json.dumps(stored.to_json(metadata)))
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "graphs")


def test_a_graph_runs_at_other_sizes(folder):
    graphs = Graphs(folder, engine="torch")
    for shape in ((1, 2), (5, 9)):
        text = np.random.default_rng(0).random(shape, np.float32)
        np.testing.assert_array_equal(graphs.run("double", {"text": text})["more"], text * 2)
    with pytest.raises(ValueError, match="graph double: text: length 10"):
        graphs.run("double", {"text": np.zeros((1, 10), np.float32)})
    with pytest.raises(ValueError, match="no graph 'half'; it has double, triple"):
        graphs.run("half", {})


def test_unused_weights_are_not_stored(folder):
    with (folder / "double.pt2").open("rb") as file:
        assert not torch.export.load(file).state_dict


def write(folder, **changes):
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_byte(copied, place):
    path = copied / "triple.pt2"
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"triple\.pt2 is damaged or of another export"):
        Graphs(copied, engine="torch")


def test_code_in_files_of_torch_is_loaded_only_if_asked_for(
    copied, monkeypatch, capsys, scene_picture
):
    def loaded(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.export, "load", loaded)
    for load in (Graphs, fiber.runtime.load):
        with pytest.raises(
            ValueError, match=r"has \.pt2 files, and torch runs code .* engine='torch'"
        ):
            load(copied)
    assert main(["answer", str(scene_picture), "what is it?", "--model", str(copied)]) == 2
    assert "torch runs code that such a file contains" in " ".join(capsys.readouterr().err.split())
    # Checksums are compared first, and what a file says of itself is read without torch.
    with (copied / "triple.pt2").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"triple\.pt2 is damaged or of another export"):
        Graphs(copied, engine="torch")
    shutil.copy(copied / "double.pt2", copied / "triple.pt2")
    with pytest.raises(ValueError, match=r"triple\.pt2 is the graph 'double'; expected 'triple'"):
        Graphs(copied, engine="torch")


def test_a_truncated_file_and_a_missing_one(copied):
    path = copied / "double.pt2"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"double\.pt2 is damaged.*bytes"):
        Graphs(copied, engine="torch")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"double\.pt2 does not exist"):
        Graphs(copied, engine="torch")


def test_a_graph_of_another_part(copied):
    shutil.copy(copied / "double.pt2", copied / "triple.pt2")
    with pytest.raises(ValueError, match=r"triple\.pt2 is the graph 'double'; expected 'triple'"):
        Graphs(copied, engine="torch")


def test_a_mark_with_control_characters(copied):
    with zipfile.ZipFile(copied / "double.pt2", "w") as archive:
        archive.writestr("double/extra/fiber.json", json.dumps({stored.MODEL_KEY: "\x1b[2J" * 99}))
    with pytest.raises(ValueError, match=r"double\.pt2 is a graph of another model") as found:
        Graphs(copied, engine="torch")
    assert str(found.value).isprintable() and len(str(found.value)) < 300 + len(str(copied))


def test_a_graph_of_another_model(copied):
    # Files with an error are read for what they say of themselves.
    found = json.loads((copied / "metadata.json").read_text())
    found["files"]["double.pt2"]["sha256"] = "0" * 64
    write(copied, files=found["files"], fingerprint="b" * 64)
    with pytest.raises(ValueError, match=r"double\.pt2 is a graph of another model, aaaa.*bbbb"):
        Graphs(copied, engine="torch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "the graphs have version 2, expected 1"),
        ({"kind": "else"}, "field 'kind' is 'fiber graphs'"),
        ({"graphs": 3}, "graphs: expected dict, got 3"),
        ({"files": {}}, "graphs.double: files has no 'double.pt2'"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "files: expected the name of a file"),
        (
            {"dimensions": {}},
            "graphs.double.inputs.text.shape: expected an integer or one of none, got 'batch'",
        ),
        ({"dimensions": {"batch": {"step": 0}}}, "dimensions: expected multiples of a positive"),
        ({"text": 3}, "text: expected TextSettings, got 3"),
        ({"strange": 1}, "unknown field 'strange'"),
        ({"to": "tflite"}, "to: expected one of 'onnx', 'torch', 'openvino', got 'tflite'"),
    ],
)
def test_bad_metadata(copied, changes, message):
    write(copied, **changes)
    with pytest.raises(ValueError, match=rf"metadata\.json: .*{re.escape(message)}"):
        Graphs(copied, engine="torch")


def test_a_folder_without_graphs(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no exported graphs"):
        Graphs(tmp_path, engine="torch")
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Graphs(tmp_path, engine="torch")


def test_an_engine_of_another_format(folder):
    with pytest.raises(ValueError, match="engine 'onnxruntime' does not run the format 'torch'"):
        Graphs(folder, engine="onnxruntime")


def test_a_missing_engine_names_the_extra(copied, monkeypatch):
    write(copied, to="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fiber-vl\[onnx\]'"):
        Graphs(copied)


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform.squash(96, channel_order="bgr"),
        ImageTransform.center_crop(64, alpha="premultiply", mean=(0.5, 0.4, 0.3)),
        ImageTransform.shorter_side([64], 96),
    ],
)
def test_transforms_are_described(transform):
    described = json.loads(json.dumps(describe_transform(transform)))
    assert repr(read_transform(described)) == repr(transform)
    pixels, size = prepare_image(np.zeros((50, 70, 3), np.uint8), transform)
    assert pixels.shape[:2] == (1, 3)
    assert pixels.dtype == np.float32
    assert size[0] <= pixels.shape[2]


def test_transforms_that_augment_or_are_none():
    with pytest.raises(ValueError, match="augments images"):
        describe_transform(ImageTransform.shorter_side([64], 96, flip_probability=0.5))
    with pytest.raises(ValueError, match="image_transform: expected a name"):
        read_transform({"name": "__init__", "arguments": {}})
    with pytest.raises(ValueError, match=r"image_transform\.arguments\.sizze.*did you mean"):
        read_transform({"name": "squash", "arguments": {"sizze": 3}})


def test_nothing_of_the_runtime_imports_torch():
    code = (
        "import sys; import fiber.runtime.graphs, fiber.runtime.image_transform; "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_marks_are_found_without_an_engine(tmp_path):
    model, part = b"a" * 64, b"pair_mlm"
    onnx = b"\x08\x0ar\x4f\x0a\x0bfiber_model\x12\x40" + model
    onnx += b"r\x16\x0a\x0afiber_part\x12\x08" + part
    xml = b'<rt_info>\n<fiber_model value="%b" />\n<fiber_part value="%b" />' % (model, part)
    for name, content in (("pair.onnx", onnx), ("pair.xml", xml)):
        (tmp_path / name).write_bytes(content)
        found = _read_mark(tmp_path / name)
        assert found == {stored.MODEL_KEY: "a" * 64, stored.PART_KEY: "pair_mlm"}
        # A file that is no text, or ends within a mark, says nothing.
        (tmp_path / name).write_bytes(content.replace(model, b"\xff" * 64))
        assert stored.MODEL_KEY not in _read_mark(tmp_path / name)
