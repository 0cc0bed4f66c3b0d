"""Encoder files whose sizes or settings are not the model's: messages, and what to set."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fiber.checkpoints.encoders import encoder_states, load_encoder
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import EncoderStates, read_init
from fiber.config import ClipConfig, RobertaConfig, SwinConfig, preset
from fiber.config_io import replace_fields
from fiber.models.encoders.bert_config import BertConfig
from fiber.models.meter.config import CrossConfig, MeterConfig
from fiber.models.registry import build_model

pytestmark = pytest.mark.oldest

TEXT = {"vocab_size": 60, "width": 32, "num_layers": 2, "num_heads": 2, "ffn_width": 48}
METER = MeterConfig(
    image_size=64,
    max_tokens=12,
    clip=ClipConfig(patch_size=16, width=32, num_blocks=2, num_heads=2, mlp_ratio=2.0),
    swin=SwinConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=2),
    roberta=RobertaConfig(**TEXT, max_positions=20),
    bert=BertConfig(**TEXT, max_positions=18),
    cross=CrossConfig(width=24, num_layers=1, num_heads=2, ffn_width=48),
)
#: Model with each encoder, and the changes of its fields, with how the message names each.
FILES = {
    "METER, CLIP": (
        METER,
        "clip",
        {
            "patch_size": (32, "patch size 32, expected 16"),
            "width": (48, "width 48, expected 32"),
            "num_blocks": (12, "blocks 12, expected 2 or 3"),
            "mlp_ratio": (4.0, "MLP ratio 4.0, expected 2.0"),
        },
    ),
    **{
        f"{family}, Swin": (
            config,
            "swin",
            {
                # The strides of a detector depend on it.
                **(
                    {}
                    if family == "fine FIBER"
                    else {"patch_size": (2, "patch size 2, expected 4")}
                ),
                "embed_dim": (32, "width 32, expected 16"),
                "depths": ((1, 2, 2, 2), f"blocks (1, 2, 2, 2), expected {config.swin.depths}"),
                "num_heads": (
                    (2, 2, 4, 4),
                    f"heads (2, 2, 4, 4), expected {config.swin.num_heads}",
                ),
                "mlp_ratio": (2.0, "MLP ratio 2.0, expected 4.0"),
            },
        )
        for family, config in (
            ("METER", dataclasses.replace(METER, image_encoder="swin")),
            ("FIBER", preset("micro")),
            ("fine FIBER", preset("micro", stage="fine")),
        )
    },
    **{
        f"{family}, {name}": (
            config,
            name,
            {
                "width": (64, f"width 64, expected {section.width}"),
                "num_layers": (5, f"layers 5, expected {section.num_layers}"),
                "ffn_width": (40, f"MLP width 40, expected {section.ffn_width}"),
                "max_positions": (300, f"positions 300, expected {section.max_positions}"),
            },
        )
        for family, name, config, section in (
            ("METER", "roberta", METER, METER.roberta),
            ("METER", "bert", dataclasses.replace(METER, text_encoder="bert"), METER.bert),
            ("FIBER", "roberta", preset("micro"), preset("micro").roberta),
        )
    },
}
ONE_BY_ONE = [
    pytest.param(config, name, {field: change}, id=f"{title}, {field}")
    for title, (config, name, changes) in FILES.items()
    for field, change in changes.items()
]


def message(target, state, settings=None):
    with pytest.raises(ValueError) as caught:
        load_encoder(target, state, settings)
    return str(caught.value)


def options(text):
    """Return the fields that a message says to set."""
    return dict(re.findall(r"--set model\.(\S+)=([^\s;]+)", text))


def check(config, name, changes):
    """Load a file with `changes` into a model of `config`, then into one as the message says."""
    fields = {f"{name}.{field}": value for field, (value, _) in changes.items()}
    state = encoder_states(build_model(replace_fields(config, fields)))[name]
    found = message(build_model(config), state)
    for _, text in changes.values():
        assert text in found
    assert "visual." not in found
    assert "missing" not in found
    named = options(found)
    # With another width, the number of heads is named too.
    assert set(named) - {f"{name}.num_heads"} == set(fields) - {f"{name}.num_heads"}
    target = build_model(replace_fields(config, named))
    keys, ignored = load_encoder(target, state)
    assert keys
    assert not ignored
    return found


@pytest.mark.parametrize(("config", "name", "change"), ONE_BY_ONE)
def test_a_size_is_named_with_its_field(config, name, change):
    found = check(config, name, change)
    assert found.count("expected") == 1


@pytest.mark.parametrize("title", FILES)
def test_all_sizes_are_named_at_once(title):
    config, name, changes = FILES[title]
    assert check(config, name, changes).count("expected") == len(changes)


def test_heads_of_another_width_are_those_of_published_encoders():
    """Tensors do not show the number of heads; a width alone would keep those of the model."""
    wider = replace_fields(METER, {"clip.width": 192, "clip.num_heads": 3})
    found = message(build_model(METER), encoder_states(build_model(wider))["clip"])
    assert options(found) == {"clip.width": "192", "clip.num_heads": "3"}
    assert "64 channels a head" in found
    settings = {"model_type": "clip_vision_model", "num_attention_heads": 6}
    found = message(build_model(METER), encoder_states(build_model(wider))["clip"], settings)
    assert options(found) == {"clip.width": "192", "clip.num_heads": "6"}


def test_another_vocabulary_needs_the_tokenizer_of_the_file():
    for config, name in ((METER, "roberta"), (preset("micro"), "roberta")):
        state = encoder_states(build_model(config.with_vocabulary(77)))[name]
        found = message(build_model(config), state)
        assert f"vocabulary size 77, expected {config.vocab_size}" in found
        assert "--tokenizer" in found
        assert options(found) == {}


def test_a_ratio_that_gives_no_whole_number_fits():
    config = replace_fields(METER, {"clip.mlp_ratio": 1.7})
    model = build_model(config)
    assert load_encoder(model, encoder_states(model)["clip"])[0]


def test_misshapen_tensors_are_named_by_loading():
    state = encoder_states(build_model(METER))["clip"]
    state["visual.conv1.weight"] = torch.zeros(32)
    state["visual.transformer.resblocks.0.mlp.c_fc.weight"] = torch.zeros(0, 0)
    found = message(build_model(METER), state)
    assert "visual.conv1.weight has shape (32,)" in found
    assert "c_fc.weight has shape (0, 0)" in found


def test_long_lists_of_tensors_are_cut():
    state = encoder_states(build_model(METER))["clip"]
    state |= {f"visual.extra.{number}": torch.zeros(1) for number in range(20)}
    found = message(build_model(METER), state)
    assert found.startswith("20 tensors")
    assert found.count("unknown visual.extra") == 8
    assert found.endswith("and 12 more unknown")


@pytest.mark.parametrize(
    ("config", "given", "hint"),
    [
        (METER, "bert", "--set model.text_encoder=bert"),
        (dataclasses.replace(METER, text_encoder="bert"), "roberta", "model.text_encoder=roberta"),
        (METER, "swin", "--set model.image_encoder=swin"),
        (dataclasses.replace(METER, image_encoder="swin"), "clip", "model.image_encoder=clip"),
        (preset("micro"), "clip", "models with it: METER"),
        (preset("micro"), "bert", "models with it: METER"),
    ],
)
def test_the_field_that_chooses_the_encoder_is_named(config, given, hint):
    side = "text" if given in ("bert", "roberta") else "image"
    source = dataclasses.replace(METER, **{f"{side}_encoder": given})
    state = encoder_states(build_model(source))[given]
    found = message(build_model(config), state)
    assert hint in found
    if named := options(found):
        assert load_encoder(build_model(replace_fields(config, named)), state)[0]


def transformers_config(name, **changes):
    """Return what transformers writes for an encoder of METER's sizes, with changed fields."""
    transformers = pytest.importorskip("transformers")
    clip, text = METER.clip, METER.roberta if name == "roberta" else METER.bert
    sizes = {
        "clip": {
            "hidden_size": clip.width,
            "num_attention_heads": clip.num_heads,
            "num_hidden_layers": clip.num_blocks,
            "intermediate_size": 64,
            "patch_size": clip.patch_size,
        },
        "swin": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]},
        "text": {
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "intermediate_size": text.ffn_width,
            "max_position_embeddings": text.max_positions,
            "layer_norm_eps": text.layer_norm_eps,
        },
    }
    kinds = {
        "clip": (transformers.CLIPVisionConfig, "clip"),
        "CLIPModel": (transformers.CLIPConfig, "clip"),
        "swin": (transformers.SwinConfig, "swin"),
        "roberta": (transformers.RobertaConfig, "text"),
        "bert": (transformers.BertConfig, "text"),
    }
    kind, size = kinds[name]
    values = sizes[size] | changes
    config = kind(vision_config=values) if name == "CLIPModel" else kind(**values)
    return json.loads(config.to_json_string(use_diff=True))


