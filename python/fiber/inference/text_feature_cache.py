"""LRU cache of text features computed before the fused layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fiber.inference.inputs import Inputs
from fiber.models.abilities import FindsBoxes

#: Maximum number of cached tokens (100 MB for the base model).
MAX_KEPT_TOKENS = 32_768


class TextPrefixBatch(NamedTuple):
    """Prompts as inputs to the fused layers."""

    #: (B, L, D) output of the backbone's `text_prefix`.
    prefix: Tensor
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: Half-open character spans of each prompt's tokens; (0, 0) for <s> and </s>.
    offsets: list[list[tuple[int, int]]]


class TextPrefixes:
    """LRU cache of prompt features. It is cleared when the text encoder's weights change."""

    def __init__(self, network: FindsBoxes, inputs: Inputs) -> None:
        self._backbone, self._inputs = network.backbone, inputs
        self._kept: OrderedDict[str, tuple[Tensor, list[tuple[int, int]]]] = OrderedDict()
        self._tokens = 0
        self._weights = self._fingerprint()

    def batch(self, texts: Sequence[str]) -> TextPrefixBatch:
        """Return features padded to the longest prompt. For errors, see `Inputs.texts`."""
        if self._weights != self._fingerprint():
            self._kept.clear()
            self._tokens, self._weights = 0, self._fingerprint()
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            self._add(new)
        rows, offsets = [], []
        for text in texts:
            self._kept.move_to_end(text)
            row, spans = self._kept[text]
            rows.append(row)
            offsets.append(spans)
        prefix = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=prefix.device)
        mask = torch.arange(prefix.shape[1], device=prefix.device) < lengths[:, None]
        while self._tokens > MAX_KEPT_TOKENS:
            _, (row, _) = self._kept.popitem(last=False)
            self._tokens -= len(row)
        return TextPrefixBatch(prefix, mask, offsets)

    def _add(self, texts: Sequence[str]) -> None:
        # Truncation was already reported when the prompts were built.
        batch = self._inputs.texts(texts, warn_truncated=False)
        prefix = self._backbone.text_prefix(batch.token_ids, batch.text_mask)
        lengths = batch.text_mask.sum(1).tolist()
        for text, row, length, offsets in zip(texts, prefix, lengths, batch.offsets, strict=True):
            self._kept[text] = row[:length].clone(), offsets
            self._tokens += length

    def _fingerprint(self) -> tuple[int, torch.device, torch.dtype]:
        """Return the version counter, device and dtype of the text encoder's weights."""
        parameters = list(self._backbone.text.parameters())
        # Inference tensors have no version counter.
        version = sum(each._version for each in parameters if not each.is_inference())
        return version, parameters[0].device, parameters[0].dtype
