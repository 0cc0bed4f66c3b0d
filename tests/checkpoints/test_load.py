"""Reading, writing and training from published files and encoder files."""

import collections
import dataclasses
import json
import sys
import types

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.init_from import initialize
from fiber.checkpoints.load import EncoderStates, read_init, read_model
from fiber.checkpoints.model_dir import StoredModel, load_model, save_model
from fiber.checkpoints.torch_file import read_checkpoint
from fiber.config import FiberConfig, preset
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.models.fiber.keys import coarse_keys as coarse_map
from fiber.models.fiber.keys import fine_keys as fine_map
from fiber.models.registry import build_model
from tests.golden import COARSE
from tests.models.encoders.test_swin import randomise
from tests.published_keys import coarse_keys, fine_keys, small_state
from tests.training.micro_runs import coarse_config, run

pytestmark = pytest.mark.oldest

VERSIONS = ["coarse", "v2", "v3"]


def published(kind):
    return small_state(coarse_keys() if kind == "coarse" else fine_keys(kind))


def write_like_lightning(state, path):
    """Write as Lightning 1.3.2 does: callback states are keyed by a class that no longer exists."""
    module = types.ModuleType("gone_callbacks")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    sys.modules[module.__name__] = module
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.3.2",
        "state_dict": collections.OrderedDict(state),
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"config": {"image_size": 384, "loss_names": {"itc": 1}}},
    }
    torch.save(content, path)
    del sys.modules[module.__name__]


def write_like_the_fine_stage(state, path):
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    average = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    average |= {name: tensor for name, tensor in state.items() if "cell_anchors" in name}
    torch.save({"model": parallel, "model_ema": average, "iteration": 7}, path)


