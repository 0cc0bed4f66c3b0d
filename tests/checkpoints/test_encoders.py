"""Third-party encoders: features match transformers' own models with the same weights."""

import dataclasses
import re

import pytest
import torch

from fiber.checkpoints.encoders import encoder_states, load_encoder
from fiber.config import FiberConfig, RobertaConfig, SwinConfig, preset
from fiber.models.encoders.position_interpolation import resize_bias_table
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import FIRST_CONVOLUTION
from fiber.models.registry import encoder_format
from tests.peer_versions import needs

pytestmark = pytest.mark.oldest
NAMES = needs("transformers", "5.9", "its encoders had other names, and CLIP gave no hidden states")

transformers = pytest.importorskip("transformers")

CONFIG = dataclasses.replace(
    preset("micro"),
    max_tokens=12,
    # Two blocks in the first stages, so that windows are shifted there.
    swin=SwinConfig(
        embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=2, drop_path=0.0
    ),
    roberta=RobertaConfig(
        vocab_size=100,
        width=48,
        num_layers=4,
        num_heads=3,
        ffn_width=80,
        max_positions=20,
        dropout=0.0,
    ),
)


def model(config: FiberConfig = CONFIG, seed: int = 1):
    torch.manual_seed(seed)
    return (FiberDetector if config.stage == "fine" else FiberImageText)(config).eval()


def draw(module):
    """Randomize all weights, so that no bias is 0 and no norm is the identity."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        start = 1.0 if re.search(r"(norm\w*|LayerNorm)\.weight$", name) else 0.0
        torch.nn.init.normal_(parameter, mean=start, std=0.15)
    return module.eval()


def swin():
    c = CONFIG.swin
    return draw(
        transformers.SwinModel(
            transformers.SwinConfig(
                image_size=CONFIG.image_size,
                patch_size=c.patch_size,
                embed_dim=c.embed_dim,
                depths=list(c.depths),
                num_heads=list(c.num_heads),
                window_size=c.window_size,
                layer_norm_eps=1e-5,
            )
        )
    )


def roberta():
    c = CONFIG.roberta
    return draw(
        transformers.RobertaModel(
            transformers.RobertaConfig(
                vocab_size=c.vocab_size,
                hidden_size=c.width,
                num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads,
                intermediate_size=c.ffn_width,
                max_position_embeddings=c.max_positions,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
            )
        )
    )


#: transformers' names of a Swin -> Microsoft's, part by part.
MICROSOFT = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.layers", "layers"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("attention.relative_position_bias.", "attn."),
    ("layernorm", "norm"),
)


def in_microsoft_names(state):
    """Rename a SwinModel's tensors, with query, key and value fused."""
    renamed = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed_name = name.replace("attention.q_proj", "attn.qkv")
            tensor = torch.cat(parts)
        else:
            renamed_name = name
        for theirs, microsoft in MICROSOFT:
            renamed_name = renamed_name.replace(theirs, microsoft)
        renamed[renamed_name] = tensor
    return renamed


def in_timm_names(state):
    """Convert Microsoft's names to timm's, where patch merging belongs to the next stage."""
    return {
        re.sub(
            r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
        ): tensor
        for name, tensor in state.items()
    }


def check_features(ours, theirs, exact):
    """Compare with float64.

    The rounding error in float32 depends on the summation order, so ours may be up to twice as
    large as that of transformers, or a few roundings of the largest value.
    """
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    error, their_error = (ours - exact).abs().max(), (theirs - exact).abs().max()
    assert exact.abs().max() > 0.5
    assert error <= 2 * their_error + floor, (error, their_error)


@NAMES
@pytest.mark.parametrize("rename", [lambda state: state, in_timm_names], ids=["microsoft", "timm"])
def test_image_encoder_matches_transformers(rename):
    theirs, ours = swin(), model()
    _, ignored = load_encoder(ours, rename(in_microsoft_names(theirs.state_dict())))
    assert ignored == {}
    images = torch.randn(2, 3, 64, 64)
    tower = ours.backbone.image
    with torch.no_grad():
        output = theirs(images, output_hidden_states=True)
        exact = theirs.double()(images.double(), output_hidden_states=True)
        stages = tower(images)
        last = ours.itc_image_norm(stages[-1]).flatten(1, 2)
        # transformers returns each stage after patch merging, and the last stage unchanged.
        maps = [tower.stages[number].merging(stages[number]) for number in range(3)] + [stages[3]]
    check_features(last, output.last_hidden_state, exact.last_hidden_state)
    for number, ours_then in enumerate(maps, start=1):
        # (B, H, W, C) -> (B, C, H, W)
        ours_then = ours_then.permute(0, 3, 1, 2)
        check_features(
            ours_then, output.reshaped_hidden_states[number], exact.reshaped_hidden_states[number]
        )


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_text_encoder_matches_transformers(prefix):
    theirs, ours = roberta(), model()
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    state |= {"lm_head.bias": torch.zeros(100), f"{prefix}embeddings.position_ids": torch.ones(1)}
    _, ignored = load_encoder(ours, state)
    assert set(ignored) == {
        "lm_head.bias",
        *(f"{prefix}{name}" for name in ("embeddings.position_ids", "pooler.dense.weight")),
        f"{prefix}pooler.dense.bias",
    }
    ids = torch.randint(4, 99, (3, 12))
    ids[1, 7:] = ids[2, 4:] = 1
    mask = ids.ne(1)
    with torch.no_grad():
        output = theirs(ids, attention_mask=mask.long()).last_hidden_state
        exact = theirs.double()(ids, attention_mask=mask.long()).last_hidden_state
        features = ours.backbone.text(ids, mask)
    check_features(features[mask], output[mask], exact[mask])


