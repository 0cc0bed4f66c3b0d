"""Whole-word masking for MLM with a byte-level BPE, implemented in `rust/tokenizer/masking.rs`.

The loader masks single tokens, as in the published code, so part of a word can be guessed from the
rest. Here all tokens of a word are masked. The published code's whole-word masking does not work
with a byte-level BPE, since it detects word pieces by BERT's `##` prefix.
Dimensions: B texts, L tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from fiber import _core
from fiber._core import Tokenizer
from fiber.data.batch import ImageTextBatch


class WholeWords:
    """Mask whole words of a batch, each selected with the given probability.

    Raises:
        ValueError: if `probability` is not in [0, 1], `seed` is not in [0, 2 ** 64), or
            `Tokenizer.check_for_models` rejects the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *, probability: float, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 <= seed < 2 ** 64")
        self._masking = _core.WholeWordMasking(tokenizer, probability=probability, seed=seed)

    def word_numbers(self, token_ids: Tensor) -> Tensor:
        """Assign a word index to each token of (B, L) int64 token ids.

        Returns:
            (B, L) int64. Tokens of the same word share an index; special tokens have index -1.
            Indices start at 0 and may have gaps.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        return _to_tensor(self._masking.word_numbers(_to_array(token_ids)), token_ids)

    def mask(self, batch: ImageTextBatch, *, first_sample: int) -> ImageTextBatch:
        """Return the batch with new masked ids and labels.

        Each token of a selected word becomes <mask> (80%) or a random token (10%), or stays
        unchanged (10%). Special tokens are never selected. Masking is determined by the seed and
        `first_sample`, the index of the first text in the run.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        ids = batch.token_ids
        masked, labels = self._masking.mask(_to_array(ids), first_sample=first_sample)
        return dataclasses.replace(
            batch, masked_ids=_to_tensor(masked, ids), mlm_labels=_to_tensor(labels, ids)
        )


def _to_array(token_ids: Tensor) -> np.ndarray:
    return np.ascontiguousarray(token_ids.numpy(force=True))


def _to_tensor(buffer: _core.Buffer, like: Tensor) -> Tensor:
    """Copy a buffer to the device of a tensor."""
    return torch.from_numpy(np.asarray(buffer)).to(like.device)
