"""Captions of images and regions, vectors and search of a model with masks."""

import numpy as np
import pytest
import torch

from fiber.inference import Model
from fiber.models.abilities import MissingAbilityError
from fiber.models.xdecoder.segmenter import retrieval_scores
from tests.models.xdecoder.small_model import PHRASES, small_model


def full_captions(model, image, region=None):
    """Write a caption by full passes, one for each token."""
    network, tokenizer = model.network, model.tokenizer
    (batch,) = model.inputs.of("caption").images([image])
    ids = torch.tensor([tokenizer.start_ids])
    (end,) = tokenizer.end_ids
    with torch.no_grad():
        memory = network.read_image(batch.images)
        for _ in range(network.caption_steps):
            tokens = network.backbone.encode_text(ids) @ network.text_projection
            states = network.decoder.caption(memory, tokens, region)[-1].captions
            following = network.caption_logits(states)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat((ids, following), 1)
            if following.item() == end:
                break
    return network.caption_text(tokenizer, ids[0, 1:].tolist(), end)


def test_captions_equal_full_passes_and_do_not_depend_on_the_company(model, images):
    found = model.caption(images)
    assert found == [model.caption(image) for image in images]
    assert found[1] == full_captions(model, images[1]) and len(found[1]) > 0
    assert model.caption([]) == []


def test_captions_of_regions_equal_full_passes(model, images):
    image = images[2]
    region = np.zeros(image.shape[:2], bool)
    region[:, : image.shape[1] // 2] = True
    inside = torch.zeros(1, 64, 64, dtype=torch.bool)
    inside[:, :, :32] = True
    expected = full_captions(model, image, inside)
    assert model.caption(image, region=region) == expected
    assert model.caption(image, region=region.astype(np.uint8)) == expected
    everywhere = np.ones(image.shape[:2], bool)
    assert model.caption(image, region=everywhere) == model.caption(image)
    both = model.caption([image, image], region=[region, everywhere])
    assert both == [expected, model.caption(image)]
    masks = model.segment(image, phrases=PHRASES).masks
    if masks[0].any():
        assert isinstance(model.caption(image, region=masks[0]), str)


def test_fewer_tokens(model, images):
    (batch,) = model.inputs.of("caption").images([images[0]])
    written = model.network.write_captions(
        model.network.read_image(batch.images),
        start_id=model.tokenizer.start_ids[0],
        end_id=-1,
        steps=3,
    )
    assert written.shape == (1, 3)
    text = model.network.caption_text(model.tokenizer, written[0].tolist(), -1)
    assert model.caption(images[0], max_tokens=4) == text


@pytest.mark.parametrize(
    ("region", "error", "message"),
    [
        (np.ones((5, 6), bool), ValueError, r"region has 6 x 5 pixels; expected 90 x 70"),
        (np.ones((70, 90), np.float32), TypeError, r"region has dtype float32"),
        (np.full((70, 90), 7), ValueError, r"region has the value 7"),
        (np.zeros((70, 90), bool), ValueError, r"region is empty"),
        (np.ones((2, 70, 90), bool), ValueError, r"region has shape \(2, 70, 90\)"),
    ],
)
def test_wrong_regions_are_named(model, images, region, error, message):
    with pytest.raises(error, match=message):
        model.caption(images[1], region=region)
    if region.ndim == 2:
        # Of several, with the index.
        regions = [np.ones(images[0].shape[:2], bool), region]
        with pytest.raises(error, match=r"(images\[1\]: region|region 1) "):
            model.caption(images[:2], region=regions)


def test_regions_that_are_too_small_or_too_few(model, images):
    region = np.zeros((70, 90), bool)
    region[3, 5] = True
    with pytest.raises(ValueError, match=r"no pixel left at the size"):
        model.caption(images[1], region=region)
    with pytest.raises(ValueError, match=r"got 1 regions for 2 images"):
        model.caption(images[:2], region=[region])
    with pytest.raises(ValueError, match=r"one region of shape \(70, 90\) for 2 images"):
        model.caption(images[:2], region=region)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 5}, r"writes greedily; expected num_beams=1"),
        ({"sample": True}, r"writes greedily"),
        ({"max_tokens": 1}, r"max_tokens must be between 2 and 32, got 1"),
        ({"max_tokens": 99}, r"max_tokens must be between 2 and 32, got 99"),
    ],
)
def test_options_of_captions(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.caption(images[0], **options)


def test_models_without_regions_say_so(images, micro_models):
    import fiber

    coarse: Model = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(MissingAbilityError, match=r"caption of a region .*WritesRegionCaptions"):
        coarse.caption(images[0], region=np.ones((64, 64), bool))


def test_vectors_give_the_published_scores(model, images):
    texts = model.embed_texts(PHRASES)
    vectors = model.embed_images(images[:3])
    assert vectors.shape == (3, 64) and texts.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with torch.no_grad():
        words = model.inputs.texts(PHRASES)
        found = model.network.encode_text(words.token_ids, words.text_mask).vectors
        batches = model.inputs.of("image_text").images(images[:3])
        scores = [
            retrieval_scores(model.network.image_vectors(batch.images), found) for batch in batches
        ]
    np.testing.assert_allclose(vectors @ texts.T, torch.cat(scores), atol=1e-6)
    hits = model.search(PHRASES[0], images[:3])
    expected = np.argsort(-(vectors @ texts[0]), kind="stable")
    assert [hit.index for hit in hits] == expected.tolist()
    assert hits[0].score == pytest.approx((vectors @ texts[0]).max(), abs=1e-6)
    assert model.search(PHRASES[0], images[:3], rerank=False) == hits


def test_heads_alone(images):
    model = small_model("retrieval")
    assert model.embed_images(images[0]).shape == (64,)
    assert len(model.search("sky", images, top_k=2)) == 2
