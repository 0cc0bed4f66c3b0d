"""The config of a published checkpoint is inferred from its names and shapes."""

import dataclasses

import pytest
import torch

from fiber.checkpoints.published import load_published, published_state
from fiber.config import IMAGE_TEXT_HEADS, ImageTextConfig, preset
from fiber.config_io import replace_fields
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.infer_config import stored_config
from fiber.models.registry import recognize
from tests.golden import COARSE
from tests.parity.coarse_case import CoarseCase
from tests.published_keys import (
    base_state,
    coarse_keys,
    fine_keys,
    names_of_head,
    small_state,
)

pytestmark = pytest.mark.oldest


def published_config(state, stored=None):
    return recognize(state).infer_config(state, stored or {})


def test_coarse_base_config_is_inferred():
    config = published_config(base_state(coarse_keys()))
    heads = ImageTextConfig(heads=IMAGE_TEXT_HEADS)
    assert config == dataclasses.replace(preset("base"), image_text=heads)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_fine_base_config_is_inferred(version):
    config = published_config(base_state(fine_keys(version)))
    expected = preset("base").fine(version=version, max_tokens=256)
    changes = {"channel_order": "bgr", "swin.drop_path": 0.4, "image_text.heads": "itc,itm,mlm"}
    assert config == replace_fields(expected, changes)


@pytest.mark.parametrize("keys", ["coarse", "v2", "v3"])
def test_every_base_tensor_fits_the_inferred_model(keys):
    state = base_state(coarse_keys() if keys == "coarse" else fine_keys(keys))
    config = published_config(state)
    # Each tensor has its own memory, which is not touched; a model may not share more.
    state = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in state.items()}
    with torch.device("meta"):
        if keys == "coarse":
            ignored = load_published(FiberImageText(config), state)
        else:
            ignored = load_published(FiberDetector(config), state)
    # As counted by hand in test_weights.py; 24 tables, positions and 5 anchors of the fine model.
    assert len(ignored) == (43 + 2 + 12 + 6 + 12 + 2 if keys == "coarse" else 24 + 1 + 5)


def test_recorded_tiny_config_is_inferred():
    case = CoarseCase(COARSE / "tiny.json")
    state = {
        name: torch.zeros(()).expand(entry[0])
        for name, entry in case.weights_check.items()
        if not name.startswith("input.")
    }
    expected = replace_fields(
        case.fiber_config(),
        # Not determined by shapes.
        {"swin.drop_path": 0.1, "roberta.dropout": 0.1, "max_tokens": 38},
    )
    assert published_config(state) == expected


@pytest.mark.parametrize("head", ["itm", "mlm", "vqa", "nlvr2", "caption"])
def test_heads_of_a_fine_tuned_model_are_inferred(head):
    """Every published checkpoint has the contrastive projections, but not the queues."""
    state = base_state(coarse_keys())
    own = names_of_head(head)
    for other in IMAGE_TEXT_HEADS:
        for name in names_of_head(other) - own:
            state.pop(name, None)
    config = published_config(state)
    found = {"mlm", "caption"} if head == "caption" else {head}
    assert set(config.image_text.heads) == {"itc", *found}
    assert config.max_tokens == (40 if head == "mlm" else 50)


def test_missing_tensor_does_not_hide_its_head():
    state = small_state(coarse_keys())
    for name in ("cross_modal_image_transform_itc.weight", "vqa_classifier.0.bias"):
        del state[name]
    config = published_config(state)
    assert set(config.image_text.heads) == set(IMAGE_TEXT_HEADS)
    message = (
        r"2 tensors .* not match.*cross_modal_image_transform_itc.weight.*vqa_classifier.0.bias"
    )
    with pytest.raises(ValueError, match=r"(?s)" + message), torch.device("meta"):
        load_published(FiberImageText(config), state)


def test_image_size_is_inferred_from_the_window():
    """The released captioner has tables of 1225 rows: window size 18, image size 576."""
    state = base_state(coarse_keys())
    state = {
        name: torch.zeros(()).expand(1225, tensor.shape[1])
        if name.endswith("bias_table")
        else tensor
        for name, tensor in state.items()
    }
    config = published_config(state)
    assert (config.swin.window_size, config.image_size) == (18, 576)


