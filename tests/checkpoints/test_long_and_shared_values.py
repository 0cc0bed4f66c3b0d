"""Checkpoints whose values are long, shared or of other types: short errors, at once."""

import json
import pickle
import shutil
import struct

import pytest
import torch

import fiber
from fiber.checkpoints.convert import convert
from fiber.checkpoints.load import load_stored, read_model
from fiber.checkpoints.mapped_file import read_safetensors
from fiber.checkpoints.torch_file import read_checkpoint
from tests.hostile_cases import zipped
from tests.hostile_files import Case, read_limited, writer


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


LONG = "A" * 1_000_000
#: Puts "torch" and the long text into the memo, as 1 and 2.
HEAD = b"\x80\4N" + text("torch") + b"r\1\0\0\0N" + text(LONG) + b"r\2\0\0\0"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\4tQK\0K\4\x85K\1\x85\x89NtR"
)
PICKLES = {
    "classes that are kept": HEAD + b"h\1h\2\x93" * 150_000 + b"N.",
    "classes that are dropped": HEAD + b"h\1h\2\x930" * 150_000 + b"N.",
    "modules": HEAD + b"h\2h\1\x930" * 150_000 + b"N.",
    "short names that are combined": b"\x80\4N"
    + text("B" * 200)
    + b"r\1\0\0\0"
    + b"h\1h\1\x93" * 150_000
    + b"N.",
    "storages": HEAD + b"(h\1h\2h\1h\1K\4tQ" * 100_000 + b"N.",
    "keys of storages": HEAD
    + text("storage")
    + b"r\3\0\0\0ctorch\nFloatStorage\nr\4\0\0\0"
    + b"(h\3h\4h\2h\1K\4tQ" * 100_000
    + b"N.",
    "names of tensors": b"\x80\4N}r\1\0\0\0("
    + b"ctorch\nA\nr\2\0\0\0)Rr\5\0\0\0"
    + TENSOR
    + b"r\6\0\0\0"
    + b"h\2)Rh\6" * 150_000
    + b"u.",
    "a long name of a tensor": b"\x80\4N}(" + text(LONG) + TENSOR + b"u.",
    "a name with control characters": b"\x80\4N}("
    + text("\x1b]0;owned\x07\x1b[2J")
    + TENSOR
    + b"u.",
    "a number that is long": b"\x80\2}\x8b" + struct.pack("<i", 10**6) + b"\7" * 10**6 + b"Ns.",
}


def legacy(keys):
    """A file in the format of torch.save before 1.6 with these keys of storages."""
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
    return b"".join(pickle.dumps(each, 2) for each in start) + keys


LEGACY = {
    "a key of 2^60 leaves": b"\x80\2]N" + b"2\x86" * 60 + b"a.",
    "a long key": b"\x80\2]" + text(LONG) + b"a.",
    "a dict": b"\x80\2}.",
    "a number": b"\x80\2K\1.",
}


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def with_header(entries, size=4):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def safetensors(shape, size):
    return with_header({"a": ENTRY | {"shape": shape, "data_offsets": [0, size]}}, size)


SAFETENSORS = {
    "100,000 dimensions": safetensors([1] * 100_000, 4),
    "65 dimensions": safetensors([1] * 65, 4),
    "a shape whose strides overflow": safetensors([0, 2**62, 2**62], 0),
    "a size that overflows": safetensors([0, 2**63], 0),
    "a long name": with_header({LONG: ENTRY}),
    "a name with control characters": with_header({"\x1b[2J": ENTRY}),
    "a dtype with control characters": with_header({"a": ENTRY | {"dtype": "\x1b[2J"}}),
}


@pytest.mark.parametrize(
    ("name", "data", "read"),
    [
        *((f"a.ckpt {name}", zipped(each), read_checkpoint) for name, each in PICKLES.items()),
        *((f"a.ckpt {name}", legacy(each), read_checkpoint) for name, each in LEGACY.items()),
        *((f"a.safetensors {name}", each, read_safetensors) for name, each in SAFETENSORS.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_is_refused_within_limits(tmp_path, name, data, read):
    def refused(path):
        with pytest.raises(ValueError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()

    path = tmp_path / name.partition(" ")[0]
    (result,) = read_limited([Case("", name, writer(data), refused)], path)
    assert result.outcome == "read" and result.is_allowed, result


@pytest.mark.parametrize("dimensions", [0, 1, 64])
def test_safetensors_of_up_to_64_dimensions_are_read(tmp_path, dimensions):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors([1] * dimensions, 4))
    assert read_safetensors(path).tensors["a"].shape == (1,) * dimensions


def test_strides_are_those_of_a_contiguous_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors([2, 1, 3, 4], 96))
    assert read_safetensors(path).tensors["a"].stride() == torch.empty(2, 1, 3, 4).stride()
    path.write_bytes(safetensors([2, 0, 2**40], 0))
    assert read_safetensors(path).tensors["a"].shape == (2, 0, 2**40)


def nested(levels=60):
    """A tuple of 2^levels leaves."""
    value = (1,)
    for _ in range(levels):
        value = (value, value)
    return value


CONFIGS = {
    "num_heads": {"num_heads": nested()},
    "max_text_len": {"max_text_len": nested()},
    "a long number": {"num_heads": 10**5000},
    "image_size": {"fiber_model": {"image_size": nested()}},
    "stage": {"fiber_model": {"stage": nested()}},
    "family": {"fiber_model": {"family": nested()}},
    "depths": {"fiber_model": {"swin": {"depths": (nested(),) * 4}}},
    "many depths": {"fiber_model": {"swin": {"depths": (-1,) * 5000}}},
    "a number as a key": {"fiber_model": {0: 1}},
    "None as a key": {"fiber_model": {None: 1}},
    "a long key": {"fiber_model": {LONG: 1}},
    "a number in a size": {"fiber_model": {"swin": {"embed_dim": 10**400}}},
    "a number in a rate": {"fiber_model": {"swin": {"mlp_ratio": 10**400}}},
}


@pytest.fixture(scope="module")
def published(micro_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "a.ckpt"
    convert(micro_models["coarse"], path, "published")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_stored_config_is_refused_within_limits(published, tmp_path, config):
    own = published["hyper_parameters"]["config"]
    if "fiber_model" in config:
        config = {"fiber_model": own["fiber_model"] | config["fiber_model"]}
    content = published | {"hyper_parameters": {"config": own | config}}

    def refused(path):
        with pytest.raises(ValueError) as caught:
            read_model(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 1000

    case = Case("", "", lambda path: torch.save(content, path), refused)
    (result,) = read_limited([case], tmp_path / "a.ckpt")
    assert result.outcome == "read" and result.is_allowed, result


@pytest.mark.parametrize(
    "text", ["3", "[]", '{"model": []}', '{"model": {"family": []}}', "[" * 9999]
)
def test_a_stage_whose_config_is_none_is_refused_by_name(micro_models, tmp_path, text):
    folder = shutil.copytree(micro_models["fine"], tmp_path / "run" / "fine")
    (folder / "config.json").write_text(text)
    for load in (fiber.load, lambda path: load_stored(path, heads=["vqa"])):
        with pytest.raises(ValueError, match=r"fine/config\.json"):
            load(tmp_path / "run")


def test_stored_answers_of_another_number_are_refused_by_name(micro_models, tmp_path):
    folder = shutil.copytree(micro_models["coarse"], tmp_path / "coarse")
    (folder / "answers.json").write_text('["yes"]')
    with pytest.raises(ValueError, match=r"/coarse: got 1 answers, expected \d+"):
        fiber.load(folder)
