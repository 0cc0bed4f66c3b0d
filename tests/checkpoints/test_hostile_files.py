"""Hostile model folders and checkpoint files: errors name the file and the field, at once."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiber.checkpoints import model_dir
from fiber.checkpoints.convert import convert
from fiber.checkpoints.load import read_init, read_model
from fiber.checkpoints.model_dir import load_model
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.checkpoints.vocabulary.sources import open_answers, open_tokenizer
from tests import hostile_cases
from tests.hostile_files import Case, read_limited, writer
from tests.peer_versions import needs

ROOT = Path(__file__).parents[2]
COMPLEX = pytest.param(
    torch.complex64, marks=needs("safetensors", "0.7", "it did not write complex tensors")
)


@pytest.fixture
def folder(micro_models, tmp_path):
    """A copy of the fine micro model."""
    return Path(shutil.copytree(micro_models["fine"], tmp_path / "model"))


def change_config(folder, name, value):
    content = json.loads((folder / "config.json").read_text())
    *parents, last = name.split(".")
    values = content["model"]
    for parent in parents:
        values = values[parent]
    values[last] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture
def no_network(monkeypatch):
    """Building a network is an error."""

    def fail(config):
        raise AssertionError("a network was built")

    monkeypatch.setattr(model_dir, "build_empty", fail)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("roberta.num_layers", 5, "is 5, but model.safetensors has 4"),
        ("roberta.num_layers", 10**12, "expected 1 to 1000, got 1000000000000"),
        ("swin.depths", [1, 1, 900, 2], "(1, 1, 900, 2), but model.safetensors has (1, 1, 2, 2)"),
        ("swin.depths", [1, 1, 10**9, 2], "expected 1 to 1000, got (1, 1, 1000000000, 2)"),
        ("swin.embed_dim", -1, "expected 1 to 65536, got -1"),
        ("swin.embed_dim", 32, "is 32, but model.safetensors has 16"),
        ("swin.patch_size", 8, "expected (16, 32, 64, 128, 256), for swin.patch_size 8, got (8, "),
        ("swin.num_heads", [2, 2, 2, 4], "but model.safetensors has (1, 2, 2, 4)"),
        ("swin.window_size", 4, "is 4, but model.safetensors has 2"),
        ("swin.mlp_ratio", 1e300, "expected 0.015625 to 64, got 1e+300"),
        ("roberta.num_heads", 0, "expected 1 to 65536, got 0"),
        ("roberta.vocab_size", 2**70, "expected 2 to 16777216, got 1180591620717411303424"),
        ("roberta.vocab_size", 321, "is 321, but model.safetensors has "),
        ("roberta.width", None, "expected int, got None"),
        ("roberta.max_positions", 67, "is 67, but model.safetensors has 66"),
        ("roberta.dropout", 10**400, "expected 0 to 1, got inf"),
        ("fusion.num_fused_layers", 4, "is 4, but model.safetensors has 3"),
        ("detector.num_blocks", 900, "is 900, but model.safetensors has 1"),
        ("detector.channels", [32], "expected int, got [32]"),
        (
            "detector.strides",
            [8] * 10**5,
            "expected (8, 16, 32, 64, 128), for swin.patch_size 4, got",
        ),
        ("detector.norm_groups", 5, "expected a divisor of detector.channels (32), got 5"),
        ("roberta.vocab_size", 1, "expected 2 to 16777216, got 1"),
        ("image_size", 0, "expected 1 to 65536, got 0"),
    ],
)
def test_sizes_are_checked_before_a_network_is_built(folder, no_network, name, value, found):
    change_config(folder, name, value)
    with pytest.raises(ValueError, match=re.escape(found)) as caught:
        load_model(folder)
    assert str(folder / "config.json") in str(caught.value)
    assert name in str(caught.value)


def test_sizes_outside_the_table_are_checked_before_memory_is_allocated(folder, monkeypatch):
    change_config(folder, "swin.mlp_ratio", 64)
    monkeypatch.setattr(torch.nn.Module, "to_empty", None)
    with pytest.raises(ValueError, match=r"mlp\.0\.weight has shape \(64, 16\), expected \(1024, "):
        load_model(folder)


@pytest.mark.parametrize("text", hostile_cases.CONFIG_TEXTS)
def test_config_that_is_no_config_is_named(folder, no_network, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(folder / "config.json"))):
        load_model(folder)


@pytest.mark.parametrize("text", ["null", "3", '"yes"', "[1]", '{"a": 1}'])
def test_answers_that_are_no_strings_are_named(folder, text):
    (folder / "answers.json").write_text(text)
    with pytest.raises(ValueError, match=r"answers\.json: answers.*expected a (list|string)"):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "answers.json", "classes.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is a .*{kind}; expected a reg"):
        load_model(folder)


def test_pipes_are_refused_as_single_files(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (read_model, read_init, read_checkpoint, open_tokenizer, open_answers):
        with pytest.raises(ValueError, match=r"pipe is a named pipe; expected a regular file"):
            read(pipe)


def test_large_json_files_are_refused(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(20 << 20)
    with pytest.raises(ValueError, match=r"config\.json has 20971520 bytes; expected at most 1677"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "answers.json", "classes.json"])
def test_json_of_many_values_takes_little_memory(folder, name):
    """A file of 16 MB, whose values would take more than half a gigabyte."""
    data = b"[" + b",".join([b'{"a":{}}'] * 1_800_000) + b"]"
    case = Case("folder", name, writer(data), lambda path: load_model(path.parent))
    (result,) = read_limited([case], folder / name)
    assert result.outcome == "ValueError", result
    assert result.extra_bytes < 200_000_000


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, COMPLEX])
def test_weights_of_other_types_are_refused(folder, dtype, tmp_path):
    state = load_file(folder / "model.safetensors")
    name = "backbone.text.layers.0.mlp.0.weight"
    state[name] = torch.ones(state[name].shape, dtype=dtype)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors .*\n.*{name} has dtype {dtype}"):
        load_model(folder)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.int32, COMPLEX])
def test_published_weights_of_other_types_are_refused(micro_models, tmp_path, suffix, dtype):
    path = tmp_path / f"published{suffix}"
    convert(micro_models["coarse"], path, "published")
    state, config, _ = read_checkpoint(path)
    name = "text_transformer.encoder.layer.0.intermediate.dense.weight"
    state = {key: tensor.clone() for key, tensor in state.items()}
    state[name] = state[name].to(dtype)
    settings = {"config": dict(config)}
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "hyper_parameters": settings}, path)
    else:
        save_file(state, path, {"hyper_parameters": json.dumps(settings)})
    with pytest.raises(ValueError, match=rf"published.*\n.*{name} has dtype {dtype}"):
        read_model(path)


def test_half_precision_weights_are_loaded(folder):
    # Copies, since load_file may map the file that is overwritten.
    state = {n: tensor.clone() for n, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "model.safetensors")
    loaded = load_model(folder).network.state_dict()
    assert all(torch.equal(loaded[name], state[name].half().float()) for name in state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_warned_about(folder, value):
    state = load_file(folder / "model.safetensors")
    state["head.bias"].fill_(value)
    state["backbone.text.layers.0.mlp.0.weight"][3, 5] = value
    save_file(state, folder / "model.safetensors")
    with pytest.warns(RuntimeWarning) as caught:
        load_model(folder)
    (message,) = [str(each.message) for each in caught if each.category is RuntimeWarning]
    assert "model.safetensors: 2 of " in message
    assert "head.bias (1 of 1 values)" in message
    assert "backbone.text.layers.0.mlp.0.weight (1 of 2048 values)" in message


def test_huge_but_finite_weights_are_not_warned_about(folder, recwarn):
    state = load_file(folder / "model.safetensors")
    state["backbone.text.layers.0.mlp.0.weight"].fill_(3e38)
    save_file(state, folder / "model.safetensors")
    load_model(folder)
    assert not [each for each in recwarn if each.category is RuntimeWarning]


def test_published_nan_weights_are_warned_about(micro_models, tmp_path):
    path = tmp_path / "published.ckpt"
    convert(micro_models["coarse"], path, "published")
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {n: t * float("nan") for n, t in content["state_dict"].items()}
    torch.save(content, path)
    with pytest.warns(RuntimeWarning, match=r"published\.ckpt: (\d+) of \1 tensors have values th"):
        read_model(path)


def test_small_file_cannot_describe_a_large_model(micro_models, tmp_path):
    path = tmp_path / "published.ckpt"
    convert(micro_models["coarse"], path, "published")
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {name: torch.zeros(()).expand(state[name].shape) for name in state}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"tensors of \d+ bytes share storages of "):
        read_model(path)


def test_numbers_in_published_keys_do_not_set_the_depth(micro_models, tmp_path, monkeypatch):
    path = tmp_path / "published.ckpt"
    convert(micro_models["coarse"], path, "published")
    content = torch.load(path, weights_only=True)
    for number in (900, 10**9):
        extra = {f"text_transformer.encoder.layer.{number}.alpha_t2i": torch.zeros(1)}
        torch.save({"state_dict": content["state_dict"] | extra}, path)
        with pytest.raises(ValueError, match=r"published\.ckpt"):
            read_model(path)


def test_deeply_nested_metadata_is_refused(micro_models, tmp_path):
    path = tmp_path / "published.safetensors"
    save_file({"a": torch.ones(2)}, path, {"hyper_parameters": "[" * 200_000})
    with pytest.raises(ValueError, match=r"published\.safetensors: hyper_parameters .*JSON"):
        read_model(path)


WITHOUT_PICKLE = """
import pickle, sys, warnings
from pathlib import Path
import torch
def fail(*arguments, **options):
    raise AssertionError("a pickle was loaded")
