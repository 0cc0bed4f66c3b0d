"""Merged attention equals plain attention over the real tokens of both sides.

Nothing of it was published, so plain code is the reference.
"""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F

import fiber
from fiber.checkpoints.export import write_published
from fiber.checkpoints.load import read_model
from fiber.models.features import ImagePrefix
from fiber.models.meter.backbone import MeterBackbone
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.keys import MERGED_LAYERS
from tests.golden import METER
from tests.parity.meter_case import MeterCase

#: Real tokens of each text, among 6.
LENGTHS = (6, 1, 4)


def merged_config(image_encoder, num_layers, task="pretrain"):
    config = MeterCase(METER / f"{image_encoder}_micro.json").meter_config(task)
    cross = dataclasses.replace(config.cross, kind="merged_attention", num_layers=num_layers)
    return dataclasses.replace(config, cross=cross)


def drawn(image_encoder, num_layers):
    """A backbone in float64 with drawn weights, prefixes of both sides, and the mask."""
    torch.manual_seed(0)
    config = merged_config(image_encoder, num_layers)
    backbone = MeterBackbone(config).double().eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    width, count = config.cross.width, 5
    text, image = (
        torch.randn(len(LENGTHS), n, width, dtype=torch.float64, requires_grad=True)
        for n in (max(LENGTHS), count)
    )
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return backbone, text, image, mask


def plain_layer(layer, num_heads, tokens):
    """One layer on (T, D) tokens, none of them padding, head by head."""
    attention, mlp = layer.self_attention, layer.feed_forward
    query = attention.query(tokens)
    key, value = attention.key_value(tokens).chunk(2, -1)
    heads = []
    for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (query, key, value)), strict=True):
        weights = torch.exp(q @ k.T / q.shape[-1] ** 0.5)
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    tokens = attention.norm(tokens + attention.output(torch.cat(heads, -1)))
    first, second = mlp.mlp[0], mlp.mlp[2]
    return mlp.norm(tokens + second(F.gelu(first(tokens))))


def plain(backbone, text, image, mask):
    """Text and image tokens of each pair, without padding."""
    outputs = []
    for own_text, own_image, real in zip(text, image, mask, strict=True):
        tokens = torch.cat((own_text[real], own_image))
        for layer in backbone.layers:
            tokens = plain_layer(layer, backbone.config.cross.num_heads, tokens)
        count = int(real.sum())
        outputs.append((tokens[:count], tokens[count:]))
    return outputs


@pytest.mark.parametrize("wanted", ["all", "pooled", "text"])
@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("image_encoder", ["clip", "swin"])
def test_values_and_gradients_are_those_of_plain_attention(image_encoder, num_layers, wanted):
    backbone, text, image, mask = drawn(image_encoder, num_layers)
    output = backbone.fuse(ImagePrefix(image), text, mask, wanted=wanted)
    texts = 1 if wanted == "pooled" else None
    images = 1 if wanted == "pooled" and image_encoder == "clip" else None
    assert torch.equal(output.text_mask, mask[:, :texts])
    assert len(output.stages) == (0 if wanted == "text" else 1)
    found, expected = [], []
    for row, (own_text, own_image) in enumerate(plain(backbone, text, image, mask)):
        expected.append(own_text[:texts])
        found.append(output.text[row][: len(expected[-1])])
        if wanted != "text":
            expected.append(own_image[:images])
            found.append(output.stages[-1][row])
    weights = [torch.randn_like(part) for part in expected]
    inputs = [text, image, *backbone.layers.parameters()]
    sides = []
    for parts in (found, expected):
        total = sum((w * part).sum() for w, part in zip(weights, parts, strict=True))
        # An input that the wanted outputs do not depend on has no gradient.
        grads = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        sides.append((*parts, *grads))
    for ours, theirs in zip(*sides, strict=True):
        # Float64 on both sides, sums in another order; gradients go up to 1e3.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("image_encoder", ["clip", "swin"])
@pytest.mark.parametrize("training", [False, True])
def test_the_last_layer_computes_only_what_is_read(image_encoder, training):
    backbone, text, image, mask = drawn(image_encoder, 2)
    # Gradient checkpointing calls the layers through another function.
    backbone.train(training)
    backbone.gradient_checkpointing = training
    seen = []
    for layer in backbone.layers:
        layer.feed_forward.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].shape[1])
        )
    texts, images = text.shape[1], image.shape[1]
    pooled = 1 if image_encoder == "clip" else images
    last = {"all": texts + images, "text": texts, "pooled": 1 + pooled}
    for wanted, count in last.items():
        seen.clear()
        backbone.fuse(ImagePrefix(image), text, mask, wanted=wanted)
        assert seen == [texts + images, count]


@pytest.mark.parametrize("task", ["pretrain", "vqa"])
@pytest.mark.parametrize("image_encoder", ["clip", "swin"])
def test_files_are_written_and_read_back(tmp_path, image_encoder, task):
    config = merged_config(image_encoder, 3, task)
    torch.manual_seed(0)
    model = MeterImageText(config)
    written = write_published(model, tmp_path / "model.ckpt")
    numbers = {n.removeprefix(MERGED_LAYERS)[0] for n in written if n.startswith(MERGED_LAYERS)}
    assert numbers == {"0", "1", "2"}
    assert not any(re.match(r"cross_modal_(text|image)_layers", name) for name in written)
    found = read_model(tmp_path / "model.ckpt")
    assert found.config == config
    state = found.network.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], own) for name, own in model.state_dict().items())


def test_a_file_that_lacks_a_tensor_of_a_layer_is_refused(tmp_path):
    model = MeterImageText(merged_config("clip", 2))
    written = write_published(model, tmp_path / "model.ckpt")
    del written[f"{MERGED_LAYERS}1.attention.self.key.weight"]
    content = torch.load(tmp_path / "model.ckpt", weights_only=False)
    torch.save(content | {"state_dict": written}, tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=rf"missing {MERGED_LAYERS}1\.attention\.self\.key\.weight"
    ):
        fiber.load(tmp_path / "model.ckpt")
