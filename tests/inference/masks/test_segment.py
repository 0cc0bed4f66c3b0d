"""`segment`: the answer for an image, what it is computed from, and what is wrong input."""

import json
import re

import numpy as np
import pytest
import torch

from fiber.inference.stages import StagedModel
from fiber.models.heads import MissingHeadError
from fiber.models.registry import inference_transform
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.ops.masks import resize_masks
from fiber.postprocess.masks import (
    final_masks,
    instance_masks,
    panoptic_segments,
    semantic_scores,
)
from fiber.postprocess.segmentation import Segmentation
from tests.golden import XDECODER
from tests.models.xdecoder.small_model import CLASSES, PHRASES, STUFF, small_model

pytestmark = pytest.mark.oldest

#: Thresholds at which segments of random weights are kept.
LOW = {"score_threshold": 0.0, "overlap_threshold": 0.0}
QUESTIONS = {
    "panoptic": {"classes": CLASSES, "stuff": STUFF, **LOW},
    "semantic": {"classes": CLASSES, "kind": "semantic"},
    "instance": {"classes": CLASSES, "stuff": STUFF, "kind": "instance"},
    "together": {"phrases": PHRASES},
    "alone": {"phrases": PHRASES, "together": False},
}


def check_equal(found, expected):
    assert found.kind == expected.kind
    assert found.segments == expected.segments
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.masks, expected.masks)


def test_no_image(model):
    assert model.segment([], CLASSES) == []
    assert model.segment([], phrases="sky") == []


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_answer_does_not_depend_on_the_company(model, images, name):
    together = model.segment(images, **QUESTIONS[name])
    assert len(together) == len(images) == 8
    assert len({image.shape for image in images}) == 5
    for image, found in zip(images, together, strict=True):
        check_equal(model.segment(image, **QUESTIONS[name]), found)
        assert found.image_size == image.shape[:2]
    assert any(len(found.segments) > 1 for found in together)


def outputs(model, image, kind="panoptic"):
    """Class logits and all masks at the size of an image."""
    inputs = model.inputs.of("instances" if kind == "instance" else "segment")
    (batch,) = inputs.images([image])
    vectors = torch.from_numpy(model.class_vectors(CLASSES).vectors)
    with torch.inference_mode():
        memory = model.network.read_image(batch.images)
        classes, masks = model.network.class_masks(memory, vectors)
    sizes = (tuple(batch.images.shape[-2:]), tuple(batch.image_sizes[0].tolist()), image.shape[:2])
    return classes[0], final_masks(masks[0], *sizes)


def test_panoptic_equals_that_of_all_masks(model, images):
    # Between the scores of this image, so that some masks are dropped.
    classes, masks = outputs(model, images[1])
    threshold = classes.softmax(-1).max(-1).values.median().item()
    expected = panoptic_segments(
        masks,
        classes,
        [name not in STUFF for name in CLASSES],
        score_threshold=threshold,
        overlap_threshold=0.1,
    )
    found = model.segment(
        images[1], CLASSES, stuff=STUFF, score_threshold=threshold, overlap_threshold=0.1
    )
    assert len(found) == len(expected.segments) > 0
    # Fewer masks are resized at once, in other sums.
    assert (found.ids != expected.ids.numpy()).mean() < 1e-3
    for own, theirs in zip(found.segments, expected.segments, strict=True):
        assert (own.id, own.label_index, own.is_thing) == (theirs.id, theirs.label, theirs.is_thing)
        assert own.label == CLASSES[theirs.label] and own.score == pytest.approx(theirs.score)
    strict = model.segment(images[1], CLASSES, score_threshold=1.0)
    assert len(strict) == 0 and not strict.ids.any() and strict.masks.shape == (0, 70, 90)


def test_semantic_equals_that_of_all_masks(model, images):
    classes, masks = outputs(model, images[2])
    best, labels = semantic_scores(masks, classes).max(0)
    found = model.segment(images[2], CLASSES, kind="semantic")
    assert found.ids.min() == 1
    ours = np.array([0, *found.indices])[found.ids]
    assert (ours != labels.numpy()).mean() < 1e-3
    for each in found.segments:
        own = labels == each.label_index
        assert each.score == pytest.approx(best[own].mean().item(), rel=1e-3)


