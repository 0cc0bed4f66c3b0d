"""Masking for MLM other than the loader's, which selects single tokens, each with a probability.

`WholeWords` masks all tokens of a word, so that no part of it can be guessed from the rest.
`PaddedPositions` masks as METER's published code does, whose whole-word masking selects single
tokens of a byte-level BPE, since it detects word pieces by BERT's `##` prefix.
Dimensions: B texts, L tokens.
"""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fiber import _core
from fiber._core import Tokenizer
from fiber.data.batch import ImageTextBatch
from fiber.data.rng import Rng

# Random number stream for positions.
_POSITIONS = 251


class WholeWords:
    """Mask whole words of a batch, each selected with the given probability.

    Implemented in `rust/tokenizer/masking.rs`.

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


class PaddedPositions:
    """Mask a fixed number of positions per text, of which only those of words count.

    `round(probability * max_tokens)` positions of the text padded to `max_tokens` are drawn without
    replacement, and those of special tokens and padding are dropped. So short texts often have no
    masked token: with 8 of 50 positions, the number of masked tokens of a text of w word tokens is
    hypergeometric with mean 8 w / 50.

    Args:
        tokenizer: tokenizer of the batches.
        probability: in [0, 1].
        max_tokens: length of padded texts.
        seed: seed in [0, 2 ** 64).

    Raises:
        ValueError: if `probability` or `seed` is out of range, or the tokenizer has no mask token.

    Source: METER's published code, with DataCollatorForWholeWordMask of transformers 4.6.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, probability: float, max_tokens: int, seed: int
    ) -> None:
        if tokenizer.mask_id is None:
            raise ValueError("the tokenizer has no mask token; expected one that has")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; expected 0 <= probability <= 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 <= seed < 2 ** 64")
        self.count = round(probability * max_tokens)
        self.max_tokens, self.seed = max_tokens, seed
        self._vocab_size = tokenizer.vocab_size
        self._mask_id = tokenizer.mask_id
        self._special = np.array(tokenizer.special_ids)

    def mask(self, batch: ImageTextBatch) -> ImageTextBatch:
        """Return a batch of the loader with new masked ids and labels.

        A selected token becomes <mask> (80%) or a random token of the vocabulary (10%), or stays
        unchanged (10%). Special tokens are never selected. Masking depends only on the seed and on
        (epoch, record index) of the sample.

        Raises:
            ValueError: if the batch has no `samples`, or texts longer than `max_tokens`.
        """
        if len(batch.samples) != len(batch):
            raise ValueError(
                f"the batch has {len(batch.samples)} samples for {len(batch)} texts; expected a"
                " batch of DataLoader"
            )
        ids = batch.token_ids.numpy(force=True)
        if ids.shape[1] > self.max_tokens:
            raise ValueError(
                f"texts have {ids.shape[1]} tokens; expected at most {self.max_tokens}"
            )
        masked, labels = ids.copy(), np.full_like(ids, -100)
        is_word = batch.text_mask.numpy(force=True) & ~np.isin(ids, self._special)
        for row, (epoch, index) in enumerate(batch.samples):
            rng = Rng.of_record(self.seed, _POSITIONS, epoch, index)
            for position in islice(rng.permuted(self.max_tokens), self.count):
                # Every position uses the same random numbers, dropped or not.
                kind, other = rng.random(), rng.integer(self._vocab_size)
                if position < ids.shape[1] and is_word[row, position]:
                    labels[row, position] = ids[row, position]
                    if kind < 0.8:
                        masked[row, position] = self._mask_id
                    elif kind < 0.9:
                        masked[row, position] = other
        device = batch.token_ids.device
        return dataclasses.replace(
            batch,
            masked_ids=torch.from_numpy(masked).to(device),
            mlm_labels=torch.from_numpy(labels).to(device),
        )


def _to_array(token_ids: Tensor) -> np.ndarray:
    return np.ascontiguousarray(token_ids.numpy(force=True))


def _to_tensor(buffer: _core.Buffer, like: Tensor) -> Tensor:
    """Copy a buffer to the device of a tensor."""
    return torch.from_numpy(np.asarray(buffer)).to(like.device)
