import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.model_dir import StoredModel, load_model, read_tensors
from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.models.encoders.position_interpolation import resize_bias_table
from fiber.models.registry import build_model
from tests.golden import COARSE
from tests.training.micro_runs import coarse_config, run
from tests.training.test_trainer import StopError, stop_before

pytestmark = pytest.mark.oldest

EXTRAS = COARSE / "extras.safetensors"


def stored(config) -> StoredModel:
    torch.manual_seed(1)
    return StoredModel(network=build_model(config))


def test_same_model_is_loaded_completely():
    config = preset("micro")
    start, model = stored(config), build_model(config)
    report = initialize(model, start)
    assert (report.dropped, report.created) == ((), ())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start.network.state_dict()[name]), name


def test_different_heads_are_dropped_and_created():
    pretrained = replace_fields(preset("micro"), {"image_text.heads": "itc,itm,mlm"})
    answering = replace_fields(preset("micro"), {"image_text.heads": "itm,vqa"})
    report = initialize(build_model(answering), stored(pretrained))
    assert "itm_head.weight" in report.taken
    assert {name.split(".")[0] for name in report.created} == {"vqa_head"}
    assert "language_head.decoder.weight" in report.dropped
    assert "temperature" in report.dropped


def test_different_answers_create_a_new_last_layer():
    model = build_model(replace_fields(preset("micro"), {"image_text.num_answers": 5}))
    report = initialize(model, stored(preset("micro")))
    assert report.created == report.dropped == ("vqa_head.output.weight", "vqa_head.output.bias")


def test_different_answers_of_the_same_count_create_a_new_last_layer():
    start = stored(preset("micro"))
    words = tuple(map(str, range(16)))
    start = dataclasses.replace(start, answers=words)
    output = ("vqa_head.output.weight", "vqa_head.output.bias")
    assert initialize(build_model(preset("micro")), start, words[::-1]).created == output
    assert initialize(build_model(preset("micro")), start, words).created == ()
    # Published files do not contain answers.
    unknown = stored(preset("micro"))
    assert initialize(build_model(preset("micro")), unknown, words).created == output


def test_different_vocabulary_is_rejected():
    with pytest.raises(ValueError, match=r"word.weight has shape \(320, 32\), expected \(400, 32"):
        initialize(build_model(preset("micro").with_vocabulary(400)), stored(preset("micro")))


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_size_mismatch_is_reported_in_one_line(stage):
    start = dataclasses.replace(stored(preset("micro")), path=Path("released.ckpt"))
    with pytest.raises(ValueError, match="released") as caught:
        initialize(build_model(preset("small", stage=stage).with_vocabulary(320)), start)
    assert str(caught.value) == (
        "released.ckpt has text width 32, expected 80; text layers 4, expected 5; image channels"
        " 16, expected 20; image depths (1, 1, 2, 2), expected (1, 1, 4, 1); fused layers 3,"
        " expected 5 (preset small); start from a model of the expected size, or use a recipe"
        " that matches the initial model (`fiber recipes`)"
    )


def test_only_mismatched_sizes_are_named():
    wider = replace_fields(preset("micro"), {"roberta.width": 48})
    message = "^the initial model has text width 32, expected 48; start from a model"
    with pytest.raises(ValueError, match=message):
        initialize(build_model(wider), stored(preset("micro")))


def test_long_lists_of_tensors_are_cut():
    # Three tensors in each of four layers.
    wider = replace_fields(preset("micro"), {"roberta.ffn_width": 96})
    with pytest.raises(ValueError, match="; and 4 more") as caught:
        initialize(build_model(wider), stored(preset("micro")))
    assert str(caught.value).count("has shape") == 8


