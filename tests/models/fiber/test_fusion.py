"""Properties of the two cross-attentions and their gates."""

from __future__ import annotations

import pytest
import torch

from fiber.models.fiber.fusion import ImageToTextAttention, TextToImageAttention
from tests.models.encoders.test_swin import randomise

pytestmark = pytest.mark.oldest


def image_to_text(**changes) -> ImageToTextAttention:
    arguments = {"normalize_query": True, "gate_start": 0.5}
    made = ImageToTextAttention(8, 12, 2, **(arguments | changes))
    gate = made.gate.detach().clone()
    randomise(made)
    made.gate.data = gate
    return made


def text_to_image(**changes) -> TextToImageAttention:
    arguments = {"gate_start": 0.5, "dropout": 0.0}
    made = TextToImageAttention(8, 12, 3, **(arguments | changes))
    gate = made.gate.detach().clone()
    randomise(made)
    made.gate.data = gate
    return made


IMAGE = torch.randn(2, 3, 4, 8, generator=torch.manual_seed(0))
TEXT = torch.randn(2, 5, 12, generator=torch.manual_seed(1))
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def test_closed_gates_are_a_no_op_with_a_gradient():
    to_text, to_image = image_to_text(gate_start=0.0), text_to_image(gate_start=0.0)
    read_text, read_image = to_text(IMAGE, TEXT, MASK), to_image(TEXT, IMAGE)
    assert torch.equal(read_text, IMAGE)
    assert torch.equal(read_image, TEXT)
    (read_text.sum() + read_image.sum()).backward()
    assert to_text.gate.grad.abs() > 0
    assert to_image.gate.grad.abs() > 0
    assert (to_text.query.weight.grad == 0).all()


def test_image_to_text_by_hand():
    """Compute the definition token by token, without the kernels."""
    module = image_to_text()
    query = module.query(
        torch.nn.functional.layer_norm(IMAGE, (8,), module.norm.weight, module.norm.bias)
    )
    key, value = module.key_value(TEXT).chunk(2, -1)
    expected = torch.empty_like(IMAGE)
    for sample in range(2):
        real = int(MASK[sample].sum())
        for y in range(3):
            for x in range(4):
                read = []
                for head in range(2):
                    part = slice(4 * head, 4 * head + 4)
                    scores = key[sample, :real, part] @ query[sample, y, x, part] / 2.0
                    read.append(scores.softmax(0) @ value[sample, :real, part])
                expected[sample, y, x] = IMAGE[sample, y, x] + 0.5 * module.output(torch.cat(read))
    assert torch.allclose(module(IMAGE, TEXT, MASK), expected, atol=1e-5)


def test_text_to_image_by_hand():
    module = text_to_image()
    query = module.query(TEXT)
    key, value = module.key_value(IMAGE.flatten(1, 2)).chunk(2, -1)
    expected = torch.empty_like(TEXT)
    for sample in range(2):
        for token in range(5):
            read = []
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                scores = key[sample, :, part] @ query[sample, token, part] / 2.0
                read.append(scores.softmax(0) @ value[sample, :, part])
            expected[sample, token] = TEXT[sample, token] + 0.5 * module.output(torch.cat(read))
    assert torch.allclose(module(TEXT, IMAGE), expected, atol=1e-5)


def test_text_padding_is_not_read():
    module, spoilt = image_to_text(), TEXT.clone()
    spoilt[1, 2:] = 1e4
    assert torch.equal(module(IMAGE, TEXT, MASK), module(IMAGE, spoilt, MASK))


@pytest.mark.parametrize("shape", [(1, 1), (5, 2)], ids=str)
def test_any_map_size(shape):
    image = torch.randn(2, *shape, 8)
    assert image_to_text()(image, TEXT, MASK).shape == image.shape
    assert text_to_image()(TEXT, image).shape == TEXT.shape


def test_query_norm_is_optional():
    assert image_to_text(normalize_query=False)(IMAGE, TEXT, MASK).shape == IMAGE.shape
    names = dict(image_to_text(normalize_query=False).named_parameters())
    assert not [name for name in names if name.startswith("norm")]


def test_dropout_applies_before_the_gate_in_training_only():
    module = text_to_image(dropout=0.5)
    assert torch.equal(module.eval()(TEXT, IMAGE), text_to_image()(TEXT, IMAGE))
    torch.manual_seed(0)
    change = module.train()(TEXT, IMAGE) - TEXT
    # Entries of the projection are dropped, so that x + gate * 0 = x.
    assert 0.3 < (change == 0).float().mean() < 0.7


def test_initialization():
    module = ImageToTextAttention(64, 64, 2, normalize_query=True, gate_start=0.25)
    assert module.gate.shape == (1,)
    assert module.gate.item() == 0.25
    assert module.output.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (module.output.bias == 0).all()
