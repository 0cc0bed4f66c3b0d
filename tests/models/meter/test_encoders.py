"""METER starts from CLIP's, Swin's and RoBERTa's own files."""

import pytest
import torch

from fiber.checkpoints.encoders import encoder_states, load_encoder
from fiber.models.meter.image_text import MeterImageText
from fiber.models.registry import encoder_format
from tests.golden import METER
from tests.parity.meter_case import MeterCase

#: What OpenAI's file has besides the blocks that METER keeps.
CLIP_REST = {
    "visual.proj": (128, 64),
    "visual.transformer.resblocks.3.ln_1.weight": (128,),
    "transformer.resblocks.0.ln_1.weight": (64,),
    "token_embedding.weight": (90, 64),
    "positional_embedding": (77, 64),
    "ln_final.weight": (64,),
    "text_projection": (64, 64),
    "logit_scale": (),
}


def model(case, size=None):
    config = MeterCase(METER / f"{case}_micro.json").meter_config("pretrain")
    return MeterImageText(config if size is None else config.with_image_size(size))


@pytest.mark.parametrize("case", ["clip", "swin"])
def test_encoders_are_written_and_read_back(case):
    start, target = model(case), model(case)
    written = encoder_states(start)
    assert list(written) == [case, "roberta"]
    for state in written.values():
        keys, ignored = load_encoder(target, state)
        assert ignored == {}
        for name in keys:
            assert torch.equal(target.state_dict()[name], start.state_dict()[name])
    taken = {name for state in written.values() for name in load_encoder(target, state)[0]}
    parts = ("backbone.image.", "backbone.image_norm.", "backbone.text.")
    assert taken == {name for name in start.state_dict() if name.startswith(parts)}


def test_openais_file_has_more_than_meter_takes():
    state = encoder_states(model("clip"))["clip"]
    state |= {name: torch.randn(shape) for name, shape in CLIP_REST.items()}
    found = encoder_format(state)
    assert found is not None
    assert found.title == "CLIP"
    target = model("clip", 96)
    keys, ignored = load_encoder(target, state)
    assert set(ignored) == set(CLIP_REST)
    assert "last block" in ignored["visual.transformer.resblocks.3.ln_1.weight"]
    # Positions of another image size: 4 x 4 patches to 6 x 6.
    assert len(target.backbone.image.position_embedding) == 37
    assert "backbone.image.position_embedding" in keys


def test_another_encoder_than_the_models_is_named():
    state = encoder_states(model("swin"))["swin"]
    with pytest.raises(ValueError, match="a Swin encoder, which the model has not"):
        load_encoder(model("clip"), state)


def test_unknown_and_missing_tensors_are_named():
    state = encoder_states(model("clip"))["clip"]
    del state["visual.ln_post.bias"]
    state["visual.attnpool.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"missing visual\.ln_post\.bias(?s:.)*attnpool"):
        load_encoder(model("clip"), state)


@pytest.mark.parametrize("has_text", [False, True])
def test_transformers_clip_gives_the_same_features(has_text):
    transformers = pytest.importorskip("transformers")
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    torch.manual_seed(0)
    if has_text:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision)
        theirs = transformers.CLIPModel(config).eval()
    else:
        theirs = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).eval()
    state = theirs.state_dict()
    if not any(name.startswith("vision_model.") for name in state):
        # Newer versions have no prefix in memory, but write files with it.
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    target = model("clip").eval()
    _, ignored = load_encoder(target, state)
    assert any("last block" in reason for reason in ignored.values())
    images = torch.randn(2, 3, 64, 64)
    tower = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    with torch.no_grad():
        hidden = tower(images, output_hidden_states=True).hidden_states[-2]
        expected = tower.post_layernorm(hidden)
        # Features go up to 4; both compute in float32.
        torch.testing.assert_close(
            target.backbone.encode_image(images), expected, atol=1e-5, rtol=0
        )
