"""Masking whole words for the masked-word loss, with a byte-level BPE.

The loader picks tokens one by one, as published. A picked half of a word is then guessed from its
other half; here a word is picked with all of its tokens. The published code cannot: it tells parts
of a word by BERT's `##`, which a byte-level BPE has not. There a word begins at a token with a
space in front, and where letters, digits and marks meet.

Letters: B texts, L tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiber._core import Tokenizer
from fiber.data.batch import ImageTextBatch
from fiber.data.rng import Rng

#: Label of a token that was not picked.
IGNORED = -100
#: Parts of the picked tokens that become <mask>, and any token; the rest stays as it is.
MASKED, REPLACED = 0.8, 0.1
#: What the draws are for, among all draws of a seed.
_STREAM = 9

# Kinds of bytes; a word is a run of one of the last three.
_SPACE, _LETTER, _DIGIT, _MARK = range(4)


class WholeWords:
    """Picks words of token ids, and draws what the model sees instead of them."""

    def __init__(self, tokenizer: Tokenizer, *, probability: float, seed: int) -> None:
        """Read the vocabulary.

        Args:
            tokenizer: a byte-level BPE that models can read (`Tokenizer.check_for_models`).
            probability: of a word to be picked.
            seed: of the draws.

        Raises:
            ValueError: if `probability` is not in [0, 1], or the tokenizer of another kind.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; expected 0 to 1")
        tokenizer.check_for_models()
        self.probability, self.seed = probability, seed
        self.mask_id = tokenizer.vocab_size - 1
        first, last, special = _kinds_of_tokens(tokenizer)
        self._first, self._last = torch.from_numpy(first), torch.from_numpy(last)
        self._special = torch.from_numpy(special)

    def word_numbers(self, token_ids: Tensor) -> Tensor:
        """Number the words of each text.

        Args:
            token_ids: (B, L) int64.

        Returns:
            (B, L) int64: tokens with equal numbers are one word, -1 at special tokens. Words are
            numbered from 0 on, but not without gaps.
        """
        first, last, special = (t[token_ids] for t in (self._first, self._last, self._special))
        goes_on = torch.zeros_like(special)
        goes_on[:, 1:] = (first[:, 1:] == last[:, :-1]) & (first[:, 1:] != _SPACE)
        goes_on[:, 1:] &= ~special[:, 1:] & ~special[:, :-1]
        return ((~goes_on).cumsum(1) - 1).masked_fill(special, -1)

    def mask(self, batch: ImageTextBatch, *, first_sample: int) -> ImageTextBatch:
        """Pick words and mask them: 80 % of their tokens <mask>, 10 % any token, 10 % unchanged.

        As in BERT's whole-word masking the word is picked, and each of its tokens then drawn for
        itself. A text of special tokens alone has no word to be picked.

        Args:
            batch: whose masked ids and labels are made anew.
            first_sample: number of the batch's first text in the run; draws depend on it.
        """
        numbers = self.word_numbers(batch.token_ids).tolist()
        masked, labels = batch.token_ids.clone(), torch.full_like(batch.token_ids, IGNORED)
        for row, words in enumerate(numbers):
            rng = Rng(self.seed, _STREAM, first_sample + row)
            picked = {word: rng.bernoulli(self.probability) for word in sorted({*words} - {-1})}
            for place, word in enumerate(words):
                if picked.get(word):
                    labels[row, place] = batch.token_ids[row, place]
                    masked[row, place] = self._seen(int(batch.token_ids[row, place]), rng)
        return dataclasses.replace(batch, masked_ids=masked, mlm_labels=labels)

    def _seen(self, token_id: int, rng: Rng) -> int:
        kind = rng.random()
        if kind < MASKED:
            return self.mask_id
        return rng.integer(self.mask_id) if kind < MASKED + REPLACED else token_id


def _kinds_of_tokens(
    tokenizer: Tokenizer,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Kind of each token's first and last byte, and whether it is special: (V,) each."""
    content = json.loads(tokenizer.to_json())
    special = np.zeros(tokenizer.vocab_size, dtype=bool)
    special[[token["id"] for token in content["added_tokens"]]] = True
    first = np.full(tokenizer.vocab_size, _SPACE, dtype=np.int64)
    last = first.copy()
    kinds = _kinds_of_characters()
    for token, token_id in content["model"]["vocab"].items():
        if not special[token_id]:
            first[token_id], last[token_id] = kinds[token[0]], kinds[token[-1]]
    return first, last, special


def _kinds_of_characters() -> dict[str, int]:
    """Kind of the byte behind each character of a byte-level vocabulary.

    Bytes that can be printed stand for themselves, the others for the characters from 256 on.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printed]
    characters = {byte: chr(byte) for byte in printed}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return {character: _kind(byte) for byte, character in characters.items()}


def _kind(byte: int) -> int:
    # Parts of letters beyond ASCII, and the apostrophe inside a word, are letters.
    if byte >= 128 or bytes([byte]).isalpha() or byte == ord("'"):
        return _LETTER
    if bytes([byte]).isdigit():
        return _DIGIT
    return _SPACE if byte <= 32 else _MARK
