"""The image encoder: comparison with transformers' Swin, odd sizes, small maps, drop path."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fiber.config import SwinConfig
from fiber.models.encoders.swin import PatchMerging, SwinBlock, SwinEncoder, WindowAttention
from tests.peer_versions import needs

pytestmark = pytest.mark.oldest
NAMES = needs("transformers", "5.9", "its encoders had other names, and CLIP gave no hidden states")

CONFIG = SwinConfig(
    embed_dim=16, depths=(1, 2, 2, 1), num_heads=(1, 2, 2, 4), window_size=3, drop_path=0.0
)


def randomise(module: torch.nn.Module) -> None:
    """Randomize all parameters; biases and norms start at 0 and 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1) * 0.5


def hugging_face_name(name: str) -> str:
    """Convert a parameter name to that of transformers' SwinModel, except for query, key, value."""
    for ours, theirs in (
        ("patch_embedding.projection", "embeddings.patch_embeddings.projection"),
        ("patch_embedding.norm", "embeddings.norm"),
        ("stages.", "encoder.layers."),
        (
            "attention.bias_table",
            "attention.relative_position_bias.relative_position_bias_table",
        ),
        ("attention.output.", "attention.o_proj."),
        ("attention_norm", "layernorm_before"),
        ("mlp_norm", "layernorm_after"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.2", "mlp.fc2"),
        ("merging", "downsample"),
    ):
        name = name.replace(ours, theirs)
    return name


@NAMES
@pytest.mark.parametrize("size", [(96, 96), (93, 96), (150, 101), (192, 110)], ids=str)
def test_matches_transformers(size):
    transformers = pytest.importorskip("transformers")
    tower = SwinEncoder(CONFIG).eval()
    randomise(tower)
    theirs = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=96,
            embed_dim=16,
            depths=list(CONFIG.depths),
            num_heads=list(CONFIG.num_heads),
            window_size=3,
            drop_path_rate=0.0,
        ),
        add_pooling_layer=False,
    ).eval()
    state = {}
    for name, value in tower.state_dict().items():
        if "attention.qkv" in name:
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                renamed = name.replace("attention.qkv", f"attention.{letter}_proj")
                state[hugging_face_name(renamed)] = piece
        else:
            state[hugging_face_name(name)] = value
    # The last LayerNorm belongs to the heads in this package.
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"layernorm.weight", "layernorm.bias"}
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        stages = tower(images)
        output = theirs(images, output_hidden_states=True)
    expected = torch.nn.functional.layer_norm(stages[-1].flatten(1, 2), (128,), eps=1e-5)
    assert (output.last_hidden_state - expected).abs().max() < 1e-5
    assert stages[0].shape[1:] == (-(-size[0] // 4), -(-size[1] // 4), 16)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 130), (64, 33)], ids=str)
@pytest.mark.parametrize("shift_small_maps", [False, True])
def test_any_image_size(size, shift_small_maps):
    tower = SwinEncoder(CONFIG, shift_small_maps=shift_small_maps)
    stages = tower(torch.randn(1, 3, *size))
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    for stage in stages:
        assert stage.shape[1:3] == (height, width)
        height, width = -(-height // 2), -(-width // 2)
        assert stage.isfinite().all()


def block(**changes) -> SwinBlock:
    arguments = {
        "shifted": True,
        "shift_small_maps": False,
        "mlp_ratio": 2.0,
        "drop_path": 0.0,
    }
    made = SwinBlock(8, 2, 4, **(arguments | changes))
    randomise(made)
    return made


def test_coarse_stage_shrinks_windows_to_small_maps():
    """Windows of 4 on a 2 x 2 map match windows of 2 with the center of the bias table."""
    large, tokens = block(), torch.randn(1, 2, 2, 8)
    small = SwinBlock(8, 2, 2, shifted=False, shift_small_maps=False, mlp_ratio=2.0, drop_path=0.0)
    state = large.state_dict()
    table = state["attention.bias_table"].view(7, 7, 2)
    state["attention.bias_table"] = table[2:5, 2:5].reshape(9, 2)
    small.load_state_dict(state)
    assert torch.equal(large(tokens), small(tokens))


def test_fine_stage_pads_and_shifts_small_maps():
    tokens = torch.randn(1, 4, 4, 8)
    coarse, fine = block(), block(shift_small_maps=True)
    unshifted = block(shifted=False, shift_small_maps=True)
    assert torch.equal(coarse(tokens), unshifted(tokens))
    assert not torch.allclose(fine(tokens), unshifted(tokens))
    assert not torch.allclose(fine(tokens[:, :3, :3]), coarse(tokens[:, :3, :3]))


def test_shift_moves_information_between_windows():
    tokens = torch.randn(1, 8, 8, 8, requires_grad=True)
    for shifted in (False, True):
        out = block(shifted=shifted)(tokens)
        (gradient,) = torch.autograd.grad(out[0, 3, 3].sum(), tokens)
        assert (gradient[0, 4, 4].abs().sum() > 0) == shifted


def test_patch_merging_order():
    """Tokens of a square are merged in the published order, column by column."""
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    square = torch.arange(4.0).view(1, 2, 2, 1)
    assert merging(square).flatten().tolist() == [0.0, 2.0, 1.0, 3.0]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    made = block(drop_path=0.5).train()
    made.mlp = torch.nn.Identity()
    made.mlp_norm = torch.nn.Identity()
    torch.manual_seed(0)
    update = made._drop(torch.ones(4000, 2, 2, 3))
    per_sample = update.flatten(1)
    assert ((per_sample == 0).all(1) | (per_sample == 2).all(1)).all()
    # Four standard errors of a fair coin with values 0 and 2.
    assert abs(update.mean().item() - 1.0) < 4 / 4000**0.5
    assert torch.equal(made.eval()._drop(torch.ones(2, 1, 1, 1)), torch.ones(2, 1, 1, 1))


def test_drop_path_grows_over_the_blocks():
    tower = SwinEncoder(dataclasses.replace(CONFIG, drop_path=0.5))
    rates = [tower.block(number).drop_path for number in range(6)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_initialization():
    tower = SwinEncoder(CONFIG)
    linear = tower.block(0).mlp[0]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (linear.bias == 0).all()
    assert tower.block(0).attention.bias_table.std().item() == pytest.approx(0.02, rel=0.3)


@torch.no_grad()
def test_padding_is_what_a_called_layer_gives_for_zeros():
    attention = WindowAttention(8, num_heads=2, window_size=4)
    randomise(attention)
    tokens = torch.randn(2, 6, 5, 8)
    plain = attention(tokens, window_size=4, shift=0)
    handle = attention.qkv.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(attention(tokens, window_size=4, shift=0), plain)
    handle.remove()
    handle = attention.qkv.register_forward_hook(lambda _, inputs, output: output + 1)
    changed = attention(tokens, window_size=4, shift=0)
    handle.remove()
    attention.qkv.bias += 1
    torch.testing.assert_close(attention(tokens, window_size=4, shift=0), changed)
