"""The backend "export" against the definitions, and what it does not take."""

import pytest
import torch
from torch.export import Dim

from fiber import kernels
from fiber.kernels.cross_attention import naive as cross
from fiber.kernels.window_attention import export, naive

pytestmark = pytest.mark.oldest

#: (H, W, w, shift): whole windows, padded ones, maps below a window.
MAPS = [(1, 1, 3, 1), (12, 12, 6, 3), (7, 11, 4, 2), (3, 2, 6, 3), (5, 9, 4, 0), (8, 8, 8, 4)]


def drawn(height, width, window, *, heads=2):
    draw = torch.Generator().manual_seed(height * width)
    return (
        torch.randn(2, height, width, 3, heads, 4, dtype=torch.float64, generator=draw),
        torch.randn((2 * window - 1) ** 2, heads, dtype=torch.float64, generator=draw),
        torch.randn(3, heads, 4, dtype=torch.float64, generator=draw),
    )


@pytest.mark.parametrize(("height", "width", "window", "shift"), MAPS)
def test_window_attention(height, width, window, shift):
    given = drawn(height, width, window)
    expected = naive.window_attention(*given, window_size=window, shift=shift)
    with kernels.use_backend("export"):
        found = kernels.window_attention(*given, window_size=window, shift=shift)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("height", "width", "window", "shift"), MAPS)
def test_windows_that_are_limited_to_the_map(height, width, window, shift):
    qkv, table, bias = drawn(height, width, window)
    own = min(window, max(height, width))
    margin, side = window - own, 2 * window - 1
    inner = table.view(side, side, -1)[margin : side - margin, margin : side - margin]
    expected = naive.window_attention(
        qkv,
        inner.reshape(-1, table.shape[1]),
        bias,
        window_size=own,
        shift=0 if min(height, width) <= window else shift,
    )
    found = export.window_attention(
        qkv, table, bias, window_size=window, shift=shift, limit_to_map=True
    )
    torch.testing.assert_close(found, expected)


def test_cross_attention():
    q, k, v = (torch.randn(3, n, 2, 4, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])
    with kernels.use_backend("export"):
        found = kernels.image_to_text_attention(q, k, v, key_mask=mask)
        other = kernels.text_to_image_attention(q, k, v)
    torch.testing.assert_close(found, cross.attention(q, k, v, mask))
    torch.testing.assert_close(other, cross.attention(q, k, v, torch.ones_like(mask)))


def test_gated_residual():
    x, y, weight = torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.randn(4, 5)
    bias, gate = torch.randn(4), torch.randn(1)
    expected = kernels.gated_residual(x, y, weight, bias, gate)
    with kernels.use_backend("export"):
        found = kernels.gated_residual(x, y, weight, bias, gate)
    torch.testing.assert_close(found, expected)


def test_arguments_that_it_does_not_take():
    qkv, table, bias = drawn(4, 4, 2)
    sizes = torch.tensor([[4, 4], [2, 2]])
    q = torch.randn(2, 4, 2, 4)
    with kernels.use_backend("export"):
        with pytest.raises(ValueError, match=r"window_attention: the backend 'export' .*valid_siz"):
            kernels.window_attention(qkv, table, bias, window_size=2, shift=0, valid_sizes=sizes)
        with pytest.raises(ValueError, match=r"image_to_text_attention.*key_lengths"):
            kernels.image_to_text_attention(q, q, q, torch.tensor([4, 2]))
        with pytest.raises(ValueError, match=r"text_to_image_attention.*dropout_p"):
            kernels.text_to_image_attention(q, q, q, dropout_p=0.5)


class Windows(torch.nn.Module):
    """Window attention of maps of any size."""

    def forward(self, qkv, table, bias):
        return kernels.window_attention(qkv, table, bias, window_size=4, shift=2)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="fiber export needs a newer torch"
)
def test_the_traced_graph_has_plain_operations_and_any_map_size():
    # From two windows on: one is a size of 1, which the tracer takes for fixed.
    side = Dim("height", min=5), Dim("width", min=5)
    with kernels.use_backend("export"):
        program = torch.export.export(
            Windows(),
            drawn(9, 11, 4),
            dynamic_shapes=({1: side[0], 2: side[1]}, None, None),
            strict=False,
        )
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "fiber" in name]
    run = program.module()
    for height, width in ((13, 9), (8, 12), (17, 6), (5, 5)):
        given = drawn(height, width, 4)
        expected = naive.window_attention(*given, window_size=4, shift=2)
        torch.testing.assert_close(run(*given), expected)
