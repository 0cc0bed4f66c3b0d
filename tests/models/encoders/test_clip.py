import pytest
import torch

from fiber.config import ClipConfig
from fiber.models.encoders.clip import (
    ClipEncoder,
    QuickGELU,
)
from fiber.models.encoders.position_interpolation import (
    resize_position_table,
    resize_position_tables,
)

pytestmark = pytest.mark.oldest

TINY = ClipConfig(patch_size=8, width=24, num_blocks=2, num_heads=3)


def test_there_is_one_token_more_than_patches():
    encoder = ClipEncoder(TINY, 32).eval()
    assert encoder.position_embedding.shape == (17, 24)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 17, 24)


def test_equals_pytorchs_attention():
    encoder = ClipEncoder(TINY, 16).eval()
    tokens = torch.randn(2, 5, 24)
    block = encoder.blocks[0]
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True).eval()
    with torch.no_grad():
        block.qkv.bias.normal_()
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias)
        theirs.out_proj.weight.copy_(block.output.weight)
        theirs.out_proj.bias.copy_(block.output.bias)
        normed = block.attention_norm(tokens)
        hidden = tokens + theirs(normed, normed, normed, need_weights=False)[0]
        expected = hidden + block.mlp(block.mlp_norm(hidden))
        torch.testing.assert_close(block(tokens), expected)


def test_quick_gelu():
    values = torch.tensor([-2.0, 0.0, 1.5])
    torch.testing.assert_close(QuickGELU()(values), values / (1 + torch.exp(-1.702 * values)))


def test_quick_gelu_keeps_one_tensor_for_its_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        QuickGELU()(torch.randn(3, requires_grad=True))
    assert len(kept) == 1


class TestPositionTable:
    def test_the_same_size_is_the_table_itself(self):
        table = torch.randn(10, 4)
        assert resize_position_table(table, 10) is table

    def test_the_class_token_stays(self):
        table = torch.randn(10, 4)
        resized = resize_position_table(table, 26)
        assert resized.shape == (26, 4)
        assert torch.equal(resized[0], table[0])

    def test_a_constant_stays_constant(self):
        resized = resize_position_table(torch.full((10, 2), 0.5), 50)
        torch.testing.assert_close(resized, torch.full((50, 2), 0.5))

    @pytest.mark.parametrize(("old", "new"), [(11, 17), (10, 18)])
    def test_patches_that_are_no_square(self, old, new):
        count = old if old == 11 else new
        with pytest.raises(ValueError, match=f"square number, got {count}"):
            resize_position_table(torch.zeros(old, 2), new)

    def test_only_position_tables_of_images_change(self):
        state = {
            "backbone.image.position_embedding": torch.zeros(10, 4),
            "vit_model.visual.positional_embedding": torch.zeros(10, 4),
            "vit_model.positional_embedding": torch.zeros(77, 4),
        }
        shapes = [len(table) for table in resize_position_tables(state, 17).values()]
        assert shapes == [17, 17, 77]


def test_channels_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="num_heads must divide width, got 5 and 24"):
        ClipConfig(width=24, num_heads=5)
