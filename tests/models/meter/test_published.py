"""Published files of METER are recognized, read strictly, and written back."""

import re

import pytest
import torch

import fiber
from fiber import recipes
from fiber.checkpoints.export import write_published
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import read_model
from fiber.config_io import replace_fields
from fiber.inference import Model
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import is_meter, resize_tables
from fiber.models.meter.released import RELEASED
from fiber.models.registry import architecture_of, build_model, recognize
from fiber.training.config.run import load_recipe
from tests.golden import METER
from tests.parity.meter_case import TASKS, MeterCase
from tests.published_keys import METER_FILES as FILES
from tests.published_keys import coarse_keys, fine_keys, write_small_meter_file
from tests.published_keys import meter_shapes as keys_of

#: Heads of each file, by the last part of its name, and its image encoder and size.
HEADS = {
    "pretrain": ("itm", "mlm"),
    "vqa": ("vqa",),
    "nlvr2": ("nlvr2",),
    "snli": ("snli",),
    "flickr": ("itm", "rank"),
    "coco": ("itm", "rank"),
}


def meta_state(shapes):
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_published_file_is_recognized(name):
    shapes, stored = keys_of(name), FILES[name]["config"]
    assert len(shapes) == FILES[name]["entries"]
    state = meta_state(shapes)
    architecture = recognize(state)
    assert architecture.title == "METER"
    for given in ({}, stored):
        config = architecture.infer_config(state, given)
        assert config.heads == HEADS[re.search(r"_([a-z0-9]+)\.ckpt", name)[1]]
        assert config.image_size == stored["image_size"]
        assert config.max_tokens == stored["max_text_len"]
        assert config.image_encoder == ("swin" if "swin" in name else "clip")
        assert (config.cross.num_heads, config.roberta.num_heads) == (12, 12)
        # Strict both ways: every tensor is mapped with its shape or ignored for a reason.
        mapped = {theirs for names in architecture.keys(config).values() for theirs in names}
        assert mapped <= set(shapes)
        rest = [n for n in shapes if n not in mapped]
        assert all(architecture.ignored_key(n, config) for n in rest)
        with torch.device("meta"):
            own = architecture.network(config).state_dict()
        for ours, theirs in architecture.keys(config).items():
            joined = [sum(shapes[n][0] for n in theirs), *shapes[theirs[0]][1:]]
            assert list(own[ours].shape) == joined
        assert set(own) == set(architecture.keys(config))


def test_families_are_told_apart():
    assert is_meter(keys_of("meter_swinbase_384_roberta_pretrain.ckpt"))
    for keys in (coarse_keys(), fine_keys("v3")):
        assert not is_meter(keys)
    assert recognize(coarse_keys()).title == "coarse FIBER"


@pytest.mark.parametrize("name", FILES)
def test_every_published_file_is_read_and_written_back_bit_for_bit(name, tmp_path):
    """With all names of the file, its depths and positions, and a quarter of its widths."""
    given = write_small_meter_file(name, tmp_path / name)
    found = read_model(tmp_path / name)
    architecture = architecture_of(found.config)
    assert found.config.heads == RELEASED[name]
    written = write_published(found.network, tmp_path / "written.ckpt")
    # Each tensor of the file is written, or ignored for a reason.
    assert set(written) == {key for key in given if not architecture.ignored_key(key, found.config)}
    assert set(found.ignored) == set(given) - set(written)
    assert all(torch.equal(tensor, given[key]) for key, tensor in written.items())
    again = read_model(tmp_path / "written.ckpt")
    assert again.config == found.config
    own = found.network.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in again.network.state_dict().items())


@pytest.mark.parametrize(
    "removed",
    [
        "cross_modal_image_layers.",
        "cross_modal_text_layers.",
        "vit_model.visual.",
        "text_transformer.",
        ("cross_modal_image_layers.", "cross_modal_text_layers."),
    ],
)
def test_a_file_of_which_a_part_is_missing_is_still_meters(tmp_path, removed):
    model = MeterCase(METER / "clip_micro.json").model("vqa")
    path = tmp_path / "model.ckpt"
    write_published(model, path)
    content = torch.load(path, weights_only=False)
    state = content["state_dict"]
    content["state_dict"] = {n: t for n, t in state.items() if not n.startswith(removed)}
    torch.save(content, path)
    # Without CLIP, the image encoder is taken for Swin's.
    missing = {"vit_model.visual.": "vit_model.patch_embed."}.get(removed, removed)
    missing = missing if isinstance(missing, str) else missing[1]
    with pytest.raises(ValueError, match=rf"METER checkpoint: (?s:.*)missing {re.escape(missing)}"):
        fiber.load(path)


