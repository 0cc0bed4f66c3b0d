import pytest
import torch
from torchvision.ops import deform_conv2d

from fiber.ops.deform import _sampled_conv, modulated_deform_conv
from fiber.ops.tracing import is_exporting

pytestmark = pytest.mark.oldest


def inputs(batch, channels, size, out_size, reach, dtype=torch.float64, seed=0):
    """Features, offsets, modulation, weight and bias; offsets of up to some `reach` pixels."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype)

    tensors = [
        normal(batch, channels, *size),
        normal(batch, 18, *out_size) * reach,
        normal(batch, 9, *out_size).sigmoid(),
        normal(channels + 1, channels, 3, 3),
        normal(channels + 1),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def torchvision_conv(features, offsets, modulation, weight, bias, stride):
    return deform_conv2d(
        features, offsets, weight, bias, stride=(stride, stride), padding=(1, 1), mask=modulation
    )


CASES = [
    # size read, size that comes out, stride
    pytest.param((1, 1), (1, 1), 1, id="one pixel"),
    pytest.param((5, 6), (5, 6), 1, id="odd"),
    pytest.param((5, 6), (3, 3), 2, id="odd, stride 2"),
    pytest.param((12, 16), (6, 8), 2, id="stride 2"),
    pytest.param((9, 14), (9, 14), 1, id="plain"),
]


@pytest.mark.parametrize(("size", "out_size", "stride"), CASES)
@pytest.mark.parametrize("reach", [0.0, 0.6, 6.0])
def test_output_and_gradients_equal_torchvision(size, out_size, stride, reach):
    """Where an offset is whole, the two may differentiate by different neighbours: not drawn."""
    tensors = inputs(2, 5, size, out_size, reach)
    if reach == 0:
        tensors[1] = torch.full_like(tensors[1], 1e-3).requires_grad_()
    ours = modulated_deform_conv(*tensors, stride=stride)
    theirs = torchvision_conv(*tensors, stride)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    random = torch.Generator().manual_seed(1)
    upstream = torch.randn(ours.shape, generator=random, dtype=ours.dtype)
    for mine, other in zip(
        torch.autograd.grad(ours, tensors, upstream),
        torch.autograd.grad(theirs, tensors, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "out_size", "stride"), CASES)
@pytest.mark.parametrize("reach", [0.0, 0.6, 6.0])
def test_the_form_of_exported_graphs_equals_it(size, out_size, stride, reach):
    tensors = [tensor.detach() for tensor in inputs(2, 5, size, out_size, reach)]
    ours = _sampled_conv(*tensors, stride)
    # Sampled at coordinates relative to the size of the map.
    torch.testing.assert_close(ours, torchvision_conv(*tensors, stride), rtol=1e-9, atol=1e-9)
    assert not is_exporting()


def test_float32_is_as_accurate_as_torchvision():
    exact = inputs(2, 16, (20, 24), (20, 24), 0.7)
    single = [tensor.detach().float() for tensor in exact]
    expected = torchvision_conv(*exact, 1)
    ours = (modulated_deform_conv(*single) - expected).abs().max()
    theirs = (torchvision_conv(*single, 1) - expected).abs().max()
    assert ours <= 2 * theirs + 1e-6


def test_offsets_that_are_no_number_give_no_number():
    features, offsets, modulation, weight, bias = inputs(1, 2, (3, 3), (3, 3), 0.5)
    broken = offsets.detach().clone()
    broken[0, 4, 1, 1] = float("nan")
    out = modulated_deform_conv(features, broken, modulation, weight, bias)
    assert out[0, :, 1, 1].isnan().all()
    assert out.isnan().sum() == out.shape[1]


def test_pictures_do_not_mix():
    tensors = [tensor.detach() for tensor in inputs(3, 4, (6, 6), (6, 6), 2.0)]
    whole = modulated_deform_conv(*tensors)
    alone = modulated_deform_conv(*(tensor[1:2] for tensor in tensors[:3]), *tensors[3:])
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-12, atol=1e-12)
