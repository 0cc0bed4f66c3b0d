"""Interleaving of the encoders, in every allowed configuration."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fiber.config import FiberConfig, FusionConfig, RobertaConfig, SwinConfig, preset
from fiber.models.encoders.roberta import key_attention_mask
from fiber.models.fiber.backbone import FiberBackbone
from tests.models.encoders.test_roberta import texts
from tests.models.encoders.test_swin import randomise

pytestmark = pytest.mark.oldest

IMAGES = torch.randn(2, 3, 48, 64, generator=torch.manual_seed(3))
IDS, MASK = texts(7, 4)


def config(depths=(1, 1, 2, 1), num_layers=3, **fusion) -> FiberConfig:
    return FiberConfig(
        image_size=64,
        max_tokens=16,
        swin=SwinConfig(
            embed_dim=8, depths=depths, num_heads=(1, 1, 2, 2), window_size=2, drop_path=0.0
        ),
        roberta=RobertaConfig(
            vocab_size=60,
            width=12,
            num_layers=num_layers,
            num_heads=2,
            ffn_width=24,
            max_positions=20,
            dropout=0.0,
        ),
        fusion=FusionConfig(**({"num_fused_layers": 2, "gate_start": 0.5} | fusion)),
    )


def backbone(made: FiberConfig) -> FiberBackbone:
    torch.manual_seed(0)
    model = FiberBackbone(made).eval()
    randomise(model)
    return model


SHAPES = {
    "published shape": ((2, 2, 18, 2), 12, 6),
    "small preset": ((1, 1, 4, 2), 6, 4),
    "one pair": ((1, 1, 2, 1), 3, 1),
    "last stage alone": ((1, 1, 2, 2), 3, 2),
    "every text layer": ((1, 1, 2, 2), 3, 3),
    "every block of two stages": ((1, 1, 2, 2), 5, 4),
    "no fusion": ((1, 1, 2, 2), 3, 0),
}


@pytest.mark.parametrize(("depths", "layers", "fused"), SHAPES.values(), ids=SHAPES.keys())
def test_pairs_are_the_last_blocks_of_both_encoders(depths, layers, fused):
    """Replay `fuse` with the encoders' blocks; both blocks of a pair read the pair's inputs."""
    model = backbone(config(depths, layers, num_fused_layers=fused))
    output = model.encode_pair(IMAGES, IDS, MASK)
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    image = model.image.patch_embedding(IMAGES)
    text = model.text.embeddings(IDS)
    stages, layer, mask = [], 0, key_attention_mask(MASK)
    for layer in range(layers - fused):
        text = model.text.layers[layer](text, mask)
    for number, (stage, block) in enumerate(places):
        swin_stage = model.image.stages[stage]
        pair = number - (len(places) - fused)
        if pair < 0:
            image = swin_stage.blocks[block](image)
        else:
            before, last = image, pair == fused - 1
            fusion = model.fusion[pair]
            image = swin_stage.blocks[block](
                image, lambda a, f=fusion, t=text: f.image_to_text(a, t, MASK)
            )
            text = model.text.layers[layers - fused + pair](
                text,
                mask,
                lambda a, f=fusion, b=before: f.text_to_image(a, b),
                normalize_output=not last,
            )
        if block == depths[stage] - 1:
            stages.append(image)
            image = swin_stage.merging(image) if stage < 3 else image
    assert len(output.stages) == 4
    for ours, expected in zip(output.stages, stages, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(output.text, text)
    assert torch.equal(output.text_mask, MASK)


def test_encoding_alone_skips_fusion():
    model = backbone(config())
    for ours, expected in zip(model.encode_image(IMAGES).stages, model.image(IMAGES), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(model.encode_text(IDS, MASK), model.text(IDS, MASK))
    assert model.encode_image(IMAGES).text is None


def test_closed_gates_leave_the_encoders_unchanged():
    model = backbone(config(normalize_last_text=True))
    for pair in model.fusion:
        for module in (pair.image_to_text, pair.text_to_image):
            module.gate.data.zero_()
    output = model.encode_pair(IMAGES, IDS, MASK)
    assert torch.equal(output.stages[-1], model.encode_image(IMAGES).stages[-1])
    assert torch.equal(output.text, model.encode_text(IDS, MASK))


def test_prefixes_can_be_shared():
    """Pairs of selected prefixes match pairs of selected images and texts."""
    model = backbone(config())
    image, text = model.image_prefix(IMAGES), model.text_prefix(IDS, MASK)
    order = torch.tensor([1, 0, 1])
    ours = model.fuse(image.take(order), text[[0, 1, 1]], MASK[[0, 1, 1]])
    expected = model.encode_pair(IMAGES[order], IDS[[0, 1, 1]], MASK[[0, 1, 1]])
    assert torch.allclose(ours.stages[-1], expected.stages[-1], atol=1e-6)
    assert torch.allclose(ours.text, expected.text, atol=1e-6)
    alone = model.complete_image(image).stages
    assert torch.equal(alone[-1], model.encode_image(IMAGES).stages[-1])


@pytest.mark.parametrize("num_fused_layers", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_unrequested_outputs_are_skipped_without_changing_the_rest(num_fused_layers, checkpointing):
    """Values and gradients in float64, where only the summation order differs."""
    model = backbone(config(num_fused_layers=num_fused_layers)).double().train()
    model.gradient_checkpointing = checkpointing
    images = IMAGES.double()

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    every = model.encode_pair(images, IDS, MASK)
    pooled = model.encode_pair(images, IDS, MASK, wanted="pooled")
    assert pooled.text.shape[1] == pooled.text_mask.shape[1] == 1
    torch.testing.assert_close(pooled.text, every.text[:, :1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled.stages[-1], every.stages[-1], rtol=1e-12, atol=1e-12)
    expected = gradients(every.text[:, 0].square().sum() + every.stages[-1].square().sum())
    found = gradients(pooled.text.square().sum() + pooled.stages[-1].square().sum())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    ran = []
    model.image.block(len(model.image.places) - 1).register_forward_hook(lambda *_: ran.append(1))
    words = model.encode_pair(images, IDS, MASK, wanted="text")
    torch.testing.assert_close(words.text, every.text, rtol=1e-12, atol=1e-12)
    if num_fused_layers:
        assert not ran
        assert len(words.stages) == len(every.stages) - 1


def test_first_token_only_output_is_the_same():
    model = backbone(config()).double()
    prefix = model.text_prefix(IDS, MASK)
    first = model.complete_text(prefix, MASK, wanted="pooled")
    expected = model.complete_text(prefix, MASK)[:, :1]
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)


def test_text_padding_does_not_change_the_output():
    model = backbone(config())
    longer = torch.nn.functional.pad(IDS, (0, 5), value=1)
    longer_mask = torch.nn.functional.pad(MASK, (0, 5), value=False)
    short, long = (
        model.encode_pair(IMAGES, IDS, MASK),
        model.encode_pair(IMAGES, longer, longer_mask),
    )
    assert torch.allclose(short.stages[-1], long.stages[-1], atol=1e-5)
    assert torch.allclose(short.text[MASK], long.text[:, :7][MASK], atol=1e-5)


def test_last_text_norm_follows_the_config():
    raw = backbone(config()).encode_pair(IMAGES, IDS, MASK)
    model = backbone(config(normalize_last_text=True))
    normed = model.encode_pair(IMAGES, IDS, MASK)
    assert torch.allclose(model.text.layers[-1].output_norm(raw.text), normed.text, atol=1e-6)
    assert torch.equal(raw.stages[-1], normed.stages[-1])


def test_decoding_is_causal_and_reads_the_image():
    model = backbone(config())
    tokens = [torch.randn(2, 5, pair.text_to_image.key_value.in_features) for pair in model.fusion]
    before = model.decode_text(tokens, IDS, MASK)
    changed = IDS.clone()
    changed[:, 3] = 5
    after = model.decode_text(tokens, changed, MASK)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
    assert not torch.allclose(before, model.decode_text([t + 1 for t in tokens], IDS, MASK))
    with pytest.raises(ValueError, match="zip"):
        model.decode_text(tokens[:1], IDS, MASK)


@pytest.mark.parametrize("size", [(1, 1), (33, 70)], ids=str)
def test_any_image_size(size):
    model = backbone(preset("micro").fine())
    output = model.encode_pair(torch.randn(2, 3, *size), IDS, MASK)
    assert output.stages[0].shape[1:3] == (-(-size[0] // 4), -(-size[1] // 4))
    assert all(stage.isfinite().all() for stage in output.stages)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = backbone(config()).train()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        output = model.encode_pair(IMAGES, IDS, MASK)
        (output.text.square().mean() + output.stages[-1].square().mean()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_gradient_checkpointing_saves_memory():
    model = backbone(config()).train()
    kept = []
    for model.gradient_checkpointing in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t
        ):
            model.encode_pair(IMAGES, IDS, MASK)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_bfloat16_autocast_stays_close():
    """Forward and backward are within a few bfloat16 roundings (2 ** -8) of float32."""
    model = backbone(config(normalize_last_text=True)).train()
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model.encode_pair(IMAGES, IDS, MASK)
        output.text.float().square().mean().backward()
        results.append((output.text.float(), model.text.layers[0].mlp[0].weight.grad))
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() < 0.05 * exact.norm()
        assert not torch.equal(exact, rounded)


def test_empty_text_does_not_give_nan():
    model = backbone(config())
    output = model.encode_pair(IMAGES, IDS, torch.tensor([[False] * 7, [True] * 7]))
    assert output.text.isfinite().all()
    assert all(stage.isfinite().all() for stage in output.stages)


def test_base_preset_has_the_published_size():
    """Spec coarse.md 1.7, except for parts of the published encoders that are omitted here."""
    with torch.device("meta"):
        model = FiberBackbone(preset("base"))
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("image", model.image),
            ("text", model.text),
            ("fusion", model.fusion),
        )
    }
    to_text = sum(p.numel() for pair in model.fusion for p in pair.image_to_text.parameters())
    to_image = counts["fusion"] - to_text
    # Published 99,486,078 with its last LayerNorm (2 x 1024), which is the heads' here.
    assert counts["image"] + to_text == 99_486_078 - 2 * 1024
    assert to_text == 12_607_494
    # Published 138,042,636 with the unused pooler, six unused norms and six unused gates; its t2i
    # part, 13,397,004, holds those norms and all twelve gates.
    pooler, norms, gates = 768 * 768 + 768, 6 * 2 * 768, 6
    assert counts["text"] + to_image == 138_042_636 - pooler - norms - gates
    assert to_image == 13_397_004 - norms - gates


def test_v2_has_no_query_norms():
    with torch.device("meta"):
        v2 = FiberBackbone(preset("base").fine(version="v2"))
        v3 = FiberBackbone(preset("base").fine(version="v3"))
    counts = [sum(p.numel() for p in model.parameters()) for model in (v2, v3)]
    assert counts[1] - counts[0] == 8192


def test_every_parameter_gets_a_gradient():
    """With a head on both outputs, every parameter except the last text norm gets a gradient."""
    model = backbone(dataclasses.replace(config()))
    output = model.encode_pair(IMAGES, IDS, MASK)
    (output.text.sum() + output.stages[-1].sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == ["text.layers.2.output_norm.weight", "text.layers.2.output_norm.bias"]
