"""`fiber.merge` and `fiber merge`: between two models, to the bit at both ends."""

import copy
import dataclasses
import json

import pytest
import torch

import fiber
from fiber.checkpoints.hub.card import publish
from fiber.checkpoints.kept import Kept
from fiber.cli import main
from fiber.data import Tokenizer
from fiber.inference import Model
from fiber.inference.model import Origin
from fiber.models.registry import build_model
from fiber.training.config.run import load_recipe

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def base(micro_models):
    return fiber.load(micro_models["fine"], device="cpu")


@pytest.fixture(scope="module")
def coarse(micro_models):
    return fiber.load(micro_models["coarse"], device="cpu")


def changed(model, **options):
    """Return a model with the same tensors but the first, and other values."""
    network = copy.deepcopy(model.network)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in list(network.parameters())[1:]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
            # A new bias of the base is 0, of which the sign is a bit, too.
            parameter.view(-1)[0] = -0.0
    fields = {"tokenizer": model.tokenizer, "answers": model.answers, **options}
    return Model(network, **fields)


@pytest.fixture(scope="module")
def tuned(base):
    return changed(base, classes=("cup", "cat"))


def state(model):
    return model.network.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
        if one[name].dim()
    )


def test_both_ends_are_equal_to_the_bit(base, tuned):
    assert equal(state(fiber.merge(base, tuned, 0)), state(base))
    assert equal(state(fiber.merge(base, tuned, 1.0)), state(tuned))
    assert not equal(state(base), state(tuned))


def test_weights_are_between_in_float32_and_equal_ones_stay(base, tuned):
    found, before, after = state(fiber.merge(base, tuned, 0.25)), state(base), state(tuned)
    for name, tensor in found.items():
        exact = before[name].double() * 0.75 + after[name].double() * 0.25
        assert tensor.dtype == torch.float32
        # Two products and a sum, each rounded to float32.
        size = before[name].double().abs() * 0.75 + after[name].double().abs() * 0.25
        assert ((tensor.double() - exact).abs() <= 3 * 2.0**-24 * size).all(), name
    first = next(iter(dict(base.network.named_parameters())))
    assert torch.equal(found[first], before[first])


def test_neither_model_changes(base, tuned):
    before = {name: tensor.clone() for name, tensor in state(base).items()}
    merged = fiber.merge(base, tuned)
    for parameter in merged.network.parameters():
        torch.nn.init.zeros_(parameter)
    assert equal(state(base), before)


def test_classes_of_both_and_of_one_at_the_ends(base, tuned):
    old = Model(base.network, base.tokenizer, classes=("dog", "cat"))
    assert fiber.merge(old, tuned).classes == ("cup", "cat", "dog")
    assert fiber.merge(old, tuned, 0).classes == ("dog", "cat")
    assert fiber.merge(old, tuned, 1).classes == ("cup", "cat")


def test_saved_with_the_names_of_both(micro_models, base, tuned, tmp_path):
    known = Kept(card="# mine", metrics={"tasks": {}}, training={"init": "/home/me/start"})
    tuned = Model(tuned.network, tuned.tokenizer, origin=Origin(kept=known))
    tuned.save(tmp_path / "tuned")
    merged = fiber.merge(micro_models["fine"], tmp_path / "tuned", 0.5)
    merged.save(tmp_path / "merged")
    again = fiber.load(tmp_path / "merged")
    assert equal(state(again), state(fiber.merge(base, tuned, 0.5)))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base: fine" in card and "tuned: tuned" in card and "0.5" in card
    assert not (tmp_path / "merged" / "metrics.json").exists()
    training = json.loads((tmp_path / "merged" / "config.json").read_text())["training"]
    assert training["init"] == "/home/me/start"
    found = training["merged"]
    assert found["weight"] == 0.5
    assert found["base"]["model"] == str(micro_models["fine"])
    assert found["tuned"]["model"] == str(tmp_path / "tuned")
    assert found["base"]["sha256"] != found["tuned"]["sha256"]
    # What is uploaded has no path of this machine.
    publish(tmp_path / "merged", card, None)
    public = (tmp_path / "merged" / "config.json").read_text()
    assert str(tmp_path) not in public and '"tuned"' in public


