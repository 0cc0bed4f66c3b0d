import pytest
import torch
import torch.nn.functional as F

from fiber.models.meter.config import CrossConfig
from fiber.models.meter.fusion import Attention

#: Float64 on both sides: sums in another order.
CLOSE = {"rtol": 0, "atol": 1e-12}


def drawn(dropout=0.0, tokens=5, keys=7):
    """Attention with every parameter drawn, and tokens, source and mask with a hole and padding."""
    torch.manual_seed(0)
    attention = Attention(CrossConfig(width=24, num_heads=3, ffn_width=48, dropout=dropout))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[0, ..., 2:3], mask[1, ..., 3:] = False, False
    shapes = (2, tokens, 24), (2, keys, 24)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return attention.double(), *inputs, mask


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("keys", [1, 7])
def test_one_token_attends_as_among_others(is_masked, keys):
    attention, tokens, source, mask = drawn(keys=keys)
    chosen = mask if is_masked else None
    weights = torch.randn(2, 1, 24, dtype=torch.float64)
    found = []
    for one in (False, True):
        output = attention(tokens[:, :1] if one else tokens, source, chosen)[:, :1]
        parameters = dict(attention.named_parameters())
        wanted = (tokens, source, *parameters.values())
        found.append((output, *torch.autograd.grad((output * weights).sum(), wanted)))
    for name, whole, single in zip(
        ("output", "tokens", "source", *parameters), *found, strict=True
    ):
        torch.testing.assert_close(single, whole, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


def test_dropout_of_one_token_is_that_of_attention_weights():
    attention, tokens, source, mask = drawn(dropout=0.5, tokens=1)
    attention.dropout.p = 0.0
    torch.manual_seed(1)
    found = attention.train()(tokens, source, mask)

    def heads(x):
        return x.unflatten(-1, (3, -1)).transpose(1, 2)

    query, (key, value) = attention.query(tokens), attention.key_value(source).chunk(2, -1)
    scores = heads(query) @ heads(key).transpose(-1, -2) / 8**0.5
    torch.manual_seed(1)
    # Drawn in the same order: (B, h, K).
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)[:, :, 0]
    weights = F.dropout(weights, 0.5)[:, :, None]
    attended = (weights @ heads(value)).transpose(1, 2).flatten(2)
    expected = attention.norm(tokens + attention.output(attended))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.equal(found, attention.eval()(tokens, source, mask))


def test_a_text_without_tokens_gives_numbers():
    attention, tokens, source, mask = drawn(tokens=1)
    assert attention(tokens, source, torch.zeros_like(mask)).isfinite().all()


def test_keys_and_values_of_one_token_are_not_computed(monkeypatch):
    attention, tokens, source, mask = drawn(tokens=1)
    linear, called = torch.nn.Linear.forward, []

    def forward(self, inputs):
        called.append(self)
        return linear(self, inputs)

    # A hook of the module itself would have it called.
    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    attention(tokens, source, mask)
    assert called == [attention.query, attention.output]
    attention(tokens.expand(-1, 2, -1), source, mask)
    assert called[2:] == [attention.query, attention.key_value, attention.output]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_token_is_as_exact_in_half_precision_as_among_others(dtype, autocast):
    torch.manual_seed(0)
    attention = Attention(CrossConfig(width=96, num_heads=3, ffn_width=96)).eval()
    for parameter in attention.parameters():
        # Attention weights far from uniform, where rounded scores matter.
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, source = torch.randn(64, 2, 96), torch.randn(64, 50, 96)
    exact = attention.double()(tokens.double(), source.double(), None)[:, :1]
    attention.to(torch.float32 if autocast else dtype)
    errors = []
    for count in (1, 2):
        inputs = [part if autocast else part.to(dtype) for part in (tokens[:, :count], source)]
        with torch.autocast("cpu", dtype, enabled=autocast):
            found = attention(*inputs, None)[:, :1]
        errors.append((found - exact).norm().item())
    assert errors[0] < 1.1 * errors[1]
