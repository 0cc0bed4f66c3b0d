"""Scoring pairs from precomputed parts: same scores, lower cost."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fiber.config import preset
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.pair_scoring import TextFeatureStore, match_log_odds, run_pairs
from tests.models.encoders.test_roberta import texts
from tests.models.fiber.test_image_text import IMAGES, build

IDS, MASK = texts(7, 4, 1, 6, 7)
PAIRS = [(1, 0), (0, 2), (0, 0), (1, 4), (1, 2), (0, 3), (1, 1)]


def stored(model: FiberImageText) -> TextFeatureStore:
    """The texts above, added in two calls."""
    found = TextFeatureStore()
    for part in (slice(0, 2), slice(2, 5)):
        ids, mask = IDS[part], MASK[part]
        found.add(model.backbone.text_prefix(ids, mask), mask)
    return found


@pytest.mark.parametrize("pairs_at_once", [1, 3, 64])
def test_scores_match_full_passes(pairs_at_once):
    model = build("itm").double()
    with torch.no_grad():
        found = run_pairs(
            model,
            model.backbone.image_prefix(IMAGES.double()),
            stored(model),
            PAIRS,
            model.itm_logits,
            pairs_at_once=pairs_at_once,
        )
        rows, numbers = map(torch.tensor, zip(*PAIRS, strict=True))
        output = model.backbone.encode_pair(IMAGES[rows].double(), IDS[numbers], MASK[numbers])
        expected = model.itm_logits(model.pooled(output))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected.float(), rtol=1e-6, atol=1e-6)


def test_empty_pairs():
    model = build("itm")
    prefix = model.backbone.image_prefix(IMAGES)
    found = run_pairs(model, prefix, TextFeatureStore(), [], match_log_odds(model), pairs_at_once=4)
    assert found.shape == (0,)


def test_texts_are_stored_without_padding():
    # In float64, where summation order changes values of 1 by 1e-15.
    model = build("itm").double()
    texts_ = stored(model)
    assert len(texts_) == 5
    assert [texts_.length(number) for number in range(5)] == [7, 4, 1, 6, 7]
    prefix, mask = texts_.take([2, 1, 2], torch.zeros(1))
    assert mask.tolist() == [[True] + [False] * 3, [True] * 4, [True] + [False] * 3]
    whole = model.backbone.text_prefix(IDS, MASK)
    assert torch.allclose(prefix[mask], whole[[2, 1, 2], :4][mask], rtol=0, atol=1e-12)
    assert (prefix[~mask] == 0).all()


def test_log_odds_match_the_matching_probability():
    model = build("itm")
    pooled = torch.randn(5, 64, generator=torch.manual_seed(0))
    probability = model.itm_logits(pooled).softmax(1)[:, 1]
    assert torch.allclose(match_log_odds(model)(pooled).sigmoid(), probability, atol=1e-6)


def base_flops(max_tokens: int) -> dict[str, int]:
    """FLOPs for one pair with the published model, in total and by part."""
    with torch.device("meta"), torch.no_grad():
        model = FiberImageText(preset("base")).eval()
        images = torch.empty(1, 3, 384, 384)
        ids = torch.empty(1, max_tokens, dtype=torch.int64)
        mask = torch.empty(1, max_tokens, dtype=torch.bool)
        image_prefix = model.backbone.image_prefix(images)
        text_prefix = model.backbone.text_prefix(ids, mask)

        def count(run) -> int:
            with FlopCounterMode(display=False) as counter:
                run()
            return counter.get_total_flops()

        return {
            "whole": count(lambda: model.backbone.encode_pair(images, ids, mask)),
            "image prefix": count(lambda: model.backbone.image_prefix(images)),
            "text prefix": count(lambda: model.backbone.text_prefix(ids, mask)),
            "fused": count(lambda: model.backbone.fuse(image_prefix, text_prefix, mask)),
        }


@pytest.mark.parametrize(("max_tokens", "ratio"), [(40, 3.0), (50, 3.0)])
def test_reusing_parts_costs_a_third_for_base(max_tokens, ratio):
    flops = base_flops(max_tokens)
    assert flops["whole"] == sum(flops.values()) - flops["whole"]
    assert flops["whole"] / flops["fused"] == pytest.approx(ratio, abs=0.05)


if __name__ == "__main__":
    for tokens in (13, 40, 50):
        flops = base_flops(tokens)
        print(tokens, {name: f"{value / 1e9:.2f} G" for name, value in flops.items()})
        print(f"  whole / fused: {flops['whole'] / flops['fused']:.3f}")
