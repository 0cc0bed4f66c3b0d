import zlib

import pytest
import torch
from safetensors.torch import load_file
from torchvision.ops import deform_conv2d

from fiber.models.fiber.dyhead import DynamicBlock, DynamicHead, DynamicRelu, ModulatedConv
from fiber.models.fiber.keys import block_keys
from tests.golden import FINE

pytestmark = pytest.mark.oldest

RECORDED = FINE / "units_deform_dyconv.safetensors"


def levels(batch, sizes, channels=8):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, *size, generator=random) for size in sizes]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(1, 1)], id="one level"),
        pytest.param([(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)], id="one location"),
        pytest.param([(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)], id="odd"),
    ],
)
def test_shapes_are_preserved(sizes):
    head = DynamicHead(8, 2, 4)
    out = head(levels(2, sizes))
    assert [tuple(level.shape) for level in out] == [(2, 8, *size) for size in sizes]
    assert all(level.isfinite().all() for level in out)


def test_each_level_reads_only_its_neighbors():
    torch.manual_seed(0)
    block = DynamicBlock(8, 4)
    inputs = [each.requires_grad_() for each in levels(1, [(8, 8), (4, 4), (2, 2), (1, 1)])]
    out = block(inputs)
    for number, level in enumerate(out):
        grads = torch.autograd.grad(level.sum(), inputs, retain_graph=True, allow_unused=True)
        seen = [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]
        assert seen == [abs(other - number) <= 1 for other in range(4)]


def test_images_do_not_mix():
    torch.manual_seed(0)
    head = DynamicHead(8, 1, 4)
    sizes = [(6, 6), (3, 3), (2, 2), (1, 1)]
    whole = head(levels(3, sizes))
    alone = head([level[2:] for level in levels(3, sizes)])
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a[2:], b, rtol=1e-5, atol=1e-5)


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    head = DynamicHead(32, 1, 4)
    sum(level.square().sum() for level in head(levels(2, [(4, 4), (2, 2), (1, 1)], 32))).backward()
    without = [
        n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


def plain_block(block, levels):
    """The published block written out; its coarser branch reads the memory of the finer level."""

    def conv(branch, features, offsets, modulation):
        stride = (branch.stride, branch.stride)
        out = deform_conv2d(
            features, offsets, branch.weight, branch.bias, stride, (1, 1), mask=modulation
        )
        return branch.norm(out)

    def first_numbers(values, height, width):
        kinds = values.shape[1]
        rows = [sample.contiguous().view(-1)[: kinds * height * width] for sample in values]
        return torch.stack(rows).view(len(values), kinds, height, width)

    mixed = []
    for number, features in enumerate(levels):
        raw = block.offsets(features)
        offsets, modulation = raw[:, :18], 1 / (1 + torch.exp(-raw[:, 18:]))
        branches = [conv(block.same, features, offsets, modulation)]
        if number > 0:
            branches.append(conv(block.finer, levels[number - 1], offsets, modulation))
        if number < len(levels) - 1:
            coarse = levels[number + 1]
            size = coarse.shape[2:]
            out = conv(
                block.coarser,
                coarse,
                first_numbers(offsets, *size),
                first_numbers(modulation, *size),
            )
            resize = torch.nn.UpsamplingBilinear2d(size=features.shape[2:])
            branches.append(resize(out))
        total = 0
        for branch in branches:
            attention = torch.relu(block.scale_attention(branch.mean((2, 3), keepdim=True)))
            total = total + branch * (attention + 3).clamp(0, 6) / 6
        mean = total / len(branches)
        hidden = torch.relu(block.activation.reduce(mean.mean((2, 3))))
        theta = (block.activation.expand(hidden) + 3).clamp(0, 6) / 6
        a1, b1, a2, b2 = theta[:, :, None, None].chunk(4, 1)
        one = (2 * (a1 - 0.5) + 1) * mean + b1 - 0.5
        mixed.append(torch.maximum(one, 2 * (a2 - 0.5) * mean + b2 - 0.5))
    return mixed


def test_matches_the_block_written_out():
    torch.manual_seed(0)
    # In double precision, where summation order does not matter.
    block = DynamicBlock(32, 4).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    inputs = [level.double() for level in levels(2, sizes, 32)]
    for ours, plain in zip(block(inputs), plain_block(block, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_dynamic_relu_starts_as_relu():
    """Its four coefficients come from a hard sigmoid, which is initially 0.5: (1, 0, 0, 0)."""
    activation = DynamicRelu(8)
    torch.nn.init.zeros_(activation.expand.weight)
    torch.nn.init.zeros_(activation.expand.bias)
    (features,) = levels(2, [(3, 3)])
    torch.testing.assert_close(activation(features), features.relu())


def test_convolutions_run_in_float32_under_autocast():
    torch.manual_seed(0)
    convolution = ModulatedConv(8, 4)
    (features,) = levels(1, [(4, 4)])
    offsets, modulation = torch.randn(1, 18, 4, 4), torch.rand(1, 9, 4, 4)
    plain = convolution(features, offsets, modulation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = convolution(features, offsets, modulation)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_matches_the_published_block():
    recorded = load_file(RECORDED)
    block = DynamicBlock(32, 16)
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            (published,) = block_keys("x", "dyconv_unit")[f"x.{name}"]
            generator = torch.Generator().manual_seed(zlib.crc32(published.encode()))
            drawn = torch.randn(tensor.shape, generator=generator) * 0.02
            tensor.copy_(drawn + 1 if name.endswith("norm.weight") else drawn * 5)
    out = block([recorded[f"dyconv.in.{level}"] for level in range(4)])
    for level, ours in enumerate(out):
        torch.testing.assert_close(ours, recorded[f"dyconv.out.{level}"], rtol=0, atol=1e-5)
