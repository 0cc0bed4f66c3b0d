"""Scoring many pairs of pictures and texts: each one's part below the fusion is computed once.

Where the parts are kept is what decides the memory. A picture's is large (1.2 MB in float32 for
`base` at 384 pixels), so it is used for all of the picture's pairs and then dropped. A text's is
small without its padding (40 KB for 13 tokens), so all of them are kept, on the CPU. The pairs go
through the fused layers some at a time, so that memory grows with pictures and with texts, and not
with their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fiber.models.fiber.backbone import ImagePrefix
from fiber.models.fiber.image_text import FiberImageText


class TextFeatureStore:
    """What the text tower computes of texts below the first fused layer; kept on the CPU."""

    def __init__(self) -> None:
        self._texts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, prefix: Tensor, text_mask: Tensor) -> None:
        """Add texts behind the others.

        Args:
            prefix: (B, L, D) of the backbone's `text_prefix`.
            text_mask: (B, L) bool, True = real token; real tokens come first.
        """
        # One block without padding, of which each text is a view.
        self._texts += prefix[text_mask].cpu().split(text_mask.sum(1).tolist())

    def length(self, number: int) -> int:
        """Real tokens of a text."""
        return len(self._texts[number])

    def take(self, numbers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Give texts by number: (n, L, D) padded to the longest of them, and (n, L) bool mask."""
        lengths = torch.tensor([self.length(number) for number in numbers])
        prefix = pad_sequence([self._texts[number] for number in numbers], batch_first=True)
        mask = torch.arange(prefix.shape[1]) < lengths[:, None]
        return prefix.to(device), mask.to(device)


def run_pairs(
    model: FiberImageText,
    images: ImagePrefix,
    texts: TextFeatureStore,
    pairs: Sequence[tuple[int, int]],
    head: Callable[[Tensor], Tensor],
    *,
    pairs_at_once: int,
) -> Tensor:
    """Run a head on pairs.

    Args:
        model: with the parts that pool a pair.
        images: of pictures that are at hand.
        texts: of all texts.
        pairs: n of (row of `images`, number of a text).
        head: from pooled pairs (B, 2 D) to (B, ...).
        pairs_at_once: that go through the fused layers together.

    Returns:
        (n, ...) float32 on the CPU, in the order of the pairs.
    """
    device = images.tokens.device
    if not pairs:
        return head(torch.zeros(0, 2 * model.config.roberta.width, device=device)).float().cpu()
    # Texts of like length go together, and are hardly padded.
    order = sorted(range(len(pairs)), key=lambda number: texts.length(pairs[number][1]))
    found = []
    for start in range(0, len(order), pairs_at_once):
        chosen = [pairs[number] for number in order[start : start + pairs_at_once]]
        rows = torch.tensor([row for row, _ in chosen], device=device)
        text, mask = texts.take([number for _, number in chosen], device)
        fused = model.backbone.fuse(images.take(rows), text, mask, wanted="pooled")
        found.append(head(model.pooled(fused)).float().cpu())
    joined = torch.cat(found)
    results = torch.empty_like(joined)
    results[torch.tensor(order)] = joined
    return results


def match_log_odds(model: FiberImageText) -> Callable[[Tensor], Tensor]:
    """Give the head that says how much likelier a pair belongs together than not: (B, 2 D) -> (B,).

    It orders pairs as their matching probability does, without that number's rounding to 1, and
    runs in float32 at least, so that few pairs tie. (The published code orders by the logit of
    "match" alone.)
    """

    def head(pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            logits = model.itm_logits(pooled.to(next(model.itm_head.parameters()).dtype))
        return logits[:, 1] - logits[:, 0]

    return head
