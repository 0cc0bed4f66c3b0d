"""BERT text encoder: RoBERTa's layers with other embeddings.

Source: BERT (Devlin et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiber.data import Tokenizer
from fiber.models.encoders.bert_config import TOKEN_TYPES, BertConfig
from fiber.models.encoders.roberta import TextEncoder
from fiber.ops.dropout import SampleDropout

#: Id of [PAD].
PAD_ID = 0


class BertEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings with LayerNorm and dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=PAD_ID)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.token_type = nn.Embedding(TOKEN_TYPES, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = SampleDropout(config.dropout)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embed token ids, whose positions count from 0: (B, L) -> (B, L, D)."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        token_type = self.token_type(token_ids.new_zeros(1))
        embedded = self.word(token_ids) + token_type + self.position(positions)
        return self.dropout(self.norm(embedded))


class BertEncoder(TextEncoder):
    """BERT text encoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, BertEmbeddings(config))


def check_bert_tokenizer(tokenizer: Tokenizer) -> None:
    """Check that a tokenizer, of any kind, has the special tokens that BERT relies on.

    These are [PAD] with id 0, one token before each text, whose features are pooled, at least one
    after it, and a mask token.

    Raises:
        ValueError: if it has others; the message gives the first difference.
    """
    wrong = None
    if tokenizer.pad_id != PAD_ID:
        wrong = f"the padding id is {tokenizer.pad_id}; expected {PAD_ID} ([PAD])"
    elif len(tokenizer.start_ids) != 1 or not tokenizer.end_ids:
        wrong = (
            f"texts start with ids {tokenizer.start_ids} and end with {tokenizer.end_ids}; expected"
            " one token ([CLS]) before them and [SEP] after them"
        )
    elif tokenizer.mask_id is None:
        wrong = "there is no mask token ([MASK])"
    if wrong is not None:
        raise ValueError(
            f"the text encoder BERT expects a tokenizer with BERT's special tokens: {wrong}. Pass"
            " the folder of a BERT tokenizer (--tokenizer DIR); those that fiber trains are"
            " RoBERTa's kind"
        )
