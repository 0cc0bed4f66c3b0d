"""Mismatched arguments raise an error that lists their shapes."""

from __future__ import annotations

import pytest
import torch

from fiber import kernels

pytestmark = pytest.mark.oldest

QKV = torch.zeros(2, 4, 4, 3, 2, 8)
TABLE = torch.zeros(9, 2)
QKV_BIAS = torch.zeros(3, 2, 8)
QUERY, KEY = torch.zeros(2, 6, 2, 8), torch.zeros(2, 5, 2, 8)

WINDOW_FAULTS = {
    "qkv without the three": ({"qkv": torch.zeros(2, 4, 4, 2, 8)}, r"\(2, 4, 4, 2, 8\)"),
    "an empty map": ({"qkv": torch.zeros(2, 0, 4, 3, 2, 8)}, r"\(2, 0, 4, 3, 2, 8\)"),
    "table for a different window": ({"bias_table": torch.zeros(25, 2)}, r"bias_table \(9, 2\)"),
    "wrong number of heads in the table": ({"bias_table": torch.zeros(9, 4)}, r"\(9, 4\)"),
    "wrong head dim of the bias": ({"qkv_bias": torch.zeros(3, 2, 4)}, r"\(3, 2, 4\)"),
    "a shift of a whole window": ({"shift": 2}, "shift 2"),
    "a negative shift": ({"shift": -1}, "shift -1"),
    "wrong number of sizes": ({"valid_sizes": torch.zeros(3, 2).long()}, r"valid_sizes \(3, 2\)"),
    "different device": ({"bias_table": torch.zeros(9, 2, device="meta")}, "cpu and meta"),
}


@pytest.mark.parametrize(("change", "message"), WINDOW_FAULTS.values(), ids=WINDOW_FAULTS.keys())
def test_window_attention_rejects_mismatched_arguments(change, message):
    arguments = {
        "qkv": QKV,
        "bias_table": TABLE,
        "qkv_bias": QKV_BIAS,
        "window_size": 2,
        "shift": 0,
    }
    with pytest.raises(ValueError, match=message):
        kernels.window_attention(**(arguments | change))


ATTENTION_FAULTS = {
    "different number of heads": (KEY[:, :, :1], KEY[:, :, :1], r"\(2, 5, 1, 8\)"),
    "different batch size": (KEY[:1], KEY[:1], r"\(1, 5, 2, 8\)"),
    "different keys and values": (KEY, KEY[:, :4], r"\(2, 4, 2, 8\)"),
    "different dtype": (KEY.double(), KEY.double(), "same dtype"),
}


@pytest.mark.parametrize(
    ("key", "value", "message"), ATTENTION_FAULTS.values(), ids=ATTENTION_FAULTS.keys()
)
@pytest.mark.parametrize(
    "operation", [kernels.image_to_text_attention, kernels.text_to_image_attention]
)
def test_cross_attention_rejects_mismatched_arguments(operation, key, value, message):
    with pytest.raises(ValueError, match=message):
        operation(QUERY, key, value)


def test_mismatched_masks_are_rejected():
    lengths, mask = torch.tensor([1, 2]), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="not both"):
        kernels.image_to_text_attention(QUERY, KEY, KEY, lengths, key_mask=mask)
    with pytest.raises(ValueError, match=r"key_lengths \(3,\)"):
        kernels.image_to_text_attention(QUERY, KEY, KEY, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="bool"):
        kernels.image_to_text_attention(QUERY, KEY, KEY, key_mask=mask.long())
    with pytest.raises(ValueError, match="H \\* W = 5"):
        kernels.text_to_image_attention(
            QUERY, KEY, KEY, valid_sizes=torch.ones(2, 2).long(), map_size=(2, 3)
        )


def test_gated_residual_rejects_mismatched_arguments():
    with pytest.raises(ValueError, match=r"gate \(2,\)"):
        kernels.gated_residual(
            torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(4, 5), torch.zeros(4), torch.zeros(2)
        )


def test_empty_inputs_give_empty_outputs_and_zero_gradients():
    """Empty batches, texts and maps give empty outputs and zero gradients."""
    for queries, keys, batch in ((0, 5, 2), (6, 0, 2), (6, 5, 0), (0, 0, 0)):
        q, k, v = (
            torch.randn(batch, tokens, 2, 8, requires_grad=True) for tokens in (queries, keys, keys)
        )
        for operation in (kernels.image_to_text_attention, kernels.text_to_image_attention):
            out = operation(q, k, v)
            assert out.shape == q.shape
            assert (out == 0).all() or keys
            grads = torch.autograd.grad(out.sum(), (q, k, v))
            assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]
            assert all((grad == 0).all() for grad in grads) or (queries and keys)
    qkv = torch.zeros(0, 4, 4, 3, 2, 8, requires_grad=True)
    out = kernels.window_attention(qkv, TABLE, QKV_BIAS, window_size=2, shift=1)
    assert out.shape == (0, 4, 4, 2, 8)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_lengths_are_clamped_to_the_text():
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 2, 8), torch.randn(2, 5, 2, 8)
    expected = kernels.image_to_text_attention(q, k, k, torch.tensor([5, 0]))
    assert torch.equal(kernels.image_to_text_attention(q, k, k, torch.tensor([9, -3])), expected)


def test_maps_with_more_than_2_to_the_31_elements():
    """On the meta device, which only computes shapes: no size overflows 32 bits.

    Heads are wide, since each window takes milliseconds.
    """
    qkv = torch.empty(2, 256, 256, 3, 1, 2**15, device="meta", requires_grad=True)
    table, bias = (torch.empty(*shape, device="meta") for shape in ((529, 1), (3, 1, 2**15)))
    out = kernels.window_attention(qkv, table, bias, window_size=12, shift=6)
    assert out.shape == (2, 256, 256, 1, 2**15)
    assert out.numel() > 2**31
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape
    keys = torch.empty(2, 256 * 256, 1, 2**15, device="meta")
    text = torch.empty(2, 7, 1, 2**15, device="meta")
    assert kernels.text_to_image_attention(text, keys, keys).shape == text.shape
    assert kernels.image_to_text_attention(keys, text, text).shape == keys.shape
