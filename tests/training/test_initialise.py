import dataclasses
from pathlib import Path

import pytest
import torch

from fiber.config import preset
from fiber.fields import replace_fields
from fiber.models.weights_towers import resize_bias_table
from fiber.training.checkpoint import StoredModel, build_model
from fiber.training.initialise import initialise

EXTRAS = Path(__file__).parents[2] / "../shared/golden/coarse/extras.safetensors"


def stored(config) -> StoredModel:
    torch.manual_seed(1)
    return StoredModel(model=build_model(config))


def test_same_model_is_taken_whole():
    config = preset("micro")
    start, model = stored(config), build_model(config)
    report = initialise(model, start)
    assert (report.dropped, report.created) == ((), ())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start.model.state_dict()[name]), name


def test_other_heads_are_dropped_and_created():
    pretrained = replace_fields(preset("micro"), {"image_text.heads": "itc,itm,mlm"})
    answering = replace_fields(preset("micro"), {"image_text.heads": "itm,vqa"})
    report = initialise(build_model(answering), stored(pretrained))
    assert "itm_head.weight" in report.taken
    assert {name.split(".")[0] for name in report.created} == {"vqa_head"}
    assert "language_head.decoder.weight" in report.dropped
    assert "temperature" in report.dropped


def test_other_answers_make_a_new_last_layer():
    model = build_model(replace_fields(preset("micro"), {"image_text.num_answers": 5}))
    report = initialise(model, stored(preset("micro")))
    assert report.created == report.dropped == ("vqa_head.output.weight", "vqa_head.output.bias")


def test_other_answers_of_the_same_number_make_a_new_last_layer():
    start = stored(preset("micro"))
    words = tuple(map(str, range(16)))
    start = dataclasses.replace(start, answers=words)
    output = ("vqa_head.output.weight", "vqa_head.output.bias")
    assert initialise(build_model(preset("micro")), start, words[::-1]).created == output
    assert initialise(build_model(preset("micro")), start, words).created == ()
    # Published files name no answers.
    unknown = stored(preset("micro"))
    assert initialise(build_model(preset("micro")), unknown, words).created == output


def test_other_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"embeddings.word.weight \(320, 32\), expected \(400, 32"):
        initialise(build_model(preset("micro").with_vocabulary(400)), stored(preset("micro")))


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_bias_tables_follow_the_window(stage):
    larger = replace_fields(preset("micro", stage=stage), {"swin.window_size": 4})
    start, model = stored(preset("micro")), build_model(larger)
    report = initialise(model, start)
    name = "backbone.image.stages.0.blocks.0.attention.bias_table"
    assert name in report.taken
    expected = resize_bias_table(start.model.state_dict()[name], 49)
    assert torch.equal(model.state_dict()[name], expected)


def test_resizing_to_the_same_window_changes_nothing():
    table = torch.randn(9, 2)
    assert resize_bias_table(table, 9) is table


def test_resized_table_keeps_orientation():
    # A ramp over rows (dy) stays one, and does not turn into one over columns (dx).
    ramp = torch.arange(5.0).repeat_interleave(5)[:, None]
    resized = resize_bias_table(ramp, 81).view(9, 9)
    assert torch.allclose(resized, resized[:, :1].expand(9, 9))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


@pytest.mark.skipif(not EXTRAS.exists(), reason="recorded tensors (../shared) are not here")
@pytest.mark.parametrize("size", [224, 480, 576])
def test_resized_table_equals_the_published_one(size):
    from safetensors.torch import load_file

    recorded = load_file(EXTRAS)
    after = recorded[f"bias.after_{size}"]
    ours = resize_bias_table(recorded["bias.before_384"], len(after))
    torch.testing.assert_close(ours, after, rtol=0, atol=1e-6)
