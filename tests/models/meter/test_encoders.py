"""METER starts from CLIP's, Swin's and RoBERTa's own files.

BERT's are in `tests/models/encoders/test_bert.py`.
"""

import dataclasses
import re

import pytest
import torch

from fiber.checkpoints.encoders import encoder_states, load_encoder
from fiber.checkpoints.load import EncoderStates, read_init
from fiber.checkpoints.published import published_state
from fiber.config import ClipConfig, SwinConfig
from fiber.models.encoders.position_interpolation import resize_bias_table, resize_position_table
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.models.registry import architecture_of, encoder_format, recognize
from tests.golden import METER
from tests.parity.meter_case import MeterCase
from tests.peer_versions import needs

pytestmark = pytest.mark.oldest
NAMES = needs("transformers", "5.9", "its encoders had other names, and CLIP gave no hidden states")

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


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
def test_a_file_has_the_models_blocks_or_one_more(num_blocks):
    state = encoder_states(model("clip"))["clip"]
    config = model("clip").config
    assert config.clip.num_blocks == 3
    config = dataclasses.replace(
        config, clip=dataclasses.replace(config.clip, num_blocks=num_blocks)
    )
    target = MeterImageText(config)
    if num_blocks == 2:
        _, ignored = load_encoder(target, state)
        assert set(ignored) == {n for n in state if n.startswith("visual.transformer.resblocks.2.")}
        return
    with pytest.raises(
        ValueError, match=rf"blocks 3, expected {num_blocks} or {num_blocks + 1}; .*num_blocks=3"
    ):
        load_encoder(target, state)


@NAMES
@pytest.mark.parametrize("has_text", [False, True])
@pytest.mark.parametrize("size", [64, 96])
def test_transformers_clip_gives_the_same_features(tmp_path, has_text, size):
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
    theirs.save_pretrained(tmp_path)
    # Next to a config.json of transformers.
    start = read_init(tmp_path)
    assert isinstance(start, EncoderStates)
    target = model("clip", size).eval()
    _, ignored = load_encoder(target, start.states[tmp_path / "model.safetensors"])
    assert any("last block" in reason for reason in ignored.values())
    images = torch.randn(2, 3, size, size)
    tower = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    table = tower.embeddings.position_embedding
    if size != 64:
        rows = 1 + (size // 16) ** 2
        table.weight = torch.nn.Parameter(resize_position_table(table.weight.data, rows))
        tower.embeddings.position_ids = torch.arange(rows)[None]
        tower.embeddings.image_size = size
    with torch.no_grad():
        hidden = tower(images, output_hidden_states=True).hidden_states[-2]
        expected = tower.post_layernorm(hidden)
        # Features go up to 4; both compute in float32.
        torch.testing.assert_close(
            target.backbone.encode_image(images), expected, atol=1e-5, rtol=0
        )


def timm_swin():
    """timm's Swin of the size of the recorded case, with random weights."""
    swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(0)
    theirs = swin.SwinTransformer(
        img_size=96,
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=3,
        num_classes=10,
        drop_path_rate=0.0,
    )
    for name, parameter in theirs.named_parameters():
        start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=start, std=0.1)
    return theirs.eval()


def in_microsofts_names(state):
    """Patch merging is part of the stage before, and the classifier has no pooling."""
    state = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", n): t
        for n, t in state.items()
    }
    buffers = {
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 9, 9),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64),
    }
    return {n.replace("head.fc.", "head."): tensor for n, tensor in state.items()} | buffers


@pytest.mark.parametrize("naming", ["timm", "microsoft"])
def test_swin_gives_the_features_of_timm(tmp_path, naming):
    theirs = timm_swin()
    state = theirs.state_dict()
    # Microsoft's files hold the weights under "model".
    content = state if naming == "timm" else {"model": in_microsofts_names(state)}
    torch.save(content, tmp_path / "swin.pth")
    start = read_init(tmp_path / "swin.pth")
    assert isinstance(start, EncoderStates)
    target = model("swin").eval()
    keys, ignored = load_encoder(target, start.states[tmp_path / "swin.pth"])
    parts = ("backbone.image.", "backbone.image_norm.")
    assert set(keys) == {name for name in target.state_dict() if name.startswith(parts)}
    reasons = {"ImageNet classifier"}
    if naming == "microsoft":
        reasons |= {"buffer derived from the map size", "buffer derived from the window size"}
    assert set(ignored.values()) == reasons
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = theirs.forward_features(images).flatten(1, 2)
        # Features go up to 4; both compute in float32.
        torch.testing.assert_close(
            target.backbone.encode_image(images), expected, atol=1e-5, rtol=0
        )


def test_tables_of_swin_follow_the_image_size():
    state = timm_swin().state_dict()
    target = model("swin", 128)
    load_encoder(target, state)
    table = target.backbone.image.stages[2].blocks[1].attention.bias_table
    theirs = state["layers.2.blocks.1.attn.relative_position_bias_table"]
    assert torch.equal(table, resize_bias_table(theirs, 49))


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_roberta_gives_the_features_of_transformers(prefix):
    transformers = pytest.importorskip("transformers")
    target = model("clip").eval()
    own = target.config.roberta
    torch.manual_seed(0)
    theirs = transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=own.vocab_size,
            hidden_size=own.width,
            num_hidden_layers=own.num_layers,
            num_attention_heads=own.num_heads,
            intermediate_size=own.ffn_width,
            max_position_embeddings=own.max_positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    ).eval()
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    keys, ignored = load_encoder(target, state)
    assert set(keys) == {n for n in target.state_dict() if n.startswith("backbone.text.")}
    assert set(ignored.values()) <= {"unused pooler", "position buffer"}
    ids = torch.randint(4, own.vocab_size - 1, (3, 12))
    ids[1, 7:] = ids[2, 4:] = 1
    mask = ids.ne(1)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
        found = target.backbone.encode_text(ids, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


#: Configs of published image encoders, and keys of their files with shapes.
SIZES = {
    "CLIP-B/32": (
        MeterConfig(image_size=224, clip=ClipConfig(patch_size=32)),
        {
            "visual.conv1.weight": (768, 3, 32, 32),
            "visual.positional_embedding": (50, 768),
            "visual.transformer.resblocks.10.mlp.c_fc.weight": (3072, 768),
            # The last of the twelve is left out.
            "visual.transformer.resblocks.11.mlp.c_fc.weight": None,
        },
    ),
    "CLIP-B/16": (
        MeterConfig(image_size=224),
        {"visual.conv1.weight": (768, 3, 16, 16), "visual.positional_embedding": (197, 768)},
    ),
    "Swin-L": (
        MeterConfig(
            image_size=384,
            image_encoder="swin",
            swin=SwinConfig(embed_dim=192, num_heads=(6, 12, 24, 48), window_size=12),
        ),
        {
            "patch_embed.proj.weight": (192, 3, 4, 4),
            "layers.2.blocks.17.attn.relative_position_bias_table": (529, 24),
            "layers.3.blocks.1.mlp.fc1.weight": (6144, 1536),
            "norm.weight": (1536,),
        },
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_recognized_by_their_tensors(name):
    config, shapes = SIZES[name]
    architecture = architecture_of(config)
    with torch.device("meta"):
        network = MeterImageText(config)
    encoder = encoder_states(network)[config.image_encoder]
    for key, shape in shapes.items():
        assert (tuple(encoder[key].shape) if key in encoder else None) == shape
    # A whole model of this size, as the published code names it, tells its config.
    state = published_state(network)
    assert recognize(state) is architecture
    assert architecture.infer_config(state, {}) == config
