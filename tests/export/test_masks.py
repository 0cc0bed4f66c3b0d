"""Which heads of models with masks are exported, and what is said of the others."""

import pytest
import torch

from fiber.export import parts
from fiber.export.parts import exportable_heads, plan_parts, sample_sizes, sample_tensors
from fiber.models.fiber.detector import FiberDetector
from fiber.runtime.model import _with_heads
from tests.export import networks

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="fiber export needs a newer torch"
)


def names_of(network, *heads):
    return {part.name: (part.inputs, part.outputs) for part in plan_parts(network, heads).parts}


@pytest.fixture(scope="module")
def masked():
    return networks.network("fine two blocks")


@pytest.fixture(scope="module")
def segmenter():
    return networks.network("X-Decoder")


def test_a_detector_with_and_without_masks(masked):
    plain = names_of(masked, "grounding")
    both = names_of(masked, "grounding", "grounding_mask")
    assert list(plain) == list(both) == ["image_prefix", "text_prefix", "pair"]
    assert both["pair"][1][:3] == plain["pair"][1]
    assert both["pair"][1][3:] == ("mask_embeddings", "mask_features")
    # Masks read one stage more.
    assert len(both["pair"][0]) == len(plain["pair"][0]) + 1
    assert exportable_heads(masked.config) == ("grounding", "grounding_mask")


def test_masks_without_boxes(masked):
    with pytest.raises(ValueError, match=r"'grounding_mask' finds the masks of boxes; expected"):
        plan_parts(masked, ("grounding_mask",))
    plain = FiberDetector(networks.small_networks.network("fine").config)
    with pytest.raises(ValueError, match=r"heads: expected some of grounding, got 'grounding_mask"):
        plan_parts(plain, ("grounding", "grounding_mask"))


def test_heads_of_a_model_that_finds_masks(segmenter):
    assert exportable_heads(segmenter.config) == ("mask", "retrieval")
    assert list(names_of(segmenter, "mask")) == [
        *("pixel_maps", "texts", "class_masks", "phrase_masks")
    ]
    assert list(names_of(segmenter, "retrieval")) == ["pixel_maps", "texts", "embed_images"]
    both = names_of(segmenter, "mask", "retrieval")
    assert both["pixel_maps"][1][-1] == "image_means"
    with pytest.raises(ValueError, match=r"'caption' of this model cannot be exported; .* mask, r"):
        plan_parts(segmenter, ("caption",))


def test_configs_of_graphs_have_their_heads(masked, segmenter):
    assert _with_heads(masked.config, ("grounding",)).heads == ("grounding",)
    assert _with_heads(segmenter.config, ("mask",)).heads == ("mask",)
    coarse = networks.small_networks.network("coarse").config
    assert _with_heads(coarse, ("vqa",)).heads == ("vqa",)
    assert _with_heads(coarse, coarse.heads) is coarse


def test_the_functions_of_graphs_are_those_of_the_network(segmenter):
    """In eager mode, at the smallest size; exported graphs are compared in test_agreement.py."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 64)
    ids, mask = torch.randint(5, 300, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.no_grad():
        *maps, means = segmenter.pixel_maps(images)
        memory, texts = segmenter.read_image(images), segmenter.encode_text(ids, mask)
        tokens = texts.tokens[mask].expand(2, -1, -1)
        found = segmenter.phrase_mask_tensors(maps, tokens, texts.vectors)
        for own, expected in zip(found, segmenter.find_phrases(memory, ids, mask), strict=True):
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
        vectors = torch.nn.functional.normalize(texts.vectors, dim=1)
        pairs = zip(
            segmenter.class_mask_tensors(maps, vectors),
            segmenter.class_masks(memory, vectors),
            strict=True,
        )
        for own, expected in pairs:
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
        own = segmenter.image_vector_tensors(maps, means)
        torch.testing.assert_close(own, segmenter.embed_images(images), rtol=0, atol=1e-6)


def test_a_detector_without_masks():
    with pytest.raises(ValueError, match=r"the model has no masks: detector\.mask_width is 0"):
        FiberDetector(networks.small_networks.network("fine").config).predict_all_masks(None)


def test_inputs_of_which_rounding_changes_the_outputs_are_drawn_again(segmenter, monkeypatch):
    plan = plan_parts(segmenter, ("mask",))
    sizes = sample_sizes(segmenter, plan)[1]
    first = sample_tensors(segmenter, plan, sizes, 0)
    assert parts._is_stable(plan, first)
    monkeypatch.setattr(parts, "_is_stable", lambda plan, tensors: False)
    monkeypatch.setattr(parts, "_MAX_DRAWS", 2)
    assert not torch.equal(sample_tensors(segmenter, plan, sizes, 0)["images"], first["images"])
    monkeypatch.undo()
    monkeypatch.setattr(parts, "_ROUNDING", 1e-2)
    assert not parts._is_stable(plan, first)
