"""Passes of the decoder: what sees what, caches, heads that are missing."""

import dataclasses

import pytest
import torch

from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.heads import MissingHeadError
from fiber.models.masks.pixel_decoder import sine_positions
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.xdecoder.captioner import CaptionDecoding, greedy_captions
from fiber.models.xdecoder.config import DecoderConfig, XDecoderConfig
from fiber.models.xdecoder.segmenter import XDecoder, join_tokens

pytestmark = pytest.mark.oldest

TINY = XDecoderConfig(
    image_size=64,
    focalnet=FocalNetConfig(embed_dim=8, depths=(1, 1, 1, 1)),
    clip_text=ClipTextConfig(vocab_size=40, width=32, num_blocks=1, num_heads=2, max_positions=9),
    pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=2, ffn_width=48),
    decoder=DecoderConfig(num_queries=7, num_layers=4, num_heads=2, ffn_width=48, mask_width=24),
)
#: Allowed between two orders of the same sums in float32.
ROUNDING = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = XDecoder(TINY).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_scale", "_projection")):
                parameter.normal_(0.3, 0.3)
    return model


@pytest.fixture(scope="module")
def memory(model):
    with torch.no_grad():
        return model.read_image(torch.randn(2, 3, 64, 96))


def texts_of(model, count=3):
    ids = torch.randint(0, 40, (count, 6))
    mask = torch.arange(6) < torch.tensor([6, 3, 4])[:count, None]
    return model.encode_text(ids, mask), mask


@torch.no_grad()
def test_shapes(model, memory):
    vectors = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
    found = model.class_masks(memory, vectors)
    assert found.class_logits.shape == (2, 7, 4)
    assert found.mask_logits.shape == (2, 7, 16, 24)
    texts, mask = texts_of(model)
    answer = model.phrase_masks(memory, texts, join_tokens(texts.tokens, mask).expand(2, -1, -1))
    assert answer.similarity.shape == (2, 6, 3)
    rows, masks = answer.best()
    assert rows.shape == (2, 3) and masks.shape == (2, 3, 16, 24)
    assert torch.equal(masks[1, 2], answer.mask_logits[1, rows[1, 2]])
    vectors = model.image_vectors(torch.randn(2, 3, 32, 32))
    assert vectors.decoder.shape == vectors.backbone.shape == (2, 32)


def test_positions_of_one_row_differ_only_by_column():
    code = sine_positions(3, 5, 16, torch.zeros(1))
    assert code.shape == (16, 3, 5)
    assert (code[:8] == code[:8, :, :1]).all() and (code[8:] == code[8:, :1]).all()
    assert len({tuple(column) for column in code[8:, 0].T.tolist()}) == 5


@torch.no_grad()
def test_phrases_do_not_change_the_queries(model, memory):
    alone = model.decoder(memory)[-1]
    texts, mask = texts_of(model)
    tokens = join_tokens(texts.tokens, mask).expand(2, -1, -1)
    together = model.decoder.refer(memory, tokens)[-1]
    torch.testing.assert_close(together.states[:, :7], alone.states, **ROUNDING)
    changed = model.decoder.refer(memory, tokens.flip(-1))[-1]
    assert not torch.allclose(changed.states[:, 7:], together.states[:, 7:], atol=1e-3)


@torch.no_grad()
def test_padded_phrases_equal_shorter_ones(model, memory):
    texts, mask = texts_of(model)
    tokens = join_tokens(texts.tokens, mask).expand(2, -1, -1)
    padded = torch.cat((tokens, torch.randn(2, 4, 32)), 1)
    real = torch.arange(padded.shape[1]) < tokens.shape[1]
    found = model.decoder.refer(memory, padded, real.expand(2, -1))[-1]
    expected = model.decoder.refer(memory, tokens)[-1]
    torch.testing.assert_close(found.states, expected.states, **ROUNDING)


