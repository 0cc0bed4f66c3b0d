import copy
import dataclasses

import pytest
import torch

from fiber.config import preset
from fiber.models.features import BackboneOutput
from fiber.models.fiber.detector import FiberDetector, GroundingHead

pytestmark = pytest.mark.oldest

CONFIG = preset("micro", stage="fine")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FiberDetector(CONFIG).eval()


def inputs(batch, height, width, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, height, width, generator=random)
    ids = torch.randint(4, 300, (batch, length), generator=random)
    return images, ids, torch.ones(batch, length, dtype=torch.bool)


def joined(output):
    return [
        torch.cat(part, dim=1)
        for part in (output.token_logits, output.box_deltas, output.centerness_logits)
    ]


@pytest.mark.parametrize(
    ("size", "length", "locations"),
    [
        pytest.param((32, 32), 1, [16, 4, 1, 1, 1], id="one location, one token"),
        pytest.param((96, 160), 7, [240, 60, 15, 6, 2], id="odd"),
        pytest.param((64, 64), 16, [64, 16, 4, 1, 1], id="ordinary"),
    ],
)
def test_output_shapes(model, size, length, locations):
    output = model(*inputs(2, *size, length))
    assert [tuple(each.shape) for each in output.token_logits] == [
        (2, n, length) for n in locations
    ]
    assert [tuple(each.shape) for each in output.box_deltas] == [(2, n, 4) for n in locations]
    assert [tuple(each.shape) for each in output.centerness_logits] == [(2, n) for n in locations]
    assert [tuple(each.shape) for each in output.anchors] == [(n, 4) for n in locations]


def test_empty_batch_gives_empty_predictions(model):
    output = model(*inputs(0, 64, 64, 5))
    assert output.token_logits[0].shape == (0, 64, 5)


@pytest.mark.parametrize("shape", [(1, 3, 64, 40), (1, 3, 33, 64), (3, 64, 64)])
def test_invalid_image_size_is_rejected(model, shape):
    _, ids, mask = inputs(1, 64, 64, 5)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(shape), ids, mask)


def test_coarse_config_is_rejected():
    with pytest.raises(ValueError, match=r"fine-stage.*'coarse'"):
        FiberDetector(preset("micro"))


def test_unavailable_strides_are_rejected():
    detector = dataclasses.replace(CONFIG.detector, strides=(4, 8, 16, 32, 64))
    with pytest.raises(ValueError, match=r"expected \(8, 16, 32, 64, 128\)"):
        dataclasses.replace(CONFIG, detector=detector)


def test_features_without_text_are_rejected(model):
    with pytest.raises(ValueError, match="encode_pair"):
        model.predict(model.backbone.encode_image(torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize(("version", "count"), [("v2", 252_055_304), ("v3", 252_063_496)])
def test_base_matches_the_published_parameter_count(version, count):
    with torch.device("meta"):
        model = FiberDetector(preset("base").fine(version=version, max_tokens=256))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_token_logits_by_definition():
    torch.manual_seed(0)
    head = GroundingHead(8, 6, 1, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    level, text = torch.randn(1, 8, 1, 2), torch.randn(1, 3, 6)
    logits, _, _ = head([level], text, torch.tensor([[True, True, False]]))
    unit = text[0] / text[0].norm(dim=1, keepdim=True)
    unit[2] = 0
    weight, bias = head.text_projection.weight, head.text_projection.bias
    for place in range(2):
        for token in range(3):
            key = weight @ (unit[token] / 2) + bias
            product = level[0, :, 0, place] @ key / head.log_temperature.exp()
            expected = product + unit[token] @ head.text_bias + head.bias
            torch.testing.assert_close(logits[0, place, token], expected[0], rtol=1e-5, atol=1e-5)


def test_token_logits_are_bounded():
    torch.manual_seed(0)
    head = GroundingHead(8, 6, 1, 3)
    with torch.no_grad():
        head.text_projection.weight.mul_(1e7)
    logits, _, _ = head([torch.randn(1, 8, 2, 2)], torch.randn(1, 3, 6), torch.ones(1, 3).bool())
    assert logits.abs().max() == 50000


def test_longer_text_padding_does_not_change_the_output(model):
    # In double precision, where summation order does not matter.
    model = copy.deepcopy(model).double()
    images, ids, mask = inputs(2, 64, 96, 6)
    images = images.double()
    mask = mask.clone()
    mask[1, 4:] = False
    ids = ids.masked_fill(~mask, 1)
    longer_ids = torch.nn.functional.pad(ids, (0, 5), value=1)
    longer_mask = torch.nn.functional.pad(mask, (0, 5))
    short, long = joined(model(images, ids, mask)), joined(model(images, longer_ids, longer_mask))
    torch.testing.assert_close(short[0], long[0][..., :6], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(short[1:], long[1:], rtol=1e-10, atol=1e-10)


def test_boxes_depend_on_the_text_through_the_fused_backbone(model):
    images, ids, mask = inputs(1, 64, 64, 6)
    one, other = model(images, ids, mask), model(images, ids.flip(1), mask)
    assert not torch.allclose(joined(one)[1], joined(other)[1], atol=1e-5)


def test_new_model_predicts_low_token_probabilities(model):
    probabilities = joined(model(*inputs(2, 64, 64, 6)))[0].sigmoid()
    assert 0.005 < probabilities.mean() < 0.02


def test_prefixes_can_be_shared_between_texts(model):
    images, ids, mask = inputs(2, 64, 64, 6)
    backbone = model.backbone
    prefix = backbone.image_prefix(images)
    shared = model.predict(backbone.fuse(prefix, backbone.text_prefix(ids, mask), mask))
    torch.testing.assert_close(joined(shared), joined(model(images, ids, mask)))


def test_all_levels_in_one_tensor(model):
    images, ids, mask = inputs(2, 64, 96, 5)
    with torch.no_grad():
        found = model.predict_all(model.backbone.encode_pair(images, ids, mask))
        expected = joined(model(images, ids, mask))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_every_used_weight_gets_a_gradient():
    torch.manual_seed(0)
    model = FiberDetector(CONFIG)
    output = model(*inputs(2, 128, 128, 6))
    random = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=random)).sum() for part in joined(output))
    loss.backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Nothing reads the unused layer, and a batch without padding does not read the row of <pad>.
    assert idle == {"head.unused_classes.weight", "head.unused_classes.bias"}
    assert not model.head.unused_classes.weight.requires_grad


def test_level_scale_affects_only_its_level(model):
    images, ids, mask = inputs(1, 64, 64, 6)
    before = model(images, ids, mask)
    with torch.no_grad():
        model.head.level_scales[1].mul_(2)
        after = model(images, ids, mask)
        model.head.level_scales[1].div_(2)
    for level in range(5):
        factor = 2 if level == 1 else 1
        torch.testing.assert_close(after.box_deltas[level], before.box_deltas[level] * factor)


def test_features_come_from_the_backbone(model):
    features = model.backbone.encode_pair(*inputs(1, 64, 64, 6))
    assert isinstance(features, BackboneOutput)
    maps = model.stage_maps(features)
    assert [tuple(each.shape[1:]) for each in maps] == [(32, 8, 8), (64, 4, 4), (128, 2, 2)]
    # Normalized over the channels.
    assert maps[0].mean(1).abs().max() < 1e-5