def test_a_file_without_fusion_is_of_neither_family(tmp_path):
    """METER's Swin encoder has the names of FIBER's."""
    write_published(MeterCase(METER / "swin_micro.json").model("vqa"), tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=False)
    state = content["state_dict"]
    layers = ("cross_modal_image_layers.", "cross_modal_text_layers.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(layers)}
    torch.save({"state_dict": state}, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"fusion are missing.*FIBER.*cross_modal_image_layers"):
        fiber.load(tmp_path / "cut.ckpt")


#: Small encoders and fusion; image sizes and windows are those of the recipe.
MICRO = {
    "clip.width": 64,
    "clip.num_heads": 1,
    "clip.num_blocks": 1,
    "swin.embed_dim": 32,
    "swin.depths": (1, 1, 1, 1),
    "swin.num_heads": (1, 2, 4, 8),
    **{f"{text}.width": 64 for text in ("roberta", "bert")},
    **{f"{text}.num_heads": 1 for text in ("roberta", "bert")},
    **{f"{text}.num_layers": 1 for text in ("roberta", "bert")},
    **{f"{text}.vocab_size": 128 for text in ("roberta", "bert")},
    "cross.width": 64,
    "cross.num_heads": 1,
    "cross.num_layers": 1,
}


@pytest.mark.parametrize("image", ["clip", "swin"])
@pytest.mark.parametrize("text", ["roberta", "bert"])
@pytest.mark.parametrize("name", [name for name in recipes.names() if "meter" in name])
def test_the_model_of_a_recipe_is_written(name, image, text, tmp_path):
    model = load_recipe(name).model
    sizes = MICRO | {"image_encoder": image, "text_encoder": text}
    config = replace_fields(model, sizes | {"swin.window_size": model.image_size // 32})
    write_published(build_model(config), tmp_path / "model.ckpt")
    assert read_model(tmp_path / "model.ckpt").config == config


@pytest.fixture(params=["clip_micro", "swin_micro"])
def case(request):
    return MeterCase(METER / f"{request.param}.json")


@pytest.mark.parametrize("task", TASKS)
def test_a_file_is_read_and_written_back_bit_for_bit(case, task, tmp_path):
    model = case.model(task)
    written = write_published(model, tmp_path / "model.ckpt")
    published = case.published_state(task)
    assert all(torch.equal(written[name], published[name]) for name in written)
    found = read_model(tmp_path / "model.ckpt")
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)


class TestFaults:
    @pytest.fixture
    def file(self, tmp_path):
        model = MeterCase(METER / "clip_micro.json").model("irtr")
        path = tmp_path / "model.ckpt"
        write_published(model, path)
        return path

    def change(self, file, **changes):
        content = torch.load(file, weights_only=False)
        for name, value in changes.items():
            if value is None:
                del content["state_dict"][name]
            else:
                content["state_dict"][name] = value
        torch.save(content, file)

    def test_missing(self, file):
        name = "cross_modal_image_layers.1.output.dense.bias"
        self.change(file, **{name: None})
        message = rf"model\.ckpt: METER checkpoint: 1 tensor of .* does not (?s:.*)missing {name}"
        with pytest.raises(ValueError, match=message):
            fiber.load(file)

    def test_unknown(self, file):
        self.change(file, **{"vit_model.visual.proj": torch.zeros(3, 3)})
        with pytest.raises(ValueError, match=r"unknown vit_model\.visual\.proj"):
            fiber.load(file)

    def test_shape(self, file):
        self.change(file, **{"rank_output.weight": torch.zeros(1, 90)})
        with pytest.raises(ValueError, match=r"rank_output\.weight has shape \(1, 90\)"):
            fiber.load(file)

    def test_positions_that_are_no_square(self, file):
        self.change(file, **{"vit_model.visual.positional_embedding": torch.zeros(19, 128)})
        with pytest.raises(ValueError, match="one row more than a square number, got 19"):
            fiber.load(file)

    def test_a_patch_size_that_contradicts_the_tensors(self, file):
        content = torch.load(file, weights_only=False)
        settings = content["hyper_parameters"]["config"]
        settings["patch_size"] = 32
        torch.save(content, file)
        with pytest.raises(ValueError, match="patch_size 32, but fiber_model has 16"):
            fiber.load(file)

    def test_image_sizes(self, file):
        assert fiber.load(file, image_size=96).config.image_size == 96
        with pytest.raises(ValueError, match="image_size 100: expected a multiple of 16"):
            fiber.load(file, image_size=100)


def test_a_folder_of_ours_is_read_back(tmp_path):
    model = MeterCase(METER / "clip_micro.json").model("vqa")
    Model(network=model).save(tmp_path / "model")
    found = fiber.load(tmp_path / "model")
    assert isinstance(found.config, MeterConfig)
    assert found.config == model.config
    assert "METER" in repr(found)


def test_the_second_image_of_nlvr2_starts_as_an_image():
    case = MeterCase(METER / "clip_micro.json")
    start, statements = (case.meter_config(task) for task in ("pretrain", "nlvr2"))
    types = torch.randn(2, 48)
    for name in ("backbone.token_types.weight", "token_type_embeddings.weight"):
        more = resize_tables({name: types}, statements)[name]
        assert torch.equal(more, torch.stack((types[0], types[1], types[1])))
        assert torch.equal(resize_tables({name: more}, start)[name], types)


def test_statements_start_from_a_pretrained_file(tmp_path):
    case = MeterCase(METER / "clip_micro.json")
    write_published(case.model("pretrain"), tmp_path / "pretrained.ckpt")
    start = read_model(tmp_path / "pretrained.ckpt")
    model = MeterImageText(case.meter_config("nlvr2"))
    report = initialize(model, start)
    assert "backbone.token_types.weight" in report.taken
    assert set(report.created) == {n for n in model.state_dict() if n.startswith("nlvr2_head.")}
    own, given = model.state_dict(), start.network.state_dict()
    for name in report.taken:
        assert torch.equal(own[name][: len(given[name])], given[name])
