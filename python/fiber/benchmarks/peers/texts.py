"""Tokenizer peers, which encode texts as padded int64 ids, with offsets if supported."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from .task import MAX_TOKENS, PAD_ID, Epoch, PeerTask

#: Encodes a batch of texts as padded ids, a mask and possibly other arrays.
Encode = Callable[[list[str]], Any]


def open_peer(task: PeerTask) -> Epoch:
    """Open the tokenizer given by the task's variant.

    The work is "captions" (ids), "offsets" (ids and offsets) or "prompt" (one long text and the
    positive map of its boxes).
    """
    # Read by the Rust libraries when they start their thread pools.
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if task.threads > 1 else "false"
    makers = {"tokenizers": _tokenizers, "transformers": _transformers, "gigatoken": _gigatoken}
    return batches_of_texts(task, makers[task.variant](task))


def batches_of_texts(task: PeerTask, encode: Encode) -> Epoch:
    """Return a function that encodes all texts in batches once per epoch."""
    starts = range(0, len(task.texts), task.batch_size)
    batches = [list(task.texts[start : start + task.batch_size]) for start in starts]
    return lambda number: map(encode, batches)


def _tokenizers(task: PeerTask) -> Encode:
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(task.tokenizer)
    if task.work == "prompt":
        return lambda texts: [
            _positive_map(tokenizer.encode(text), task.char_spans[0]) for text in texts
        ]
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS, pad_id=PAD_ID, pad_token="<pad>")
    with_offsets = task.work == "offsets"

    def encode(texts: list[str]) -> tuple[Any, ...]:
        found = (tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast)(texts)
        ids = np.array([one.ids for one in found], np.int64)
        mask = np.array([one.attention_mask for one in found], bool)
        if not with_offsets:
            return ids, mask
        return ids, mask, np.array([one.offsets for one in found], np.int64)

    return encode


def _positive_map(encoding: Any, char_spans: Sequence[Sequence[int]]) -> Any:
    """Mark the tokens of each phrase, from its first to its last character, as in GLIP."""
    import numpy as np

    marked = np.zeros((len(char_spans), 256), np.float32)
    for row, (start, end) in zip(marked, char_spans, strict=True):
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        row[first : last + 1] = 1
    return marked / (marked.sum(-1, keepdims=True) + 1e-6)


def _transformers(task: PeerTask) -> Encode:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=task.tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )

    settings = {"padding": "max_length", "truncation": True, "max_length": MAX_TOKENS}
    settings |= {"return_tensors": "pt", "return_offsets_mapping": task.work == "offsets"}
    return lambda texts: tuple(tokenizer(texts, **settings).values())


def _gigatoken(task: PeerTask) -> Encode:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(task.tokenizer)

    return lambda texts: tokenizer.encode_batch_padded(
        texts,
        PAD_ID,
        MAX_TOKENS,
        pad_to_max_length=True,
        truncate=True,
        # gigatoken does not add <s> and </s> itself.
        prefix=[0],
        suffix=[2],
        # Waking up threads costs more than encoding a batch of captions.
        parallel=False,
    )