@pytest.mark.parametrize("ending", [".ckpt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", VERSIONS)
def test_published_weights_survive_a_round_trip(kind, ending, tmp_path):
    state, path = published(kind), tmp_path / "published.ckpt"
    (write_like_lightning if kind == "coarse" else write_like_the_fine_stage)(state, path)
    stored = read_model(path)
    save_model(stored.network, tmp_path / "fiber")
    again = load_model(tmp_path / "fiber")
    assert again.config == stored.config
    write_published(again.network, tmp_path / f"back{ending}")
    back = read_checkpoint(tmp_path / f"back{ending}").state
    keys = coarse_map(stored.config) if kind == "coarse" else fine_map(stored.config)
    used = {name for names in keys.values() for name in names}
    assert used | set(stored.ignored) == set(state)
    for name in used:
        assert torch.equal(back[name], state[name]), name
    # For the fine stage, buffers are also written; the key lists give only their shapes.
    assert set(back) == (used if kind == "coarse" else set(state))
    assert all(back[name].shape == state[name].shape for name in back)


def test_moving_average_weights_can_be_loaded(tmp_path):
    write_like_the_fine_stage(published("v3"), tmp_path / "fine.pth")
    assert read_model(tmp_path / "fine.pth").network.head.text_bias.any()
    assert not read_model(tmp_path / "fine.pth", weights="ema").network.head.text_bias.any()
    with pytest.raises(ValueError, match=r"'ema'.*expected 'raw'"):
        read_model(tmp_path, weights="ema")


def test_released_checkpoint_is_loaded(tmp_path):
    """It has no temperature, no queues, and two tensors from an earlier implementation."""
    state = {name: tensor for name, tensor in published("coarse").items() if "queue" not in name}
    del state["temp"]
    state |= {"logit_scale": torch.ones(()), "token_type_embeddings.weight": torch.ones(2, 192)}
    # A captioner trained off-policy contains a copy of itself.
    state |= {"copy_module.vit_model.norm.bias": torch.ones(256)}
    torch.save({"state_dict": state}, tmp_path / "released.ckpt")
    stored = read_model(tmp_path / "released.ckpt")
    assert stored.network.temperature.item() == pytest.approx(0.07)
    assert stored.filled == {"temperature": 0.07}
    for name in ("logit_scale", "token_type_embeddings.weight", "rank_output.bias"):
        assert name in stored.ignored
    assert "copy_module.vit_model.norm.bias" in stored.ignored


def test_missing_temperature_keeps_the_models_value(tmp_path):
    state = published("coarse")
    torch.save({"state_dict": state}, tmp_path / "whole.ckpt")
    del state["temp"]
    torch.save({"state_dict": state}, tmp_path / "released.ckpt")
    stored = read_model(tmp_path / "released.ckpt")
    model = build_model(replace_fields(stored.config, {"image_text.temperature": 0.05}))
    report = initialize(model, stored)
    assert report.created[0] == "temperature"
    assert model.temperature.item() == pytest.approx(0.05)
    whole = read_model(tmp_path / "whole.ckpt")
    assert whole.filled == {}
    assert "temperature" in initialize(model, whole).taken


def test_no_temperature_is_filled_in_without_a_contrastive_head(tmp_path):
    model = build_model(replace_fields(preset("micro"), {"image_text.heads": "itm,vqa"}))
    state = write_published(model, tmp_path / "a.ckpt")
    assert "itm_score.fc.weight" in state
    assert not [name for name in state if name == "temp" or "_itc." in name]


@pytest.mark.parametrize("kind", ["coarse", "v3"])
def test_errors_name_the_file(kind, tmp_path):
    state = published(kind)
    gone, changed = [name for name in state if name.endswith(".attn.proj.weight")][:2]
    del state[gone]
    state[changed] = torch.zeros(2, 3)
    state["unheard.of"] = torch.zeros(1)
    torch.save(state, tmp_path / "faulty.pt")
    with pytest.raises(
        ValueError, match=r"faulty\.pt: (coarse|fine) FIBER checkpoint: 3 tensors"
    ) as caught:
        read_model(tmp_path / "faulty.pt")
    for part in (f"missing {gone}", "unknown unheard.of", f"{changed} has shape (2, 3), expected"):
        assert part in str(caught.value)


def test_resized_tables_match_the_recorded_ones(tmp_path):
    recorded = load_file(COARSE / "extras.safetensors")
    state, name = published("coarse"), "vit_model.layers.0.blocks.0.attn"
    # The recorded tables differ from interpolation in float64 by up to 3.5e-6. The newest torch
    # repeats them; bicubic interpolation of torch 2.6 differs from them by up to 9.5e-7.
    atol = 1e-7 if Version(torch.__version__) >= Version("2.15") else 1e-6
    state[f"{name}.relative_position_bias_table"] = recorded["bias.before_384"]
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    for size, window in ((224, 7), (480, 15), (576, 18)):
        stored = read_model(tmp_path / "a.ckpt", image_size=size)
        assert (stored.config.image_size, stored.config.swin.window_size) == (size, window)
        table = stored.network.state_dict()["backbone.image.stages.0.blocks.0.attention.bias_table"]
        expected = recorded[f"bias.after_{size}"]
        torch.testing.assert_close(table, expected, rtol=0, atol=atol)
    assert torch.equal(
        read_model(tmp_path / "a.ckpt", image_size=384).network.state_dict()[
            "backbone.image.stages.0.blocks.0.attention.bias_table"
        ],
        recorded["bias.before_384"],
    )


def test_invalid_resolutions_are_rejected(tmp_path):
    torch.save(published("coarse"), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: coarse FIBER checkpoint: image_size 400.*32"):
        read_model(tmp_path / "a.pt", image_size=400)
    torch.save(published("v2"), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt: fine FIBER checkpoint: image_size 480"):
        read_model(tmp_path / "b.pt", image_size=480)


def test_folder_is_loaded_at_a_different_resolution(tmp_path):
    save_model(build_model(preset("micro")), tmp_path / "m")
    stored = load_model(tmp_path / "m", image_size=128)
    assert (stored.config.image_size, stored.config.swin.window_size) == (128, 4)
    assert stored.network.backbone.image.block(0).attention.bias_table.shape == (49, 1)


def test_published_fine_files_store_bgr_weights(tmp_path):
    model = build_model(preset("micro", stage="fine"))
    own = model.backbone.image.patch_embedding.projection.weight
    state = write_published(model, tmp_path / "a.pth")
    written = state["fusion_backbone.backbone.body.patch_embed.proj.weight"]
    assert torch.equal(written[:, 0], own[:, 2])
    coarse = build_model(preset("micro"))
    own = coarse.backbone.image.patch_embedding.projection.weight
    state = write_published(coarse, tmp_path / "b.pth")
    assert torch.equal(state["vit_model.patch_embed.proj.weight"], own)


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("name", ["micro", "small"])
def test_nonstandard_sizes_survive_a_round_trip(name, stage, ending, tmp_path):
    """Their text heads, windows and maximum text lengths differ from the published ones."""
    torch.manual_seed(0)
    order = "rgb" if stage == "coarse" else "bgr"
    config = replace_fields(preset(name, stage=stage), {"channel_order": order})
    model = build_model(config).eval()
    randomise(model)
    write_published(model, tmp_path / f"a{ending}")
    stored = read_model(tmp_path / f"a{ending}")
    assert stored.config == config
    images = torch.rand(1, 3, config.image_size, config.image_size)
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        answers = [
            each.vqa_logits(each.pooled(each.backbone.encode_pair(images, ids, mask)))
            if stage == "coarse"
            else each.backbone.encode_pair(images, ids, mask).text
            for each in (model, stored.network)
        ]
    assert torch.equal(*answers)


def test_heads_that_share_tensors_survive_a_round_trip(tmp_path):
    """A captioner has the tensors of the MLM head, but no MLM head."""
    config = replace_fields(preset("micro"), {"image_text.heads": "caption,vqa"})
    write_published(build_model(config), tmp_path / "a.ckpt")
    assert read_model(tmp_path / "a.ckpt").config == config


def wider() -> FiberConfig:
    """A small model whose text heads have the published width."""
    small = preset("small")
    return dataclasses.replace(small, roberta=dataclasses.replace(small.roberta, width=128))


def test_file_without_a_config_uses_the_published_sizes(tmp_path):
    state = write_published(build_model(wider()), tmp_path / "a.ckpt")
    torch.save({"state_dict": state}, tmp_path / "bare.ckpt")
    config = read_model(tmp_path / "bare.ckpt").config
    assert (config.image_size, config.max_tokens, config.roberta.num_heads) == (192, 40, 2)


def test_contradiction_error_names_the_file(tmp_path):
    state = write_published(build_model(wider()), tmp_path / "a.ckpt")
    settings = {"config": {"image_size": 96, "num_heads": 4, "hidden_size": 768}}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"b.ckpt.*hidden_size 768.*128"):
        read_model(tmp_path / "b.ckpt")
    save_file(state, tmp_path / "b.safetensors", {"hyper_parameters": "{"})
    with pytest.raises(ValueError, match=r"b.safetensors: hyper_parameters"):
        read_model(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("coarse", "fusion.normalize_query", False),
        ("coarse", "fusion.normalize_last_text", True),
        ("coarse", "fusion.shift_small_maps", True),
        ("coarse", "roberta.layer_norm_eps", 1e-6),
        ("fine", "fusion.normalize_last_text", False),
    ],
)
def test_unsupported_models_are_not_exported(stage, field, value, tmp_path):
    config = replace_fields(preset("micro", stage=stage), {field: value})
    message = (
        rf"a.ckpt: the published format does not support this model: .*{field} is {value}, expected"
    )
    with pytest.raises(ValueError, match=message):
        write_published(build_model(config), tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_invalid_output_paths_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"a.zip.*.ckpt.*.pt.*.pth"):
        write_published(build_model(preset("micro")), tmp_path / "a.zip")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file.*folder"):
        write_encoders(build_model(preset("micro")), tmp_path / "file")


class TestEncoderStates:
    def test_encoders_load_from_a_folder_and_from_files(self, tmp_path):
        source = build_model(preset("micro"))
        write_encoders(source, tmp_path / "towers", "timm")
        with pytest.raises(FileExistsError, match=r"swin.safetensors"):
            write_encoders(source, tmp_path / "towers")
        whole = read_init(tmp_path / "towers")
        swin = read_init(tmp_path / "towers" / "swin.safetensors")
        assert isinstance(whole, EncoderStates)
        assert isinstance(swin, EncoderStates)
        model = build_model(preset("micro"))
        report = initialize(model, whole)
        own, given = model.state_dict(), source.state_dict()
        assert {name.split(".")[1] for name in report.created if "backbone" in name} == {"fusion"}
        assert "itc_image_norm.weight" in report.taken
        for name in report.taken:
            assert torch.equal(own[name], given[name]), name
        report = initialize(build_model(preset("micro")), swin)
        assert not any(".text." in name for name in report.taken)

    def test_transformers_folder_is_loaded(self, tmp_path):
        """Its config.json is not in this package's format."""
        write_encoders(build_model(preset("micro")), tmp_path)
        (tmp_path / "swin.safetensors").unlink()
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
        assert isinstance(read_init(tmp_path), EncoderStates)

    def test_same_encoder_twice_is_rejected(self, tmp_path):
        write_encoders(build_model(preset("micro")), tmp_path)
        save_file(load_file(tmp_path / "swin.safetensors"), tmp_path / "swin_large.safetensors")
        with pytest.raises(
            ValueError,
            match=r"swin_large.safetensors contains the same encoder as swin.safetensors",
        ):
            initialize(build_model(preset("micro")), read_init(tmp_path))

    def test_size_mismatches_are_rejected(self, tmp_path):
        write_encoders(build_model(preset("micro")), tmp_path)
        with pytest.raises(
            ValueError, match=r"roberta.safetensors: .*vocabulary size 320, expected 400"
        ):
            initialize(build_model(preset("micro").with_vocabulary(400)), read_init(tmp_path))

    def test_missing_weights_are_reported(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"config.json"):
            read_init(tmp_path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_init(tmp_path / "none.pth")


def test_channels_are_swapped_if_the_channel_order_changes():
    fine = preset("micro", stage="fine")
    start = StoredModel(network=build_model(dataclasses.replace(fine, channel_order="bgr")))
    model = build_model(fine)
    initialize(model, start)
    ours = model.backbone.image.patch_embedding.projection.weight
    theirs = start.network.backbone.image.patch_embedding.projection.weight
    assert torch.equal(ours[:, 0], theirs[:, 2])


def test_training_starts_from_encoders(pictures, tmp_path):
    config = coarse_config(train__steps=1)
    vocabulary = Tokenizer.from_file(pictures / "tokenizer.json").vocab_size
    write_encoders(build_model(config.model.with_vocabulary(vocabulary)), tmp_path / "towers")
    finished = run(config, pictures, tmp_path / "r", init=tmp_path / "towers")
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["init"] == str(tmp_path / "towers")


def test_training_starts_from_a_published_file_at_a_different_resolution(pictures, tmp_path):
    vocabulary = Tokenizer.from_file(pictures / "tokenizer.json").vocab_size
    torch.save({"state_dict": small_state(coarse_keys(), vocabulary)}, tmp_path / "a.ckpt")
    start = read_model(tmp_path / "a.ckpt", image_size=64)
    config = coarse_config(
        # Keeps the weights as they were read.
        optim__lr=1e-30,
        train__steps=1,
        tasks__question__share=0,
        tasks__reasoning__share=0,
        tasks__caption__share=0,
    )
    model = replace_fields(start.config, {"image_text.heads": "itc,itm,mlm", "max_tokens": 16})
    config = dataclasses.replace(config, model=model)
    finished = run(config, pictures, tmp_path / "r", init=tmp_path / "a.ckpt")
    weights, expected = load_file(finished.folder / "model.safetensors"), start.network.state_dict()
    # The loss clamps the temperature.
    for name in set(weights) - {"temperature"}:
        assert torch.equal(weights[name], expected[name]), name