def test_missing_blocks_of_a_deeper_model_are_created():
    deeper = replace_fields(preset("micro"), {"swin.depths": "1,1,3,2"})
    report = initialize(build_model(deeper), stored(preset("micro")))
    assert any("stages.2.blocks.2" in name for name in report.created)


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_bias_tables_are_resized_to_the_window(stage):
    larger = replace_fields(preset("micro", stage=stage), {"swin.window_size": 4})
    start, model = stored(preset("micro")), build_model(larger)
    report = initialize(model, start)
    name = "backbone.image.stages.0.blocks.0.attention.bias_table"
    assert name in report.taken
    expected = resize_bias_table(start.network.state_dict()[name], 49)
    assert torch.equal(model.state_dict()[name], expected)


def test_resizing_to_the_same_window_is_a_no_op():
    table = torch.randn(9, 2)
    assert resize_bias_table(table, 9) is table


def test_resized_table_keeps_orientation():
    # A ramp over rows (dy) remains one, instead of becoming a ramp over columns (dx).
    ramp = torch.arange(5.0).repeat_interleave(5)[:, None]
    resized = resize_bias_table(ramp, 81).view(9, 9)
    assert torch.allclose(resized, resized[:, :1].expand(9, 9))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


@pytest.mark.parametrize("size", [224, 480, 576])
def test_resized_table_matches_the_published_one(size):
    from safetensors.torch import load_file

    recorded = load_file(EXTRAS)
    after = recorded[f"bias.after_{size}"]
    ours = resize_bias_table(recorded["bias.before_384"], len(after))
    torch.testing.assert_close(ours, after, rtol=0, atol=1e-6)


QUESTIONS_ALONE = {
    f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")
} | {"train__steps": 1, "optim__lr": 0.0}


def head_of(folder):
    return read_tensors(folder / "model.safetensors")["vqa_head.output.weight"]


def test_answers_can_be_given_for_a_folder_without_them(pictures, tmp_path):
    first = run(coarse_config(**QUESTIONS_ALONE), pictures, tmp_path / "first").folder
    answers = json.loads((first / "answers.json").read_text())
    (first / "answers.json").unlink()
    named = run(
        coarse_config(**QUESTIONS_ALONE, train__seed=1),
        *(pictures, tmp_path / "named"),
        init=first,
        answers=answers,
    ).folder
    assert torch.equal(head_of(first), head_of(named))
    unnamed = run(
        coarse_config(**QUESTIONS_ALONE, train__seed=1),
        *(pictures, tmp_path / "unnamed"),
        init=first,
    ).folder
    assert not torch.equal(head_of(first), head_of(unnamed))


@pytest.mark.parametrize("names_them", [True, False], ids=["named", "counted"])
def test_run_stopped_before_its_first_checkpoint_restarts_identically(
    pictures, tmp_path, monkeypatch, names_them
):
    first = run(coarse_config(**QUESTIONS_ALONE), pictures, tmp_path / "first").folder
    answers = json.loads((first / "answers.json").read_text())
    (first / "answers.json").unlink()
    options = {"init": first} | ({"answers": answers} if names_them else {})
    config = coarse_config(**QUESTIONS_ALONE, train__seed=1)
    whole = run(config, pictures, tmp_path / "whole", **options).folder
    stop_before(monkeypatch, 0)
    with pytest.raises(StopError):
        run(config, pictures, tmp_path / "cut", **options)
    cut = run(config, pictures, tmp_path / "cut", resume=True, **options).folder
    assert torch.equal(head_of(whole), head_of(cut))
    assert torch.equal(head_of(whole), head_of(first)) == names_them


def test_untrained_head_keeps_its_answers(pictures, tmp_path):
    first = run(coarse_config(**QUESTIONS_ALONE), pictures, tmp_path / "first").folder
    others = {"tasks__question__share": 0, "train__steps": 1, "optim__lr": 0.0}
    second = run(coarse_config(**others), pictures, tmp_path / "second", init=first).folder
    assert torch.equal(head_of(first), head_of(second))
    assert load_model(second).answers == load_model(first).answers != ()
