"""Choose how `caption` writes: by beam search or by sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fiber.messages import shown
from fiber.models.caption_abilities import WritesCaptions
from fiber.models.fiber.beam_search import CAPTION_BEAMS, beam_search

if TYPE_CHECKING:
    from torch import Tensor


def caption_writer(
    model: WritesCaptions, num_beams: int | None, max_tokens: int, *, sample: bool, seed: int
) -> Callable[[Tensor], Tensor]:
    """Return a function that maps (B, H, W, C) image tokens to (B, n) int64 ids without <s>.

    Takes the same arguments and raises the same exceptions as `Model.caption`.
    """
    for name, value, kind in (("sample", sample, bool), ("seed", seed, int)):
        if type(value) is not kind:
            raise TypeError(f"caption: {name} must be {kind.__name__}, got {shown(value)}")
    for name, value in (("num_beams", num_beams), ("max_tokens", max_tokens)):
        if value is not None and not hasattr(value, "__index__"):
            raise TypeError(f"caption: {name} must be an integer, such as 3, got {shown(value)}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"caption: seed must be between 0 and 2**63 - 1, got {seed}")
    if not sample:
        beams = CAPTION_BEAMS if num_beams is None else num_beams
        return lambda tokens: (
            beam_search(model, tokens, num_beams=beams, max_tokens=max_tokens).token_ids
        )
    if num_beams is not None:
        raise ValueError(
            f"caption: num_beams={num_beams} cannot be combined with sample=True; pass one of them"
        )

    # Sampling is what torch's generators do, so exported graphs have no part in it.
    import torch

    from fiber.models.fiber.captioner import sample_captions

    def draw(tokens: Tensor) -> Tensor:
        generators = [torch.Generator(tokens.device).manual_seed(seed) for _ in tokens]
        found = sample_captions(model, tokens, max_tokens=max_tokens, generator=generators)
        return found.token_ids[:, 0]

    return draw