@pytest.mark.parametrize(
    "name",
    [
        "vit_model.patch_embed.proj.weight",
        "vit_model.layers.2.blocks.0.attn.relative_position_bias_table",
        "text_transformer.embeddings.position_embeddings.weight",
    ],
)
def test_uninferable_sizes_are_rejected(name):
    state = base_state(coarse_keys())
    del state[name]
    with pytest.raises(ValueError, match=f"missing {name}"):
        published_config(state)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer1.0.conv1.weight", "fc.bias"], "no published model.* fc.bias, layer1.0"),
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"], "a Swin encoder"),
        (["roberta.embeddings.word_embeddings.weight"], "a RoBERTa encoder.*--init"),
        (["backbone.image.patch_embedding.norm.bias"], "without its config.json"),
    ],
    ids=["resnet", "swin", "roberta", "ours"],
)
def test_checkpoints_of_other_models_are_rejected(names, message):
    with pytest.raises(ValueError, match=message):
        published_config({name: torch.zeros(1) for name in names})


def test_unknown_number_of_text_heads_is_rejected():
    state = base_state(coarse_keys())
    state["text_transformer.embeddings.word_embeddings.weight"] = torch.zeros(9, 48)
    with pytest.raises(ValueError, match=r"64.* got 48"):
        published_config(state)


def test_nonsquare_anchors_are_rejected():
    state = base_state(fine_keys("v3"))
    state["rpn.anchor_generator.cell_anchors.0"] = torch.tensor([[0.0, 0.0, 8.0, 9.0]])
    with pytest.raises(ValueError, match=r"expected a square.* 9\.0"):
        published_config(state)


#: Settings of the base model under their names in the published code.
STATED = {
    "image_size": 384,
    "max_text_len": 45,
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_heads": 24,
    # Has no effect on the text encoder, so any value must be accepted.
    "num_layers": 6,
    "num_fuse_block": 6,
    "vqav2_label_size": 3129,
    "loss_names": {"vqa": 1},
}


class TestConfigOfTheFile:
    """The recorded settings of a file."""

    def test_recorded_config_supplies_what_shapes_do_not(self):
        state = base_state(coarse_keys())
        del state["text_input_queue"]
        config = published_config(state, STATED)
        assert (config.max_tokens, config.roberta.num_heads) == (45, 24)
        changes = {"max_tokens": 50, "roberta.num_heads": 12}
        assert replace_fields(config, changes) == published_config(state)

    def test_resized_tables_determine_the_image_size(self):
        """They were resized after the run, and the published code uses their size."""
        config = published_config(base_state(coarse_keys()), {"image_size": 576})
        assert (config.image_size, config.swin.window_size) == (384, 12)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("hidden_size", 512, r"hidden_size 512.*768"),
            ("vocab_size", 30522, r"vocab_size 30522.*50265"),
            ("num_fuse_block", 4, r"num_fuse_block 4.*6"),
            ("vqav2_label_size", 7, r"vqav2_label_size 7.*3129"),
            ("max_text_len", 600, r"max_text_len 600.*512"),
            ("num_heads", 7, r"num_heads 7.*768"),
            ("num_heads", "12", r"num_heads.*1.*'12'"),
            ("fiber_model", 3, r"fiber_model.*object.* int"),
            ("fiber_model", {"stages": 1}, r"fiber_model.*field 'stages'"),
        ],
    )
    def test_contradictions_name_both_values(self, name, value, message):
        state = base_state(coarse_keys())
        del state["text_input_queue"]
        with pytest.raises(ValueError, match=message):
            published_config(state, {name: value})

    def test_queue_can_contradict_the_maximum_text_length(self):
        with pytest.raises(ValueError, match=r"max_text_len 50.*40"):
            published_config(base_state(coarse_keys()), {"max_text_len": 50})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"swin.window_size": 3}, r"swin.window_size.*3.*2"),
            ({"roberta.ffn_width": 32}, r"roberta.ffn_width.*32.*64"),
            (
                {"image_text.heads": "itm"},
                r"image_text.heads is \('itm',\), expected \('itc', 'itm'",
            ),
            ({"image_text.num_answers": 3}, r"image_text.num_answers.*3.*16"),
            ({"fusion.normalize_last_text": True}, r"normalize_last_text.*True.*False"),
        ],
        ids=["window", "ffn", "heads", "answers", "norm"],
    )
    def test_saved_config_is_checked_against_the_tensors(self, change, message):
        state = published_state(FiberImageText(preset("micro")))
        stated = stored_config(replace_fields(preset("micro"), change))
        with pytest.raises(ValueError, match=message):
            published_config(state, stated)

    def test_saved_config_is_checked_against_the_published_settings(self):
        config = preset("micro")
        state = published_state(FiberImageText(config))
        assert published_config(state, stored_config(config)) == config
        stated = stored_config(config) | {"image_size": 128}
        with pytest.raises(ValueError, match=r"image_size 128.*fiber_model has 64"):
            published_config(state, stated)