def test_instances_equal_those_of_all_masks(model, images):
    classes, masks = outputs(model, images[3], "instance")
    expected = instance_masks(
        masks, classes, [name not in STUFF for name in CLASSES], max_instances=20
    )
    found = model.segment(images[3], CLASSES, stuff=STUFF, kind="instance", max_instances=20)
    kept = expected.masks.flatten(1).any(1)
    assert len(found) == kept.sum() > 1
    np.testing.assert_allclose(found.scores, expected.scores[kept], atol=1e-5)
    assert (found.masks != expected.masks[kept].numpy()).mean() < 1e-3
    assert not set(found.labels) & set(STUFF)
    assert (np.diff(found.scores) <= 0).all()
    # The best has the pixels that several have.
    assert np.array_equal(found.ids == 1, found.masks[0])
    few = model.segment(
        images[3], CLASSES, stuff=STUFF, kind="instance", score_threshold=found.scores[1].item()
    )
    assert len(few) == (found.scores >= found.scores[1]).sum()


def test_phrases_are_asked_together_or_alone(model, images):
    image = images[1]
    together = model.segment(image, phrases=PHRASES)
    assert together.labels == PHRASES and together.indices.tolist() == [0, 1, 2]
    (batch,) = model.inputs.of("segment").images([image])
    texts = model.inputs.texts(PHRASES)
    with torch.inference_mode():
        memory = model.network.read_image(batch.images)
        scores, logits = model.network.find_phrases(memory, texts.token_ids, texts.text_mask)
    inside = resize_masks(logits, tuple(batch.images.shape[-2:]))
    height, width = batch.image_sizes[0].tolist()
    expected = resize_masks(inside[..., :height, :width], image.shape[:2])[0] > 0
    assert np.array_equal(together.masks, expected.numpy())
    np.testing.assert_array_equal(together.scores, scores[0].numpy())
    alone = model.segment(image, phrases=PHRASES, together=False)
    assert not np.array_equal(alone.scores, together.scores)
    for number, phrase in enumerate(PHRASES):
        single = model.segment(image, phrases=phrase)
        assert np.array_equal(single.masks[0], alone.masks[number])
        assert single.scores[0] == alone.scores[number]


def test_a_list_of_phrases_for_each_image(model, images):
    lists = [["sky"], PHRASES]
    found = model.segment(images[:2], phrases=lists)
    assert [each.labels for each in found] == lists
    check_equal(found[1], model.segment(images[1], phrases=PHRASES))


def test_texts_are_cleaned_as_published(model, images):
    curly = model.segment(images[0], phrases="the dog\u2019s &amp; cat\u2019s ball")
    straight = model.segment(images[0], phrases="the dog's & cat's ball")
    assert np.array_equal(curly.masks, straight.masks)
    assert curly.labels == ["the dog\u2019s &amp; cat\u2019s ball"]
    offsets = model.inputs.texts(["a &amp; b"]).offsets[0]
    assert (2, 7) in [(start, end) for start, end in offsets] or (1, 7) in offsets


