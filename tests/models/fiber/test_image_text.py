"""Properties of the coarse-stage heads; the parity cases check their values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fiber.config import IMAGE_TEXT_HEADS, FiberConfig, ImageTextConfig, preset
from fiber.models.fiber.image_text import FiberImageText
from tests.models.encoders.test_roberta import texts
from tests.models.encoders.test_swin import randomise

pytestmark = pytest.mark.oldest

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(3))
IDS, MASK = texts(7, 4)


def config(*heads: str) -> FiberConfig:
    image_text = ImageTextConfig(heads=heads or IMAGE_TEXT_HEADS, num_answers=5)
    return dataclasses.replace(preset("micro"), image_text=image_text)


def build(*heads: str) -> FiberImageText:
    torch.manual_seed(0)
    model = FiberImageText(config(*heads)).eval()
    randomise(model)
    return model


def test_embeddings_are_unit_vectors():
    model = build("itc")
    image, text = model.embed_images(IMAGES), model.embed_texts(IDS, MASK)
    assert image.shape == text.shape == (2, 32)
    assert torch.allclose(image.norm(dim=1), torch.ones(2))
    assert torch.allclose(text.norm(dim=1), torch.ones(2))
    assert model.temperature.item() != 0
    # An image does not depend on the other images in its batch.
    assert torch.allclose(model.embed_images(IMAGES[1:]), image[1:], atol=1e-6)


def test_text_embedding_uses_the_first_token():
    model = build("itc")
    text = model.backbone.encode_text(IDS, MASK)
    changed = text.clone()
    changed[:, 1:] = 0
    assert torch.equal(model.text_vectors(text), model.text_vectors(changed))


def test_image_embedding_normalizes_before_the_mean():
    model = build("itc")
    output = model.backbone.encode_image(IMAGES)
    scaled = output._replace(stages=(output.stages[-1] * 3 + 1,))
    assert torch.allclose(model.image_vectors(output), model.image_vectors(scaled), atol=1e-4)


def test_pooled_pair_and_its_heads():
    model = build("itm", "vqa", "nlvr2")
    pooled = model.pooled(model.backbone.encode_pair(IMAGES, IDS, MASK))
    assert pooled.shape == (2, 64)
    assert model.itm_logits(pooled).shape == (2, 2)
    assert model.vqa_logits(pooled).shape == (2, 5)
    left, right = pooled, pooled.flip(0)
    assert model.nlvr2_logits(left, right).shape == (2, 2)
    assert not torch.allclose(model.nlvr2_logits(left, right), model.nlvr2_logits(right, left))


def test_forward_returns_the_logits_of_one_head():
    model = build()
    fused = model.backbone.encode_pair(IMAGES, IDS, MASK)
    pooled = model.pooled(fused)
    expected = {
        "itc": model.embed_images(IMAGES) @ model.embed_texts(IDS, MASK).T / model.temperature,
        "itm": model.itm_logits(pooled),
        "vqa": model.vqa_logits(pooled),
        "mlm": model.mlm_logits(fused.text),
        "caption": model.next_token_logits(IMAGES, IDS, MASK),
    }
    for head, logits in expected.items():
        torch.testing.assert_close(model(IMAGES, IDS, MASK, head), logits)
    # Each pair of images belongs to a different sample.
    pairs = torch.stack((IMAGES, IMAGES.flip(0)), 1)
    right = model.pooled(model.backbone.encode_pair(IMAGES.flip(0), IDS, MASK))
    torch.testing.assert_close(model(pairs, IDS, MASK, "nlvr2"), model.nlvr2_logits(pooled, right))


def test_forward_error_names_the_missing_head():
    with pytest.raises(ValueError, match=r"'itc', 'itm'.*'vqa'"):
        build("itc", "itm")(IMAGES, IDS, MASK, "vqa")


def test_masked_token_logits_at_selected_positions():
    model = build("mlm")
    text = model.backbone.encode_pair(IMAGES, IDS, MASK).text
    everywhere = model.mlm_logits(text)
    assert everywhere.shape == (2, 7, 320)
    chosen = torch.zeros_like(MASK)
    chosen[0, 2] = chosen[1, 0] = chosen[1, 3] = True
    by_mask = model.mlm_logits(text, chosen)
    by_number = model.mlm_logits(text, torch.tensor([2, 7, 10]))
    assert torch.equal(by_mask, by_number)
    assert torch.allclose(by_mask, everywhere[chosen], atol=1e-6)
    assert model.mlm_logits(text, torch.zeros_like(MASK)).shape == (0, 320)


def test_caption_decoder_is_causal_and_reads_the_last_stage():
    model = build("caption")
    tokens = model.backbone.encode_image(IMAGES).stages[-1]
    logits = model.caption_logits(model.decode_text(tokens, IDS, MASK))
    assert logits.shape == (2, 7, 320)
    shorter = model.caption_logits(model.decode_text(tokens, IDS[:, :3], MASK[:, :3]))
    assert torch.allclose(logits[:, :3], shorter, atol=1e-5)
    other = model.caption_logits(model.decode_text(tokens + 1, IDS, MASK))
    assert not torch.allclose(other, logits)
    # One projection per text layer that is paired with a block of stage 3.
    assert len(model.caption_projections) == 1


@pytest.mark.parametrize("head", IMAGE_TEXT_HEADS)
def test_single_head_model_trains_every_parameter(head):
    model = FiberImageText(config(head))
    randomise(model)
    if head == "itc":
        loss = model.embed_images(IMAGES).sum() + model.embed_texts(IDS, MASK).sum()
        loss = loss / model.temperature
    elif head == "caption":
        tokens = model.backbone.encode_image(IMAGES).stages[-1]
        loss = model.caption_logits(model.decode_text(tokens, IDS, MASK)).sum()
    else:
        output = model.backbone.encode_pair(IMAGES, IDS, MASK)
        if head == "mlm":
            loss = model.mlm_logits(output.text).sum()
        else:
            pooled = model.pooled(output)
            loss = {
                "itm": lambda: model.itm_logits(pooled),
                "vqa": lambda: model.vqa_logits(pooled),
                "nlvr2": lambda: model.nlvr2_logits(pooled, pooled),
            }[head]().sum()
    loss.backward()
    unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and not name.startswith("backbone.")
    ]
    assert unused == []


def test_missing_head_error_names_the_head():
    with pytest.raises(AttributeError, match="vqa_head"):
        build("itm").vqa_logits(torch.zeros(1, 64))


def test_heads_have_the_published_sizes():
    """Spec coarse.md 1.7 and the sizes in the published key list."""
    heads = ImageTextConfig(heads=IMAGE_TEXT_HEADS)
    with torch.device("meta"):
        model = FiberImageText(dataclasses.replace(preset("base"), image_text=heads))

    def count(*names: str) -> int:
        return sum(p.numel() for n, p in model.named_parameters() if n.startswith(names))

    both = ("text_transform", "image_transform", "text_pooler", "image_pooler")
    twins = tuple(f"itc_{name}" for name in both)
    projections = count("caption_projections")
    # Published 10,365,952 with ten projections; four of them are used.
    assert count(*both, *twins) + projections * 10 // 4 == 10_365_952
    assert count("language_head") == 39_245_913
    assert count("itm_head") == 3_074
    assert count("vqa_head") == 7_173_177
    assert count("nlvr2_head") == 4_726_274
    assert count("temperature") == 1
    assert count("itc_image_norm") == 2048


def test_initialization():
    model = FiberImageText(config())
    assert model.temperature.item() == pytest.approx(0.07)
    assert model.vqa_head.hidden.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.language_head.decoder.bias == 0).all()
    assert model.language_head.norm.eps == 1e-12
    gates = [p.item() for n, p in model.named_parameters() if n.endswith("gate")]
    assert gates == [0.5] * 6


@pytest.mark.slow
def test_a_pair_is_exported_for_any_batch_and_length():
    torch.manual_seed(0)
    model = FiberImageText(preset("micro")).eval()
    side = model.config.image_size

    class Matching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, token_ids, text_mask):
            return self.model(images, token_ids, text_mask, "itm")

    def inputs(batch, length):
        images = torch.randn(batch, 3, side, side)
        return images, *texts(*[length] * (batch - 1), 2)

    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=40)
    shapes = ({0: batch}, {0: batch, 1: length}, {0: batch, 1: length})
    exported = torch.export.export(Matching(), inputs(3, 7), dynamic_shapes=shapes).module()
    for sizes in ((3, 7), (5, 9), (2, 4)):
        new = inputs(*sizes)
        torch.testing.assert_close(exported(*new), Matching()(*new))
