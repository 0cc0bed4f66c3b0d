"""Configuration of BERT, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiber.config import RobertaConfig

#: Number of token types, which tells BERT's weights from RoBERTa's, with one. A text alone has type
#: 0; type 1 is that of a second text.
TOKEN_TYPES = 2


@dataclass(frozen=True, kw_only=True)
class BertConfig(RobertaConfig):
    """Hyperparameters of the text encoder BERT, which has RoBERTa's layers.

    The defaults are those of bert-base-uncased.
    """

    section: ClassVar[str] = "bert."

    #: Vocabulary size; id 0 is [PAD].
    vocab_size: int = 30522
    #: Number of rows of the position embedding; the first token has position 0.
    max_positions: int = 512
    #: Epsilon of every LayerNorm.
    layer_norm_eps: float = 1e-12

    @property
    def max_tokens(self) -> int:
        """Maximum text length in tokens, including [CLS] and [SEP]."""
        return self.max_positions