LONG = "red " * 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected classes or phrases, got neither"),
        ({"classes": []}, r"classes: expected at least one name, got none"),
        ({"classes": ["sky", "sky"]}, r"classes: 'sky' is there twice"),
        ({"classes": ["sky", " "]}, r"class 1 is empty"),
        ({"classes": ["sky", "background"]}, r"'background' is added"),
        ({"classes": ["sky", LONG]}, r"class 'red red .*: the text 'red .* tokens; .* 32"),
        ({"classes": ["sky"], "phrases": ["sky"]}, r"classes cannot be combined with phrases"),
        ({"stuff": ["sky"], "phrases": ["sky"]}, r"stuff cannot be combined with phrases"),
        ({"kind": "instance", "phrases": "a"}, r"kind cannot be combined with phrases"),
        ({"classes": CLASSES, "stuff": ["ski"]}, r"stuff 'ski' is no class; .*sky"),
        ({"classes": CLASSES, "stuff": ["sky", "sky"]}, r"stuff: 'sky' is there twice"),
        ({"classes": ["sky"], "stuff": "sky", "kind": "instance"}, r"all classes are stuff"),
        ({"classes": CLASSES, "kind": "panoptik"}, r"kind 'panoptik' .*panoptic"),
        ({"classes": CLASSES, "kind": "phrases"}, r"kind 'phrases' does not exist"),
        ({"classes": CLASSES, "score_threshold": 1.5}, r"score_threshold .*0 and 1, .*got 1\.5"),
        ({"classes": CLASSES, "overlap_threshold": -1}, r"overlap_threshold .*got -1"),
        (
            {"classes": CLASSES, "overlap_threshold": 0.1, "kind": "semantic"},
            r"overlap_threshold is for kind 'panoptic', got it with 'semantic'",
        ),
        ({"classes": CLASSES, "max_instances": 3}, r"max_instances is for kind 'instance'"),
        (
            {"classes": CLASSES, "max_instances": 0, "kind": "instance"},
            r"max_instances must be 1 or more, got 0",
        ),
        ({"classes": CLASSES, "together": False}, r"together=False is for phrases"),
        ({"phrases": []}, r"phrases: got an empty list"),
        ({"phrases": ["sky", ""]}, r"phrase 1 is empty"),
        ({"phrases": [["sky"], ["a", "b"]]}, r"got 2 lists of texts for 1 image"),
        ({"phrases": ["sky", LONG]}, r"phrase 'red red .* 42 tokens; expected at most 32"),
        ({"phrases": "<s></s>"}, r"only special tokens"),
    ],
)
def test_wrong_input_is_named(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.segment(images[0], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["sky", 3]}, r"class 1 is 3; expected a str"),
        ({"classes": 7}, r"class: expected a str or a list"),
        ({"classes": CLASSES, "score_threshold": "a"}, r"score_threshold must be a number"),
        (
            {"classes": CLASSES, "max_instances": 1.5, "kind": "instance"},
            r"max_instances must be an integer, got 1\.5",
        ),
        ({"phrases": "sky", "together": 1}, r"together must be bool, got 1"),
    ],
)
def test_wrong_types_are_named(model, images, options, message):
    with pytest.raises(TypeError, match=message):
        model.segment(images[0], **options)


def test_heads_and_tokenizers_that_are_missing(images):
    model = small_model("caption", "retrieval")
    with pytest.raises(MissingHeadError, match=r"segment needs the head 'mask'; .*caption, retri"):
        model.segment(images[0], CLASSES)
    blind = small_model("mask")
    blind.inputs.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        blind.segment(images[0], CLASSES)
    with pytest.raises(MissingHeadError, match=r"caption needs the head 'caption'.*released files"):
        blind.caption(images[0])
    with pytest.raises(MissingHeadError, match="'retrieval'"):
        small_model("mask").search("sky", images)


def test_classes_that_the_model_was_trained_on(images):
    model = small_model()
    model.classes = tuple(CLASSES)
    check_equal(model.segment(images[0], **LOW), model.segment(images[0], CLASSES, **LOW))


def test_the_stage_with_the_head_is_asked(model, images, micro_models):
    import fiber

    coarse = fiber.load(micro_models["coarse"], device="cpu")
    staged = StagedModel({"coarse": coarse, "masks": model})
    check_equal(staged.segment(images[0], CLASSES, **LOW), model.segment(images[0], CLASSES, **LOW))
    assert staged.class_vectors(CLASSES).classes == tuple(CLASSES)
    with pytest.raises(MissingHeadError, match=r"segment needs the head 'mask'"):
        coarse.segment(images[0], CLASSES)


@pytest.mark.parametrize("task", [None, "segment", "phrases"])
def test_images_have_the_sizes_of_the_published_demonstration(task):
    recorded = json.loads((XDECODER / "post.json").read_text())["scalars"]["sizes"]
    transform = inference_transform(XDecoderConfig(), task)
    from fiber import _core

    for entry in recorded[:5]:
        height, width = entry["hw"]
        image = np.zeros((height, width, 3), np.uint8)
        pixels, _, size = _core.apply_transform(image, transform)
        assert list(size) == entry["demo_512"]
        padded = [-(-side // 32) * 32 for side in size]
        assert list(np.asarray(pixels).shape[1:]) == padded


def test_sizes_by_purpose():
    config = XDecoderConfig()
    texts = {
        task: inference_transform(config, task).describe()
        for task in ("instances", "caption", "image_text")
    }
    assert texts["instances"]["sizes"] == [800] and texts["instances"]["filter"] == "bicubic"
    for task in ("caption", "image_text"):
        assert texts[task]["kind"] == "squash" and texts[task]["size"] == 224
        assert texts[task]["filter"] == "bilinear"


def test_results(model, images, tmp_path):
    found = model.segment(images[1], CLASSES, stuff=STUFF, **LOW)
    assert isinstance(found, Segmentation)
    found.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size
    assert re.match(r"Segmentation\(panoptic, \d+ in 90 x 70 pixels\)\n", repr(found))