def test_sizes_of_inputs_may_differ(base):
    config = base.config
    detector = dataclasses.replace(config.detector, shorter_side=64, max_size=96)
    other = changed(base)
    other.network.config = dataclasses.replace(config, detector=detector)
    other = Model(other.network, base.tokenizer)
    assert fiber.merge(base, other).config.detector.shorter_side == 64
    assert fiber.merge(base, other, 0).config == config


@pytest.mark.parametrize("weight", [-0.1, 1.01, float("nan")])
def test_a_weight_out_of_range(base, tuned, weight):
    with pytest.raises(ValueError, match=f"weight: expected a number from 0 to 1, got {weight}"):
        fiber.merge(base, tuned, weight)


@pytest.mark.parametrize("weight", ["0.5", True, None])
def test_a_weight_of_another_type(base, tuned, weight):
    with pytest.raises(TypeError, match="weight"):
        fiber.merge(base, tuned, weight)


def test_no_model(base, tuned, tmp_path):
    with pytest.raises(TypeError, match="tuned: expected a model or the path of one, got dict"):
        fiber.merge(base, {})
    with pytest.raises(FileNotFoundError, match="none"):
        fiber.merge(tmp_path / "none", tuned)


def test_a_model_of_two_stages(coarse, tuned, base):
    from fiber.inference.stages import StagedModel

    with pytest.raises(ValueError, match=r"base: expected a model of one stage.*coarse, fine"):
        fiber.merge(StagedModel({"coarse": coarse, "fine": base}), tuned)


def test_another_stage_or_family(base, coarse):
    with pytest.raises(
        ValueError, match=r"fine is a fine FIBER model; .*coarse is a coarse FIBER model"
    ):
        fiber.merge(base, coarse)
    torch.manual_seed(0)
    meter = Model(build_model(load_recipe("small_meter").model))
    with pytest.raises(ValueError, match="is a METER model"):
        fiber.merge(coarse, meter)


def test_other_shapes_and_tensors(coarse):
    config = coarse.config
    heads = dataclasses.replace(config.image_text, num_answers=config.num_answers + 1)
    torch.manual_seed(0)
    wider = build_model(dataclasses.replace(config, image_text=heads))
    with pytest.raises(ValueError, match=r"vqa_head\.output\.weight has the shapes \(\d+, \d+\)"):
        fiber.merge(coarse, Model(wider))
    heads = dataclasses.replace(config.image_text, heads=("vqa",))
    fewer = build_model(dataclasses.replace(config, image_text=heads))
    with pytest.raises(ValueError, match=r"missing itc_image_norm.weight in the tuned model"):
        fiber.merge(coarse, Model(fewer))


def test_tensors_that_mean_other_things(base):
    other = changed(base)
    other.network.config = dataclasses.replace(base.config, channel_order="bgr")
    with pytest.raises(ValueError, match="channel_order is 'rgb' and 'bgr'"):
        fiber.merge(base, Model(other.network, base.tokenizer))


def test_another_tokenizer(base, tuned):
    words = Tokenizer.train(["other words than those"] * 10, base.tokenizer.vocab_size)
    assert words.to_json() != base.tokenizer.to_json()
    with pytest.raises(ValueError, match="their tokenizers differ"):
        fiber.merge(base, Model(tuned.network, words))
    # A model without one has that of the other.
    assert fiber.merge(base, Model(tuned.network)).tokenizer is base.tokenizer


def test_other_answers(coarse):
    answers = (*coarse.answers[:-1], "purple")
    with pytest.raises(ValueError, match=f"answer {len(answers) - 1} is .* and 'purple'"):
        fiber.merge(coarse, changed(coarse, answers=answers))
    assert fiber.merge(coarse, changed(coarse)).answers == coarse.answers


def test_the_command(micro_models, tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuned.save("tuned")
    base = str(micro_models["fine"])
    assert main(["merge", base, "tuned", "--weight", "0.3", "--output", "merged"]) == 0
    printed = capsys.readouterr()
    assert f"wrote merged: 0.7 of {base}, 0.3 of tuned" in printed.out
    assert "cup" in printed.err
    assert equal(state(fiber.load("merged")), state(fiber.merge(base, tuned, 0.3)))
    assert main(["merge", base, "tuned", "--output", "merged"]) == 2
    assert "merged already contains" in capsys.readouterr().err
    assert main(["merge", base, str(micro_models["coarse"]), "--output", "new"]) == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
