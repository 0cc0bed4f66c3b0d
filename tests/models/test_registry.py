"""A package adds a model family by an entry point: its models are saved, loaded and recognized."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from fiber.checkpoints.convert import convert
from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import EncoderStates, load_stored, read_init, read_model
from fiber.checkpoints.model_dir import StoredModel, load_model, save_model
from fiber.config import preset
from fiber.config_io import from_dict, to_dict
from fiber.data import ImageTransform
from fiber.models import registry
from fiber.models.encoders.keys import EncoderFormat, EncoderLayout, weight_and_bias
from fiber.models.registry import (
    Architecture,
    Network,
    architecture_of,
    build_empty,
    build_model,
    encoder_format,
    inference_transform,
    recognize,
)
from fiber.training.config.run import load_recipe
from tests.published_keys import coarse_keys, fine_keys


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Config of a toy model: patches with a position embedding, words, and a VQA head."""

    family: Literal["toy"] = "toy"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    image_size: int = 8
    width: int = 6
    vocab_size: int = 20
    num_answers: int = 3
    heads: tuple[str, ...] = ("vqa",)

    def with_image_size(self, image_size):
        return dataclasses.replace(self, image_size=image_size)


class ToyBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patches = nn.Conv2d(3, config.width, 4, stride=4)
        self.positions = nn.Parameter(torch.randn((config.image_size // 4) ** 2, config.width))
        self.words = nn.Embedding(config.vocab_size, config.width)


class ToyNetwork(Network):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = ToyBackbone(config)
        self.vqa_head = nn.Linear(2 * config.width, config.num_answers)


def image_keys(config, layout):
    prefix = layout.prefix
    keys = weight_and_bias("backbone.patches", f"{prefix}conv")
    return keys | {"backbone.positions": (f"{prefix}positions",)}


def toy_keys(config):
    return {
        **image_keys(config, EncoderLayout("toy_image.")),
        "backbone.words.weight": ("toy_text.words",),
        # Published as two layers.
        "vqa_head.weight": ("toy_head.first", "toy_head.rest"),
        "vqa_head.bias": ("toy_head.bias",),
    }


def infer_toy(state, stored):
    config = from_dict(ToyConfig, stored["toy"])
    if state["toy_image.conv.weight"].shape[0] != config.width:
        raise ValueError(f"width {config.width} contradicts the tensors")
    return config


def resize(state, config):
    rows = (config.image_size // 4) ** 2
    return {
        name: tensor[torch.arange(rows) % len(tensor)] if name.endswith("positions") else tensor
        for name, tensor in state.items()
    }


TOY = Architecture(
    family="toy",
    title="Toy",
    config_class=ToyConfig,
    network=ToyNetwork,
    recognizes=lambda names: any(name.startswith("toy_head.") for name in names),
    published_key="model",
    published_channel_order="bgr",
    first_convolution="backbone.patches.weight",
    infer_config=infer_toy,
    stored_config=lambda config: {"toy": to_dict(config)},
    keys=toy_keys,
    ignored_key=lambda name, config: "a buffer" if name == "toy_image.buffer" else None,
    encoders=(
        EncoderFormat(
            name="clip",
            title="CLIP",
            side="image",
            layout=lambda names: EncoderLayout() if "conv.weight" in names else None,
            keys=image_keys,
            ignored=lambda config: ((r"logit_scale", "temperature of CLIP"),),
        ),
    ),
    resize=resize,
    main_sizes=lambda config: {"width": config.width},
    transform=lambda config, task: ImageTransform.squash(config.image_size),
    describe=lambda config: f"toy model of width {config.width}",
)


ARCHITECTURES = (TOY,)
#: Entry points that cannot be used, and why.
TAKEN = (dataclasses.replace(TOY, family="fiber"),)
NO_TUPLE = 7
UNUSABLE = {
    "absent": ("no_such_package.of_a_family:ARCHITECTURES", "no_such_package"),
    "later": (f"{__name__}:NO_SUCH_NAME", "NO_SUCH_NAME"),
    "number": (f"{__name__}:NO_TUPLE", "expected a tuple of Architecture, got 7"),
    "taken": (f"{__name__}:TAKEN", "'fiber' exists already"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install packages with entry points, as (name, target) pairs, for the time of a test."""

    def put(package, **targets):
        folder = tmp_path / "packages" / f"{package}-1.5.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: 1.5\n")
        lines = [f"[{registry.GROUP}]", *(f"{name} = {target}" for name, target in targets.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder.parent)
        registry.installed_families.cache_clear()

    yield put
    monkeypatch.undo()
    registry.installed_families.cache_clear()


@pytest.fixture
def toy(install):
    install("toy_package", toy=f"{__name__}:ARCHITECTURES")
    torch.manual_seed(0)
    return build_model(ToyConfig(num_answers=4))


def check_equal(network, expected):
    assert type(network) is type(expected)
    state = network.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_model_folder_round_trip(toy, tmp_path):
    save_model(toy, tmp_path / "toy", answers=("a", "b", "c", "d"))
    stored = load_model(tmp_path / "toy")
    assert stored.config == toy.config
    check_equal(stored.network, toy)
    assert inference_transform(stored.config) != inference_transform(preset("micro"))
    larger = load_model(tmp_path / "toy", image_size=16)
    assert larger.config.image_size == 16
    assert torch.equal(larger.network.backbone.positions[4:8], toy.backbone.positions)
    with pytest.raises(ValueError, match=r"got 2 answers, expected 4"):
        load_stored(tmp_path / "toy", answers=["a", "b"], device="cpu")


def test_other_families_are_unaffected(toy, tmp_path):
    micro = build_model(preset("micro"))
    save_model(micro, tmp_path / "micro")
    assert "family" not in json.loads((tmp_path / "micro" / "config.json").read_text())["model"]
    check_equal(load_model(tmp_path / "micro").network, micro)
    assert recognize(coarse_keys()).title == "coarse FIBER"
    assert recognize(fine_keys("v3")).title == "fine FIBER"


def test_families_that_cannot_be_used_are_named_and_break_nothing(toy, tmp_path, install):
    save_model(toy, tmp_path / "toy")
    install("other_package", **{name: target for name, (target, _) in UNUSABLE.items()})
    with pytest.warns(RuntimeWarning) as record:
        check_equal(load_model(tmp_path / "toy").network, toy)
    lines = [str(each.message) for each in record]
    for line, (name, (target, why)) in zip(lines, UNUSABLE.items(), strict=True):
        assert f"{name!r} of other_package 1.5 ({target})" in line
        assert why in line
        assert "\n" not in line
    config = tmp_path / "toy" / "config.json"
    config.write_text(config.read_text().replace('"toy"', '"absent"'))
    with pytest.raises(ValueError, match=r"'absent'.* or 'toy'; .*no_such_package"):
        load_model(tmp_path / "toy")


def test_entry_points_are_not_read_for_models_of_this_package(tmp_path, monkeypatch):
    def read():
        raise AssertionError("entry points were read")

    registry.installed_families.cache_clear()
    monkeypatch.setattr(registry, "entry_points", read)
    micro = build_model(preset("micro"))
    save_model(micro, tmp_path / "micro")
    assert architecture_of(load_model(tmp_path / "micro").config).stage == "coarse"
    write_published(micro, tmp_path / "micro.pth")
    assert isinstance(read_init(tmp_path / "micro.pth"), StoredModel)
    write_encoders(micro, tmp_path / "encoders")
    report = initialize(micro, read_init(tmp_path / "encoders"))
    assert report.taken
    assert encoder_format(fine_keys("v3")) is None


def test_configs_of_this_package_are_read_without_their_networks(toy):
    assert list(registry.CONFIGS) == list(registry.FAMILIES)
    for name in registry.FAMILIES:
        for entry in registry.own_architectures(name):
            assert entry.family == name
            config = registry.read_config({} if name == "fiber" else {"family": name})
            assert type(config) is entry.config_class
    assert registry.read_config(to_dict(toy.config)) == toy.config
    assert registry.read_config(toy.config) is toy.config
    for value, shown in ((7, "7"), ("toy", "'toy'"), (ToyConfig, "<type>")):
        with pytest.raises(ValueError, match=rf"run\.model: .*{shown}"):
            registry.read_config(value, "run.model")


def test_unknown_family_is_rejected(toy, tmp_path, monkeypatch):
    save_model(toy, tmp_path / "toy")
    monkeypatch.undo()
    registry.installed_families.cache_clear()
    with pytest.raises(ValueError, match=r"'toy'.*fiber"):
        load_model(tmp_path / "toy")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_file_is_recognized(toy, tmp_path, suffix):
    path = tmp_path / f"toy{suffix}"
    state = write_published(toy, path)
    assert torch.equal(state["toy_image.conv.weight"], toy.backbone.patches.weight.flip(1))
    assert recognize(state) is TOY
    stored = read_model(path)
    assert stored.config == dataclasses.replace(toy.config, channel_order="bgr")
    new = build_model(toy.config)
    assert initialize(new, stored, stored.answers).created == ()
    check_equal(new, toy)
    report = convert(path, tmp_path / "directory", "fiber")
    assert "toy model of width 6" in report
    check_equal(load_model(tmp_path / "directory").network, stored.network)


def test_mismatched_published_file_is_rejected(toy, tmp_path):
    state = write_published(toy, tmp_path / "toy.pth")
    state |= {"toy_image.buffer": torch.zeros(1), "unheard.of": torch.zeros(1)}
    del state["toy_head.bias"]
    settings = {"config": TOY.stored_config(toy.config)}
    torch.save({"model": state, "hyper_parameters": settings}, tmp_path / "toy.pth")
    with pytest.raises(ValueError, match=r"(?s)2 .*missing toy_head.bias.*unknown unheard.of"):
        read_model(tmp_path / "toy.pth")


def test_encoders_round_trip(toy, tmp_path):
    write_encoders(toy, tmp_path / "encoders")
    assert [path.name for path in (tmp_path / "encoders").iterdir()] == ["clip.safetensors"]
    start = read_init(tmp_path / "encoders")
    assert isinstance(start, EncoderStates)
    new = build_model(dataclasses.replace(toy.config, channel_order="bgr", image_size=16))
    report = initialize(new, start)
    assert set(report.taken) == set(image_keys(toy.config, EncoderLayout()))
    assert torch.equal(new.backbone.patches.weight, toy.backbone.patches.weight.flip(1))
    assert torch.equal(new.backbone.positions[:4], toy.backbone.positions)
    with pytest.raises(
        ValueError, match=r"a CLIP encoder, which the model has not; expected Swin or RoBERTa"
    ):
        initialize(build_model(preset("micro")), start)


def test_different_size_or_family_cannot_initialize(toy):
    wider = build_model(dataclasses.replace(toy.config, width=8))
    with pytest.raises(ValueError, match="width 6, expected 8"):
        initialize(wider, StoredModel(network=toy))
    with pytest.raises(ValueError, match="Toy model; expected a coarse FIBER model"):
        initialize(build_model(preset("micro")), StoredModel(network=toy))


@pytest.mark.parametrize(
    "config",
    [
        preset("micro"),
        preset("small"),
        preset("small", stage="fine"),
        load_recipe("small_meter").model,
    ],
    ids=["micro", "small", "small fine", "METER"],
)
def test_empty_models_have_the_tensors_of_whole_ones(config):
    empty, whole = build_empty(config).state_dict(), build_model(config).state_dict()
    assert [*empty] == [*whole]
    for key, tensor in empty.items():
        assert tensor.is_meta, key
        assert (tensor.shape, tensor.dtype) == (whole[key].shape, whole[key].dtype), key