def write(folder, state, settings):
    """Write an encoder as transformers writes a model."""
    folder.mkdir(exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))


def model_with(name):
    chosen = {"swin": {"image_encoder": "swin"}, "bert": {"text_encoder": "bert"}}
    return build_model(dataclasses.replace(METER, **chosen.get(name, {})))


SETTINGS = [
    ("clip", {"num_attention_heads": 4}, "num_attention_heads 4 in config.json, expected 2"),
    ("clip", {"hidden_act": "gelu"}, "hidden_act 'gelu' in config.json, expected 'quick_gelu'"),
    ("clip", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06 in config.json, expected 1e-05"),
    ("CLIPModel", {"num_attention_heads": 4}, "num_attention_heads 4"),
    ("CLIPModel", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("swin", {"hidden_act": "relu"}, "hidden_act 'relu' in config.json, expected 'gelu'"),
    ("swin", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06 in config.json, expected 1e-05"),
    ("roberta", {"num_attention_heads": 4}, "num_attention_heads 4 in config.json, expected 2"),
    ("roberta", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' in config.json, expected 'g"),
    ("roberta", {"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12 in config.json, expected 1e-05"),
    ("roberta", {"is_decoder": True}, "is_decoder True in config.json, expected False"),
    ("roberta", {"pad_token_id": 0}, "pad_token_id 0 in config.json, expected 1"),
    ("bert", {"num_attention_heads": 4}, "num_attention_heads 4 in config.json, expected 2"),
    ("bert", {"hidden_act": "relu"}, "hidden_act 'relu' in config.json, expected 'gelu'"),
    ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 in config.json, expected 1e-12"),
]


@pytest.mark.parametrize(("name", "changes", "text"), SETTINGS)
@pytest.mark.parametrize("is_file", [False, True])
def test_config_json_that_contradicts_the_model_is_rejected(tmp_path, name, changes, text, is_file):
    source = model_with(name)
    state = encoder_states(source)["clip" if name == "CLIPModel" else name]
    path = tmp_path / "model.safetensors" if is_file else tmp_path
    write(tmp_path, state, transformers_config(name))
    assert initialize(model_with(name), read_init(path)).taken
    write(tmp_path, state, transformers_config(name, **changes))
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        initialize(model_with(name), read_init(path))
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    # As the message says, unless the setting is none of the model's.
    if named := options(str(caught.value)):
        target = build_model(replace_fields(source.config, named))
        assert initialize(target, read_init(path)).taken
    else:
        assert set(changes) & {"hidden_act", "is_decoder", "pad_token_id", "layer_norm_eps"}


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {},
        {"model_type": "clip_vision_model"},
        {"model_type": "clip_vision_model", "hidden_act": None},
        {"model_type": "clip", "vision_config": 3, "vision_config_dict": None},
        # An earlier transformers wrote both; the second counts.
        {
            "model_type": "clip",
            "vision_config": {"num_attention_heads": 12},
            "vision_config_dict": {"num_attention_heads": 2, "layer_norm_eps": 9.99999974e-06},
        },
        # That of another file in the folder, or of another library.
        {"model_type": "roberta", "num_attention_heads": 12, "hidden_act": "relu"},
        {"num_attention_heads": 12},
        {"architecture": "vit_base_patch16_224", "num_classes": 0},
    ],
)
def test_absent_fields_and_configs_of_other_models_are_not_compared(tmp_path, settings):
    write(tmp_path, encoder_states(build_model(METER))["clip"], settings)
    assert initialize(build_model(METER), read_init(tmp_path)).taken


@pytest.mark.parametrize("value", ["2", [2], {}, 10**400, True, float("nan")])
def test_fields_of_other_types_are_rejected(tmp_path, value):
    settings = {"model_type": "clip_vision_model", "num_attention_heads": value}
    write(tmp_path, encoder_states(build_model(METER))["clip"], settings)
    with pytest.raises(ValueError, match=r"num_attention_heads .* in config\.json, expected 2"):
        initialize(build_model(METER), read_init(tmp_path))


def test_roberta_with_berts_tensors_is_no_bert(tmp_path):
    """transformers' RobertaConfig has two token types by default, as only BERT should."""
    target = model_with("bert")
    write(tmp_path, encoder_states(target)["bert"], transformers_config("roberta"))
    for model in (target, build_model(METER)):
        with pytest.raises(ValueError, match=r"model_type 'roberta'.*BERT"):
            initialize(model, read_init(tmp_path))


def test_damaged_config_json_is_named(tmp_path):
    write(tmp_path, encoder_states(build_model(METER))["clip"], {})
    (tmp_path / "config.json").write_text("{")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=r"config\.json"):
            read_init(path)


class TestHubSnapshot:
    def test_safetensors_is_taken_of_both_files(self, tmp_path):
        states = encoder_states(build_model(METER))
        write(tmp_path, states["clip"], {})
        torch.save(states["clip"], tmp_path / "pytorch_model.bin")
        start = read_init(tmp_path)
        assert isinstance(start, EncoderStates)
        assert list(start.states) == [tmp_path / "model.safetensors"]
        target = build_model(METER)
        initialize(target, start)
        found = encoder_states(target)["clip"]
        assert all(torch.equal(found[name], states["clip"][name]) for name in found)

    def test_both_files_are_taken_if_they_hold_different_encoders(self, tmp_path):
        states = encoder_states(build_model(METER))
        write(tmp_path, states["clip"], {})
        torch.save(states["roberta"], tmp_path / "pytorch_model.bin")
        taken = initialize(build_model(METER), read_init(tmp_path)).taken
        assert {name.split(".")[1] for name in taken} == {"image", "text"}

    def test_other_copies_are_rejected(self, tmp_path):
        state = encoder_states(build_model(METER))["clip"]
        write(tmp_path, state, {})
        torch.save(state, tmp_path / "clip.bin")
        with pytest.raises(ValueError, match=r"same encoder as clip\.bin; pass one"):
            initialize(build_model(METER), read_init(tmp_path))


def test_openais_sizes_are_told_to_a_small_model():
    """A file of B/16 in a small model of another patch size, without its tensors one by one."""
    with torch.device("meta"):
        state = encoder_states(build_model(MeterConfig(clip=ClipConfig(num_blocks=12))))["clip"]
        small = build_model(replace_fields(METER, {"clip.patch_size": 32}))
    found = message(small, state)
    assert "resblocks" not in found
    assert options(found) == {
        "clip.patch_size": "16",
        "clip.width": "768",
        "clip.num_blocks": "12",
        "clip.mlp_ratio": "4.0",
        "clip.num_heads": "12",
    }
    assert "num_blocks=11 leaves out the last block" in found
