import pytest
import torch
import torch.nn.functional as F

from fiber.models.encoders.focalnet import FocalModulation, FocalNetEncoder
from fiber.models.encoders.focalnet_config import FocalNetConfig

pytestmark = pytest.mark.oldest

TINY = FocalNetConfig(embed_dim=8, depths=(1, 1, 2, 1), drop_path=0.5)
INSIDE = FocalNetConfig(
    embed_dim=8, depths=(1, 1, 2, 1), block="norm_inside", focal_levels=2, drop_path=0.5
)


@pytest.mark.parametrize("config", [TINY, INSIDE], ids=["norm_after", "norm_inside"])
@pytest.mark.parametrize("size", [(32, 64), (1, 1), (45, 38)])
def test_maps_have_a_quarter_to_a_thirty_second_of_the_size(config, size):
    encoder = FocalNetEncoder(config).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(2, 3, *size))
    for stage, each in enumerate(maps):
        sides = tuple(-(-side // (4 << stage)) for side in size)
        assert each.shape == (2, *sides, 8 << stage)
        # Norms come last.
        torch.testing.assert_close(each.mean(-1), torch.zeros(2, *sides), atol=1e-5, rtol=0)


def test_modulation_equals_its_definition():
    torch.manual_seed(0)
    module = FocalModulation(6, levels=2, window=3)
    tokens = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        projected = F.linear(tokens, module.projection.weight, module.projection.bias)
        query, context, gates = projected[..., :6], projected[..., 6:12], projected[..., 12:]
        total = torch.zeros_like(query)
        context = context.permute(0, 3, 1, 2)
        for level, kernel in enumerate((3, 5)):
            weight = module.contexts[level].weight
            assert weight.shape == (6, 1, kernel, kernel)
            context = F.gelu(F.conv2d(context, weight, padding=kernel // 2, groups=6))
            total += context.permute(0, 2, 3, 1) * gates[..., level : level + 1]
        total += F.gelu(context.mean((2, 3)))[:, None, None] * gates[..., 2:]
        weight = module.modulator.weight[:, :, 0, 0]
        modulator = F.linear(total / 3, weight, module.modulator.bias)
        expected = F.linear(query * modulator, module.output.weight, module.output.bias)
        torch.testing.assert_close(module(tokens), expected)


def test_drop_path_grows_and_is_off_in_evaluation():
    encoder = FocalNetEncoder(TINY)
    rates = [block.drop_path for stage in encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        first, second = encoder(images)[-1], encoder(images)[-1]
        assert not torch.equal(first, second)
        encoder.eval()
        torch.testing.assert_close(encoder(images)[-1], encoder(images)[-1], rtol=0, atol=0)


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    encoder = FocalNetEncoder(FocalNetConfig(embed_dim=8, depths=(1, 1, 1, 1), drop_path=0.0))
    images = torch.randn(1, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        encoder.gradient_checkpointing = enabled
        encoder.zero_grad(set_to_none=True)
        encoder(images)[-1].square().sum().backward()
        gradients.append(encoder.stages[0].blocks[0].modulation.projection.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "middle"}, "focalnet.block: expected 'norm_after' or 'norm_inside', got 'mid"),
        ({"depths": (2, 2, 6)}, "focalnet.depths: expected 4 numbers"),
        ({"focal_window": 4}, "focalnet.focal_window: expected an odd number, got 4"),
        ({"focal_levels": 0}, "focalnet.focal_levels"),
    ],
)
def test_invalid_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        FocalNetConfig(**fields)