@pytest.mark.parametrize("has_region", [False, True])
@torch.no_grad()
def test_captions_with_caches_equal_the_whole_pass(model, memory, has_region):
    region = None
    if has_region:
        region = torch.zeros(2, 64, 96, dtype=torch.bool)
        region[0, :, :48], region[1, 20:] = True, True
    ids = torch.randint(0, 40, (2, 9))
    tokens = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).tokens
    whole = model.decoder.caption(memory, tokens, region)[-1]
    expected = model.caption_logits(whole.captions)
    decoding = CaptionDecoding(model, memory, region)
    for place in range(9):
        torch.testing.assert_close(decoding.append(ids[:, place]), expected[:, place], **ROUNDING)
    queries = model.decoder(memory)[-1]
    torch.testing.assert_close(whole.states, queries.states, **ROUNDING)
    if has_region:
        everywhere = model.decoder.caption(memory, tokens)[-1].captions
        assert not torch.allclose(everywhere, whole.captions, atol=1e-4)


@torch.no_grad()
def test_greedy_captions_stop_after_the_last_end(model, memory):
    whole = greedy_captions(model, memory, start_id=1, steps=8)
    assert whole.shape == (2, 8)
    ends = whole[:, 2].unique()
    stopped = greedy_captions(model, memory, start_id=1, steps=8, end_id=int(ends[0]))
    assert torch.equal(stopped, whole[:, : stopped.shape[1]])
    is_end = stopped == ends[0]
    assert stopped.shape[1] == 8 or is_end.any(1).all()
    with pytest.raises(ValueError, match="steps: expected 1 to 8, got 9"):
        greedy_captions(model, memory, start_id=1, steps=9)


@torch.no_grad()
def test_a_region_without_pixels(model, memory):
    region = torch.ones(2, 64, 96, dtype=torch.bool)
    region[1] = False
    region[1, 3, 5] = True
    with pytest.raises(ValueError, match=r"region 1 has no pixel left at the size 2 x 3.*1 pixels"):
        greedy_captions(model, memory, start_id=1, steps=2, region=region)


def test_heads_that_are_missing():
    model = XDecoder(dataclasses.replace(TINY, heads=("mask",)))
    names = [name for name, _ in model.named_parameters()]
    assert not any("caption" in name or name == "image_projection" for name in names)
    with pytest.raises(MissingHeadError, match="'retrieval'; this model has mask"):
        model.image_vectors(torch.zeros(1, 3, 32, 32))
    memory = model.read_image(torch.zeros(1, 3, 64, 64))
    with pytest.raises(MissingHeadError, match="'caption'"):
        greedy_captions(model, memory, start_id=1, steps=2)


@pytest.mark.parametrize("size", [(33, 64), (64, 0)])
def test_images_that_are_not_padded(model, size):
    with pytest.raises(ValueError, match=r"multiples of 32, got \(1, 3, "):
        model.read_image(torch.zeros(1, 3, *size))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = XDecoder(TINY).train()
    model.backbone.gradient_checkpointing = True
    memory = model.read_image(torch.randn(1, 3, 64, 64))
    texts, mask = texts_of(model)
    classes = model.class_masks(memory, texts.vectors)
    phrases = model.phrase_masks(memory, texts, join_tokens(texts.tokens, mask))
    captions = model.decoder.caption(memory, texts.tokens[:1])[-1].captions
    vectors = model.image_vectors(torch.randn(1, 3, 64, 64))
    outputs = (*classes, *phrases, model.caption_logits(captions), *vectors)
    torch.stack([each.square().mean() for each in outputs]).sum().backward()
    missing = {
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    }
    assert missing == set()


@torch.no_grad()
def test_every_tensor_is_made_on_the_device_of_the_model():
    """Tensors of two devices in one operation are an error, also on the meta device."""
    with torch.device("meta"):
        model = XDecoder(TINY).eval()
    images = torch.empty(2, 3, 64, 96, device="meta")
    memory = model.read_image(images)
    ids = torch.zeros(2, 6, dtype=torch.int64, device="meta")
    mask = torch.ones(2, 6, dtype=torch.bool, device="meta")
    texts = model.encode_text(ids, mask)
    model.class_masks(memory, texts.vectors)
    model.phrase_masks(memory, texts, texts.tokens, mask).best()
    model.decoder.caption(memory, texts.tokens)
    decoding = CaptionDecoding(model, memory)
    found = [decoding.append(ids[:, 0]), decoding.append(ids[:, 1]), *model.image_vectors(images)]
    assert {each.device.type for each in found} == {"meta"}