@pytest.mark.parametrize("layout", ["microsoft", "timm"])
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_encoders_survive_a_round_trip(layout, stage):
    config = CONFIG if stage == "coarse" else CONFIG.fine()
    source, target = model(config, 1), model(config, 2)
    states = encoder_states(source, layout)
    assert ("layers.3.downsample.norm.bias" in states["swin"]) == (layout == "timm")
    assert ("layers.0.downsample.norm.bias" in states["swin"]) == (layout == "microsoft")
    assert ("norm.weight" in states["swin"]) == (stage == "coarse")
    taken = set()
    for state in states.values():
        keys, ignored = load_encoder(target, state)
        taken |= set(keys)
        assert ignored == {}
    own, expected = target.state_dict(), source.state_dict()
    assert {name for name in own if name.startswith(("backbone.image.", "backbone.text."))} <= taken
    for name in taken:
        assert torch.equal(own[name], expected[name]), name
    again = encoder_states(target, layout)
    for tower, state in states.items():
        assert list(state) == list(again[tower])
        assert all(torch.equal(state[name], again[tower][name]) for name in state)


@NAMES
def test_exported_encoders_load_into_transformers():
    ours, theirs = draw(model()), roberta()
    state = encoder_states(ours)["roberta"]
    wrong = theirs.load_state_dict(state, strict=False)
    assert wrong.unexpected_keys == []
    assert all(name.startswith("pooler.") for name in wrong.missing_keys)
    names = set(in_microsoft_names(swin().state_dict()))
    assert set(encoder_states(ours)["swin"]) == names


@NAMES
def test_extra_tensors_in_released_files_are_ignored():
    """Microsoft's file has buffers and a classifier; a fine-stage model needs no last norm."""
    state = in_microsoft_names(swin().state_dict())
    state |= {
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 4, 4),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4),
        "head.weight": torch.zeros(10, 128),
        "head.bias": torch.zeros(10),
    }
    _, ignored = load_encoder(model(), state)
    assert set(ignored.values()) == {
        "buffer derived from the map size",
        "buffer derived from the window size",
        "ImageNet classifier",
    }
    _, ignored = load_encoder(model(CONFIG.fine()), state)
    assert "norm.weight" in ignored


@NAMES
def test_bias_tables_are_resized_to_the_window():
    larger = dataclasses.replace(CONFIG, swin=dataclasses.replace(CONFIG.swin, window_size=4))
    state = in_microsoft_names(swin().state_dict())
    ours = model(larger)
    load_encoder(ours, state)
    table = ours.state_dict()["backbone.image.stages.1.blocks.0.attention.bias_table"]
    theirs = state["layers.1.blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(table, resize_bias_table(theirs, 49))


@NAMES
def test_channels_are_swapped_for_a_bgr_model():
    state = in_microsoft_names(swin().state_dict())
    ours = model(dataclasses.replace(CONFIG.fine(), channel_order="bgr"))
    load_encoder(ours, state)
    first = ours.state_dict()[FIRST_CONVOLUTION]
    assert torch.equal(first[:, 0], state["patch_embed.proj.weight"][:, 2])
    assert torch.equal(
        encoder_states(ours)["swin"]["patch_embed.proj.weight"], state["patch_embed.proj.weight"]
    )


FAULTS = {
    "missing": (lambda s: s.pop("layers.2.downsample.norm.bias"), "missing layers.2.downsample"),
    "unknown": (lambda s: s.update({"layers.0.gamma": torch.ones(1)}), "unknown layers.0.gamma"),
    "wrong shape": (
        lambda s: s.update({"norm.weight": torch.ones(3)}),
        r"norm.weight has shape \(3,\), expected \(128,\)",
    ),
}


@NAMES
@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_mismatches_are_named_and_nothing_is_loaded(damage, message):
    state = in_microsoft_names(swin().state_dict())
    damage(state)
    ours = model()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_encoder(ours, state)
    assert all(torch.equal(before[name], each) for name, each in ours.state_dict().items())


def test_file_without_encoders_is_rejected():
    assert encoder_format(["conv1.weight"]) is None
    with pytest.raises(ValueError, match=r"image.*conv1"):
        load_encoder(model(), {"conv1.weight": torch.zeros(1)})
