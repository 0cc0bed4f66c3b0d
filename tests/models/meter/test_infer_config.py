"""Configs of files whose stored config is that of the published code, or of no code."""

import dataclasses
import json

import pytest
import torch

import fiber
from fiber.checkpoints.published import published_state
from fiber.inference import Model
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.infer_config import meter_config
from tests.golden import METER
from tests.models.meter.test_published import meta_state
from tests.parity.meter_case import MeterCase
from tests.published_keys import METER_FILES as FILES
from tests.published_keys import meter_shapes as keys_of


def state_of(**changes):
    """A published file's tensors and config: text and fusion of different widths."""
    config = MeterCase(METER / "clip_micro.json").meter_config("vqa")
    text = dataclasses.replace(config.roberta, width=128, num_heads=2)
    cross = dataclasses.replace(config.cross, width=96, num_heads=3)
    config = dataclasses.replace(config, roberta=text, cross=cross, **changes)
    with torch.device("meta"):
        return published_state(MeterImageText(config)), config


def test_stored_heads_are_those_of_the_fusion():
    state, config = state_of()
    found = meter_config(state, {"num_heads": 3, "hidden_size": 96, "tokenizer": "my-roberta"})
    assert (found.cross.num_heads, found.roberta.num_heads) == (3, 2)
    assert found.cross.num_heads == config.cross.num_heads


def test_heads_that_nothing_tells():
    state, _ = state_of()
    with pytest.raises(
        ValueError, match="num_heads: expected cross-modal channels divisible by 64"
    ):
        meter_config(state, {})
    with pytest.raises(ValueError, match="num_heads must divide width, got 5 and 96"):
        meter_config(state, {"num_heads": 5})


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("patch_size", 32, 16),
        ("hidden_size", 768, 96),
        ("num_top_layer", 6, 2),
        ("vocab_size", 30522, 128),
        ("vqav2_label_size", 3129, 23),
    ],
)
def test_a_stored_size_that_contradicts_the_tensors(name, value, found):
    state, _ = state_of()
    message = f"{name} {value}, but the tensors have {found}"
    with pytest.raises(ValueError, match=message):
        meter_config(state, {"num_heads": 3, name: value})


def test_a_stored_image_size_that_contradicts_the_position_table():
    state, _ = state_of()
    name = "vit_model.visual.positional_embedding"
    assert meter_config(state, {"num_heads": 3, "image_size": 64}).image_size == 64
    message = rf"image_size {{}}, but {name} has 17 rows, for 4 x 4 patches of {{}} pixels"
    for size in (96, 100):
        with pytest.raises(ValueError, match=message.format(size, 16)):
            meter_config(state, {"num_heads": 3, "image_size": size})
    # The stored patch size agrees with the convolution, but not with table and image size.
    state["vit_model.visual.conv1.weight"] = torch.empty(128, 3, 32, 32, device="meta")
    stored = {"num_heads": 3, "image_size": 64, "patch_size": 32}
    with pytest.raises(ValueError, match=f"{message.format(64, 32)}: expected image_size 128"):
        meter_config(state, stored)


def published(name, *removed):
    """Tensors of a released file without those of some prefixes, and its stored config."""
    shapes = {key: shape for key, shape in keys_of(name).items() if not key.startswith(removed)}
    return meta_state(shapes), FILES[name]["config"]


VQA, FLICKR = (f"meter_clip16_288_roberta_{part}.ckpt" for part in ("vqa", "flickr"))
SWIN = "meter_swinbase_384_roberta_pretrain.ckpt"


def test_a_file_without_any_head():
    state, stored = published(VQA, "vqa_classifier.")
    for given in (stored, {}):
        with pytest.raises(ValueError, match=r"no head: expected tensors of one of itm_score\., "):
            meter_config(state, given)


@pytest.mark.parametrize(
    ("name", "head", "prefix"),
    [(FLICKR, "rank", "rank_output"), (SWIN, "itm", "itm_score"), (SWIN, "mlm", "mlm_score")],
)
def test_a_file_that_lacks_the_head_of_a_loss(name, head, prefix):
    state, stored = published(name, f"{prefix}.")
    loss = "irtr" if head == "rank" else head
    with pytest.raises(ValueError, match=rf"losses {loss} \(head '{head}', {prefix}\.\*\)"):
        meter_config(state, stored)
    # Without a stored config nothing tells.
    assert head not in meter_config(state, {}).heads


def test_a_ranking_head_without_the_itm_head_that_it_started_from():
    state, stored = published(FLICKR, "itm_score.")
    for given in (stored, {}):
        with pytest.raises(ValueError, match=r"rank_output\.\* without itm_score"):
            meter_config(state, given)


@pytest.mark.parametrize("losses", [["vqa"], {"vqa": "1"}, {"vqa": None}])
def test_losses_that_are_no_numbers(losses):
    state, stored = published(VQA)
    with pytest.raises(ValueError, match="loss_names must have a number each"):
        meter_config(state, stored | {"loss_names": losses})


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        (VQA, "vit_model.visual.transformer.resblocks.10.", "'ViT-B/16' .*11.*image blocks 10"),
        (VQA, "text_transformer.encoder.layer.11.", "'roberta-base' .*12.*text layers 11"),
        (SWIN, "vit_model.layers.2.blocks.17.", r"'swin_base_.*18, 2.*\(2, 2, 17, 2\)"),
    ],
)
def test_a_file_that_lacks_the_last_block_of_an_encoder(name, removed, message):
    state, stored = published(name, removed)
    with pytest.raises(ValueError, match=message):
        meter_config(state, stored)


@pytest.mark.parametrize("field", ["vit", "tokenizer"])
@pytest.mark.parametrize("value", ["another", ["roberta-base"], None])
def test_encoders_of_unknown_names_are_inferred(field, value):
    state, stored = published(VQA)
    assert meter_config(state, stored | {field: value}) == meter_config(state, stored)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clip.patch_size", 32, "clip.patch_size is 32, but model.safetensors has 16"),
        ("clip.width", 256, "clip.width is 256, but model.safetensors has 128"),
        ("clip.num_blocks", 9, "clip.num_blocks is 9, but model.safetensors has 3"),
    ],
)
def test_a_config_json_that_contradicts_the_image_encoder(tmp_path, field, value, message):
    model = MeterImageText(MeterCase(METER / "clip_micro.json").meter_config("vqa"))
    Model(network=model).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    part, name = field.split(".")
    content["model"][part][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        fiber.load(tmp_path / "model")
