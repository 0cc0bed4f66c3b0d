"""From pairs of pictures and texts to the outputs of a coarse head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fiber.models.image_text import FiberImageText
from fiber.predict.inputs import Inputs

#: Pairs that go through the fused layers at once.
PAIRS_AT_ONCE = 32


def score_pairs(
    network: FiberImageText,
    inputs: Inputs,
    pictures: Sequence[Any],
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    head: Callable[[Tensor], Tensor],
) -> Tensor:
    """Run a head on pairs; a picture's and a text's part below the fusion is computed once.

    Args:
        network: in evaluation mode.
        inputs: of the same model.
        pictures: n of whatever `load_image` takes.
        texts: m of them.
        pairs: (picture, text) by number.
        head: from pooled pairs (B, 2 D) to (B, K).

    Returns:
        (pairs, K) float32 on the CPU.
    """
    backbone = network.backbone
    if not pairs:
        return head(torch.zeros(0, 2 * network.config.roberta.width, device=inputs.device)).cpu()
    pairs_of: dict[int, list[int]] = {}
    for number, (picture, _) in enumerate(pairs):
        pairs_of.setdefault(picture, []).append(number)
    words = inputs.texts(texts)
    chunks = zip(
        words.token_ids.split(PAIRS_AT_ONCE), words.text_mask.split(PAIRS_AT_ONCE), strict=True
    )
    text_prefix = torch.cat([backbone.text_prefix(ids, mask) for ids, mask in chunks])
    results = [torch.empty(0)] * len(pairs)
    for batch in inputs.images(pictures):
        image_prefix = backbone.image_prefix(batch.images)
        todo = [(row, n) for row, index in enumerate(batch.indices) for n in pairs_of[index]]
        for start in range(0, len(todo), PAIRS_AT_ONCE):
            rows, numbers = zip(*todo[start : start + PAIRS_AT_ONCE], strict=True)
            columns = [pairs[number][1] for number in numbers]
            output = backbone.fuse(
                image_prefix.take(torch.tensor(rows, device=inputs.device)),
                text_prefix[columns],
                words.text_mask[columns],
            )
            found = head(network.pooled(output)).float().cpu()
            for number, result in zip(numbers, found, strict=True):
                results[number] = result
    return torch.stack(results)
