"""Beam search for captions, with and without cached keys and values.

Command: python benches/bench_caption.py
Peer: the same search on a decoder that reads the whole text again for every token and beam, like
the published code (`uncached_decoder.py`). Both write captions of the maximum length: weights are
random, and </s> and <pad> are made unlikely, so that no beam ends. The image tower, which both
share, is excluded.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from rows import interleave, refuse_debug_build, report
from uncached_decoder import UncachedDecoder

from fiber.config import ImageTextConfig, preset
from fiber.models.encoders.roberta import PAD_ID
from fiber.models.fiber.beam_search import END_ID, CaptionDecoder, search_beams
from fiber.models.fiber.image_text import FiberImageText


def build(name: str, max_tokens: int) -> FiberImageText:
    """Make a model of a preset's sizes that never ends a caption."""
    config = dataclasses.replace(
        preset(name), image_text=ImageTextConfig(heads=("caption",)), max_tokens=max_tokens
    )
    torch.manual_seed(0)
    model = FiberImageText(config).eval()
    model.language_head.decoder.bias.data[[END_ID, PAD_ID]] = -1e4
    return model


@torch.no_grad()
def main() -> None:
    """Check that both searches find the same captions, then measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="small")
    # The batch size of `Model.caption`.
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    refuse_debug_build()
    model = build(options.preset, options.max_tokens)
    side = model.config.image_size
    images = torch.randn(options.pictures, 3, side, side)
    tokens = model.backbone.encode_image(images).stages[-1]
    found = []

    def milliseconds(decoder: Callable[..., Any]) -> float:
        began = time.perf_counter()
        found.append(search_beams(decoder(model, tokens), options.beams, options.max_tokens))
        return 1000 * (time.perf_counter() - began)

    sides = {
        "cached": lambda: milliseconds(CaptionDecoder),
        "uncached": lambda: milliseconds(UncachedDecoder),
    }
    values = interleave(sides, options.rounds)
    for captions in found:
        assert torch.equal(captions.token_ids, found[0].token_ids), "the searches differ"
    assert found[0].token_ids.shape[1] == options.max_tokens - 1
    named = f"{options.preset}, {options.pictures} pictures, {options.beams} beams"
    report(
        "caption",
        "ms",
        {f"{name}, {named}": found for name, found in values.items()},
        peer=f"uncached, {named}",
    )


if __name__ == "__main__":
    main()
