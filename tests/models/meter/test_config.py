import pytest

from fiber.config import ClipConfig, RobertaConfig, SwinConfig, preset
from fiber.config_io import from_dict, to_dict
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig

SWIN = {"image_encoder": "swin", "swin": SwinConfig(window_size=12), "image_size": 384}


def test_it_is_read_back():
    config = MeterConfig(cross=CrossConfig(kind="merged_attention", num_layers=3))
    assert from_dict(MeterConfig, to_dict(config)) == config


def test_sizes_are_multiples_of_the_patch():
    with pytest.raises(ValueError, match=r"image_size 290: expected a multiple of 16 \(the patch"):
        MeterConfig(image_size=290)
    with pytest.raises(ValueError, match="image_size 100: expected a multiple of 32"):
        MeterConfig(image_size=320, clip=ClipConfig(patch_size=32)).with_image_size(100)
    with pytest.raises(ValueError, match=r"image_size 368: expected a multiple of 32 \(the stride"):
        MeterConfig(**{**SWIN, "image_size": 368})


def test_windows_follow_the_image_size():
    assert MeterConfig(**SWIN).with_image_size(288).swin.window_size == 9
    assert MeterConfig().with_image_size(576).image_size == 576


def test_nlvr2_has_a_token_type_for_the_second_image():
    assert MeterConfig().num_token_types == 2
    assert MeterConfig(image_text=MeterHeadsConfig(heads=("nlvr2",))).num_token_types == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_text": {"heads": ["itc"]}}, "expected any of itm, mlm, .*, got 'itc'"),
        ({"cross": {"kind": "gated"}}, "cross.kind: expected one of"),
        ({"cross": {"num_heads": 7}}, "num_heads must divide width, got 7 and 768"),
        ({"image_encoder": "vit"}, "image_encoder: expected one of"),
        ({"max_tokens": 600}, "at most 512"),
        ({"family": "fiber"}, "family"),
    ],
)
def test_wrong_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        from_dict(MeterConfig, fields)


def test_the_vocabulary_is_that_of_the_text_encoder():
    config = MeterConfig(roberta=RobertaConfig(vocab_size=100)).with_vocabulary(512)
    assert config.vocab_size == config.roberta.vocab_size == 512


@pytest.mark.parametrize("config", [MeterConfig(), preset("small")], ids=["METER", "FIBER"])
def test_the_number_of_answers_is_all_that_changes(config):
    changed = config.with_answers(7)
    assert changed.num_answers == 7
    assert changed.with_answers(config.num_answers) == config


def test_what_a_run_may_ask_depends_on_the_encoder_and_on_the_fusion():
    merged = MeterConfig(cross=CrossConfig(kind="merged_attention"))
    assert [MeterConfig().has_row_draws, merged.has_row_draws] == [True, False]
    assert MeterConfig(text_encoder="bert").mlm_units == ("token",)
    assert MeterConfig().mlm_units == preset("base").mlm_units == ("token", "word", "position")


def test_windows_of_published_runs_fit_the_image_size():
    MeterConfig(**SWIN).check_published()
    # CLIP has no windows.
    MeterConfig(swin=SwinConfig(window_size=5)).check_published()
    wrong = MeterConfig(**{**SWIN, "image_size": 288})
    with pytest.raises(
        ValueError, match=r"model.swin.window_size 12 .* expected model.image_size 384"
    ):
        wrong.check_published("model.")
