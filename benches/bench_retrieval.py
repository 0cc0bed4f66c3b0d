"""Score every image with every text, with reused features.

Command: python benches/bench_retrieval.py
Peer: `eager_fiber.py`, a full forward pass of both towers per pair, one image with 64 texts at a
time, as the published code evaluates retrieval. fiber runs each image and each text once up to the
first fused block, and only the blocks above it per pair (`models/pair_scoring.py`). Texts
have the maximum length; fiber skips padding, so shorter texts would cost it less.
Also counted: forward FLOPs of an additional pair of preset base.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from bench_model import OURS, without_dropout
from eager_fiber import EagerFiber
from rows import interleave, refuse_debug_build, report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fiber.config import FiberConfig
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.pair_scoring import TextFeatureStore, run_pairs

PEER = "eager, whole passes"
#: Pairs per forward pass of the fused blocks, as published.
TEXTS_AT_ONCE = 64


def kept(model: FiberImageText, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Match all images with all texts: (P, T, 2) logits."""
    texts, found = TextFeatureStore(), []
    for start in range(0, len(ids), TEXTS_AT_ONCE):
        block = slice(start, start + TEXTS_AT_ONCE)
        texts.add(model.backbone.text_prefix(ids[block], mask[block]), mask[block])
    for image in images.split(1):
        pairs = [(0, number) for number in range(len(ids))]
        prefix = model.backbone.image_prefix(image)
        found.append(
            run_pairs(model, prefix, texts, pairs, model.itm_logits, pairs_at_once=TEXTS_AT_ONCE)
        )
    return torch.stack(found)


def whole(
    fuse: Callable[[Tensor, Tensor, Tensor], Tensor], images: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """The same by whole passes; `fuse` gives the logits of pairs."""
    found = []
    for image in images.split(1):
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            block = slice(start, start + TEXTS_AT_ONCE)
            shown = image.expand(len(ids[block]), -1, -1, -1)
            found.append(fuse(shown, ids[block], mask[block]))
    return torch.cat(found).view(len(images), len(ids), 2)


def draw(config: FiberConfig, pictures: int, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images, ids and masks."""
    random = torch.Generator().manual_seed(0)
    shape = (texts, config.max_tokens)
    return (
        torch.randn(pictures, 3, config.image_size, config.image_size, generator=random),
        torch.randint(5, config.roberta.vocab_size - 1, shape, generator=random),
        torch.ones(shape, dtype=torch.bool),
    )


def pair_gflops() -> dict[str, float]:
    """Count GFLOP that one more pair of preset base costs."""
    config = without_dropout("base")
    images, ids, mask = draw(config, 1, 1)
    with torch.device("meta"):
        model, eager = FiberImageText(config).eval(), EagerFiber(config).eval()
    images, ids, mask = images.to("meta"), ids.to("meta"), mask.to("meta")
    prefixes = model.backbone.image_prefix(images), model.backbone.text_prefix(ids, mask)

    def count(run: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e9

    return {
        PEER: count(lambda: eager.itm_logits(eager.fuse(images, ids, mask).pooled)),
        OURS: count(
            lambda: model.itm_logits(
                model.pooled(model.backbone.fuse(*prefixes, mask, wanted="pooled"))
            )
        ),
    }


@torch.no_grad()
def main() -> None:
    """Check that keeping changes no score, then measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--texts", type=int, default=128)
    options = parser.parse_args()
    refuse_debug_build()
    config = without_dropout(options.preset)
    torch.manual_seed(0)
    model, eager = FiberImageText(config).eval(), EagerFiber(config).eval()
    drawn = draw(config, options.pictures, options.texts)

    def ours(images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return model.itm_logits(model.pooled(model.backbone.encode_pair(images, ids, mask)))

    difference = (kept(model, *drawn) - whole(ours, *drawn)).abs().max()
    assert difference < 1e-5, f"keeping changes a score by {difference}"

    def milliseconds(run: Callable[[], Tensor]) -> float:
        began = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - began)

    sides = {
        PEER: lambda: milliseconds(
            lambda: whole(lambda *pair: eager.itm_logits(eager.fuse(*pair).pooled), *drawn)
        ),
        OURS: lambda: milliseconds(lambda: kept(model, *drawn)),
    }
    named = f"{options.preset}, {options.pictures} pictures, {options.texts} texts"
    values = interleave(sides, options.rounds)
    report(
        "retrieval",
        "ms",
        {f"{name}, {named}": found for name, found in values.items()},
        peer=f"{PEER}, {named}",
    )
    counts = {name: [count] * 2 for name, count in pair_gflops().items()}
    report("retrieval_flops_base", "GFLOP", counts, peer=PEER)


if __name__ == "__main__":
    main()
