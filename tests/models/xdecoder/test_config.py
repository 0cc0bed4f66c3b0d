import dataclasses

import pytest

from fiber.config_io import from_dict, to_dict
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.xdecoder.class_texts import TEMPLATES, class_texts, with_background
from fiber.models.xdecoder.config import (
    XDECODER_PRESETS,
    DecoderConfig,
    XDecoderConfig,
    xdecoder_preset,
)


@pytest.mark.parametrize("config", XDECODER_PRESETS.values(), ids=list(XDECODER_PRESETS))
def test_presets_are_read_back(config):
    assert from_dict(XDecoderConfig, to_dict(config)) == config
    assert config.channel_order == "rgb" and config.max_tokens == 77
    assert config.with_vocabulary(300).vocab_size == 300
    assert config.with_image_size(96).image_size == 96


def test_unknown_preset():
    assert xdecoder_preset("focalt") is XDECODER_PRESETS["focalt"]
    with pytest.raises(ValueError, match=r"'focaltt' does not exist.*focalt"):
        xdecoder_preset("focaltt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": ("mask", "vqa")}, "heads: expected any of mask, caption, retrieval, got 'vqa'"),
        ({"image_size": 100}, "image_size 100: expected a multiple of 32"),
        ({"clip_text": ClipTextConfig(width=48, num_heads=8)}, "a multiple of 32, .* got 48"),
        ({"decoder": DecoderConfig(num_heads=7)}, r"decoder\.num_heads must divide .*7 and 512"),
        ({"family": "meter"}, "family: expected 'xdecoder', got 'meter'"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_invalid_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        XDecoderConfig(**fields)


def test_answers():
    with pytest.raises(ValueError, match="no VQA head; got 3 answers"):
        XDecoderConfig().with_answers(3)
    with pytest.raises(ValueError, match="image_size 40"):
        XDecoderConfig().with_image_size(40)
    assert dataclasses.replace(XDecoderConfig(), heads=("mask",)).heads == ("mask",)


def test_texts_of_a_class():
    texts = class_texts("wall-other-merged")
    assert len(texts) == len(TEMPLATES) == len(set(texts))
    assert texts[:2] == ("wall.", "a photo of a wall.")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one name, got none"),
        (["a", " "], "name 1 is empty"),
        (["a", "b", "a"], "'a' is there twice"),
        (["background"], "'background' is added"),
    ],
)
def test_invalid_classes(names, message):
    with pytest.raises(ValueError, match=f"classes: .*{message}"):
        with_background(names)


def test_the_background_is_last():
    assert with_background(["cat", "dog"]) == ("cat", "dog", "background")