class Fails:
    __init__ = fail
pickle.load = pickle.loads = pickle._load = pickle._loads = fail
pickle.Unpickler = pickle._Unpickler = Fails
torch.load = torch.jit.load = fail
import fiber
from fiber.checkpoints.load import read_init
folder = Path(sys.argv[1])
for path in sorted(folder.iterdir()):
    read = read_init if path.name == "encoders" else fiber.load
    read(path)
    print(path.name)
"""


@pytest.mark.slow
def test_every_kind_of_file_is_loaded_without_pickle(micro_models, tmp_path):
    torch_load = torch.load
    for stage, model in micro_models.items():
        shutil.copytree(model, tmp_path / f"{stage}_folder")
        for suffix in (".ckpt", ".pth", ".pt", ".bin", ".safetensors"):
            convert(model, tmp_path / f"{stage}{suffix}", "published")
        content = torch_load(tmp_path / f"{stage}.ckpt", weights_only=True)
        legacy = tmp_path / f"{stage}_legacy.ckpt"
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        torch.save(content, tmp_path / f"{stage}_protocol_4.ckpt", pickle_protocol=4)
    convert(micro_models["coarse"], tmp_path / "encoders", "towers")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 17
    command = [sys.executable, "-c", WITHOUT_PICKLE, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == names, ran.stderr


def test_no_source_file_loads_pickles():
    pattern = re.compile(r"weights_only=False|pickle\.loads?\(|jit\.load")
    for path in (ROOT / "python").rglob("*.py"):
        # Comments and docstrings may name what is not used.
        code = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text(encoding="utf-8"))
        assert not pattern.search(code), path
        if "checkpoints" in path.parts:
            assert not re.search(r"import pickle$|torch\.load\(", code, re.MULTILINE), path


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.checkpoints.weights import copy_weights
own = {name: torch.empty(24, 1 << 20) for name in "ab"}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
state, _, release = read_checkpoint(Path(sys.argv[1]))
copy_weights(own, {name: state[name].chunk(3) for name in own}, release=release)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
assert torch.equal(own["a"], state["a"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_copied_weights_are_not_kept_twice(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {name: torch.rand(24, 1 << 20) for name in "ab"}
    torch.save(state, path) if suffix == ".ckpt" else save_file(state, path)
    command = [sys.executable, "-c", MEMORY, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    # 192 MiB of tensors.
    assert float(ran.stdout) < 250


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pickle", "zip", "tokenizer", "folder"])
def test_hostile_files_stay_within_limits(kind):
    """A file of each case and a mutant; for model folders every 20th."""
    every = "20" if kind == "folder" else "1"
    command = ["-m", "tests.hostile_files", "--mutants", "1", "--only", kind, "--every", every]
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
