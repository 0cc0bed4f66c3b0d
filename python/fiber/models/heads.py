"""Heads of the coarse model: small modules from features to vectors or raw logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Epsilon of the LayerNorm of the language head, as in RoBERTa's configuration of the published
#: code; every other LayerNorm uses 1e-5.
LANGUAGE_HEAD_EPS = 1e-12


class Pooler(nn.Module):
    """A linear layer and tanh on one vector a sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, D) in (-1, 1)."""
        return torch.tanh(self.linear(vectors))


class LanguageHead(nn.Module):
    """Vocabulary logits of masked words and of captions; the decoder is not tied to the words."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(width, eps=LANGUAGE_HEAD_EPS)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, text: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)."""
        return self.decoder(self.norm(self.activation(self.transform(text))))


class Classifier(nn.Module):
    """Two linear layers around a LayerNorm and GELU."""

    def __init__(self, width_in: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width_in, width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.activation = nn.GELU()
        self.output = nn.Linear(width, num_classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, width_in) -> (B, classes)."""
        return self.output(self.activation(self.norm(self.hidden(vectors))))


def initialise_head(module: nn.Module) -> None:
    """Draw a head's linear weights from N(0, 0.02), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
