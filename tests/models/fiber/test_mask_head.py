"""The head of masks: what it adds to a detector, and that it changes nothing else."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from fiber.checkpoints.export import write_published
from fiber.checkpoints.load import load_stored
from fiber.config import preset
from fiber.config_io import from_dict, replace_fields, to_dict
from fiber.models.fiber.detector import FiberDetector
from fiber.ops.masks import PLACE_TERMS, enlarged_boxes, masks_at_points, masks_on_map

pytestmark = pytest.mark.oldest

PLAIN = preset("micro", stage="fine")
MASKED = replace_fields(PLAIN, {"detector.mask_width": 8})


def built(config):
    torch.manual_seed(0)
    return FiberDetector(config).eval()


@pytest.fixture(scope="module")
def model():
    return built(MASKED)


@pytest.fixture(scope="module")
def inputs():
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 96, 96, generator=random)
    ids = torch.randint(3, 300, (2, 7), generator=random)
    return images, ids, torch.ones(2, 7, dtype=torch.bool)


def test_a_config_without_the_head_is_stored_as_before():
    assert "mask_width" not in to_dict(PLAIN)["detector"]
    assert PLAIN.heads == ("grounding",)
    assert MASKED.heads == ("grounding", "grounding_mask")
    assert from_dict(type(MASKED), to_dict(MASKED)) == MASKED


def test_the_head_changes_no_other_weight(model):
    own = model.state_dict()
    for name, tensor in built(PLAIN).state_dict().items():
        assert torch.equal(tensor, own.pop(name)), name
    assert own
    assert all(name.startswith("mask_head.") for name in own)


def test_boxes_are_those_of_the_model_without_it(model, inputs):
    plain = built(PLAIN)
    with torch.no_grad():
        expected, found = plain(*inputs), model(*inputs)
        images, ids, mask = inputs
        features = model.backbone.fuse(
            model.image_prefix(images), model.backbone.text_prefix(ids, mask), mask
        )
        without = model.predict(features)
    assert expected.masks is None
    assert without.masks is None
    for name in ("token_logits", "box_deltas", "centerness_logits"):
        for one, two, three in zip(
            *(getattr(each, name) for each in (expected, found, without)), strict=True
        ):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
    assert found.masks.features.shape == (2, 8, 24, 24)
    assert [each.shape[1:] for each in found.masks.embeddings] == [
        (len(anchors), 8 + PLACE_TERMS) for anchors in found.anchors
    ]


def test_a_model_without_the_head_predicts_no_masks(inputs):
    images, ids, mask = inputs
    plain = built(PLAIN)
    features = plain.backbone.encode_pair(images, ids, mask)
    with pytest.raises(ValueError, match="mask_width is 0"):
        plain.predict_masks(features)


def test_masks_do_not_depend_on_the_size_of_other_images(model, inputs):
    images, ids, mask = inputs
    sizes = [(64, 96), (96, 32)]
    with torch.no_grad():
        both = model(images, ids, mask, torch.tensor(sizes)).masks
        for row, (height, width) in enumerate(sizes):
            own = slice(row, row + 1)
            alone = model(images[own, :, :height, :width], ids[own], mask[own]).masks
            features = both.features[own, :, : height // 4, : width // 4]
            # Convolutions sum in other orders.
            torch.testing.assert_close(features, alone.features, atol=1e-4, rtol=1e-4)
            first = both.embeddings[0][own].unflatten(1, (12, 12))
            expected = alone.embeddings[0].unflatten(1, (height // 8, width // 8))
            found = first[:, : height // 8, : width // 8]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_channels_that_cannot_be_split():
    channels = {"detector.channels": 36, "detector.norm_groups": 4}
    with pytest.raises(ValueError, match=r"detector\.channels.*8 heads.*36"):
        replace_fields(MASKED, channels)
    assert replace_fields(PLAIN, channels)


def test_maps_are_the_points_at_the_centers_of_their_places():
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 8 + PLACE_TERMS, generator=random)
    features = torch.randn(8, 5, 7, generator=random)
    anchors = torch.tensor([[0.0, 0, 8, 8], [4, 4, 20, 28], [10, -5, 14, 9]])
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    points = ((torch.stack((columns, rows), -1) + 0.5) * 4).flatten(0, 1).expand(3, -1, -1)
    at_points = features.flatten(1).T.expand(3, -1, -1)
    expected = masks_at_points(embeddings, at_points, points, anchors).unflatten(1, (5, 7))
    found = masks_on_map(embeddings, features, anchors, 4)
    # Two orders of the same float32 sums.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_margin():
    found = enlarged_boxes(torch.tensor([[10.0, 20, 30, 25]]))
    torch.testing.assert_close(found, torch.tensor([[8.0, 19.5, 32, 25.5]]))


def test_files_of_the_published_form_keep_the_head(tmp_path):
    model = built(dataclasses.replace(MASKED, channel_order="bgr"))
    path = tmp_path / "masks.safetensors"
    write_published(model, path)
    stored = load_stored(path)
    assert stored.config == model.config
    for name, tensor in stored.network.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    write_published(built(PLAIN), tmp_path / "plain.safetensors")
    tensors = load_file(tmp_path / "plain.safetensors")
    assert not any("mask" in name for name in tensors)
