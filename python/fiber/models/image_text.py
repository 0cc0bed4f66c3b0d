"""Heads on (image, text) pairs that all families of image-text models share.

Shapes:
    images: (B, 3, H, W).
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fiber.models.architecture import Network
from fiber.models.features import BackboneOutput, ImagePrefix

#: LayerNorm epsilon of the language head, from the RoBERTa config of the published code; all other
#: LayerNorms use 1e-5.
LANGUAGE_HEAD_EPS = 1e-12


class Pooler(nn.Module):
    """Linear layer followed by tanh, applied to one vector per sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Apply a linear layer and tanh: (B, D) -> (B, D)."""
        return torch.tanh(self.linear(vectors))


class LanguageHead(nn.Module):
    """Vocabulary head for MLM and captioning. Its weights are not tied to the word embeddings."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(width, eps=LANGUAGE_HEAD_EPS)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, text: Tensor) -> Tensor:
        """Compute logits: (..., D) -> (..., vocabulary)."""
        return self.decoder(self.norm(self.activation(self.transform(text))))


class Classifier(nn.Module):
    """Classifier MLP: linear, LayerNorm, GELU, linear."""

    def __init__(self, width_in: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width_in, width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.activation = nn.GELU()
        self.output = nn.Linear(width, num_classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute logits: (B, width_in) -> (B, num_classes)."""
        return self.output(self.activation(self.norm(self.hidden(vectors))))


class ImageTextModel(Network):
    """Base class: a backbone, and heads on its pooled pairs and on its text features.

    A family sets `config` and `backbone`, builds the heads of its config under the names below, and
    defines `pooled`. Methods that need a missing head raise AttributeError.
    """

    itm_head: nn.Module
    rank_head: nn.Module
    vqa_head: nn.Module
    nlvr2_head: nn.Module
    language_head: nn.Module
    #: Name of the tensor that `init_answer_priors` sets.
    answer_bias = "vqa_head.output.bias"

    def init_answer_priors(self, priors: Tensor) -> None:
        """Initialize the VQA head so that each answer starts with its frequency in the data.

        Otherwise the first part of a short run only learns that most answers are rare.

        Args:
            priors: (answers,) mean target of each answer, in [0, 1].
        """
        with torch.no_grad():
            cast(Classifier, self.vqa_head).output.bias.copy_(
                torch.logit(priors.clamp(1e-4, 1 - 1e-4))
            )

    @property
    def pooled_width(self) -> int:
        """Number of channels of a pooled pair."""
        raise NotImplementedError

    def pooled(self, output: BackboneOutput) -> Tensor:
        """Pool the output of the backbone's `encode_pair`: (B, 2 D), text features first."""
        raise NotImplementedError

    def scoring_head(self, head: str) -> nn.Module:
        """Return the last layers of a head, "itm" or "rank"."""
        return getattr(self, f"{head}_head")

    def language_input(self, text: Tensor) -> Tensor:
        """Project text features to the input of the language head: (..., D) -> (..., D)."""
        return text

    def itm_logits(self, pooled: Tensor) -> Tensor:
        """Compute ITM logits: (B, 2 D) -> (B, 2); column 1 = match."""
        return self.itm_head(pooled)

    @property
    def scores_are_log_odds(self) -> bool:
        """True if the sigmoid of `ranking_scores` is the probability of a match."""
        return True

    def ranking_scores(self, pooled: Tensor) -> Tensor:
        """Score pairs for retrieval: (B, 2 D) -> (B,).

        The log odds of a match rank like ITM's probability, but do not saturate at 1. FIBER's
        published code ranks by the "match" logit alone.
        """
        logits = self.itm_logits(pooled)
        return logits[:, 1] - logits[:, 0]

    def mlm_logits(self, text: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute vocabulary logits: (B, L, D) -> (B, L, vocabulary).

        If `positions` is given, returns (n, vocabulary) for the n selected tokens. `positions` is a
        (B, L) bool mask or (n,) int64 indices into the B * L tokens.
        """
        if positions is not None:
            chosen = (
                positions.flatten().nonzero()[:, 0] if positions.dtype == torch.bool else positions
            )
            text = text.flatten(0, 1).index_select(0, chosen)
        return self.language_head(self.language_input(text))

    def vqa_logits(self, pooled: Tensor) -> Tensor:
        """Compute VQA logits: (B, 2 D) -> (B, answers)."""
        return self.vqa_head(pooled)

    def nlvr2_logits(self, pooled_left: Tensor, pooled_right: Tensor) -> Tensor:
        """Compute NLVR2 logits from two pooled pairs: (B, 2 D) each -> (B, 2); column 1 = true."""
        return self.nlvr2_head(torch.cat((pooled_left, pooled_right), -1))

    def statement_logits(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute NLVR2 logits: (B, 2, 3, H, W) images, left first -> (B, 2); column 1 = true."""
        # (B, 2, 3, H, W) -> (2B, 3, H, W), all left images before all right ones
        images = images.transpose(0, 1).flatten(0, 1)
        text = self.backbone.text_prefix(token_ids, text_mask)
        fused = self.backbone.fuse(
            self.image_prefix(images, torch.arange(len(images), device=images.device) >= len(text)),
            torch.cat([text, text]),
            text_mask.repeat(2, 1),
            wanted="pooled",
        )
        left, right = self.pooled(fused).chunk(2)
        return self.nlvr2_logits(left, right)

    def image_prefix(self, images: Tensor, is_right: Tensor | None = None) -> ImagePrefix:
        """Run the backbone's `image_prefix`.

        `is_right` is (B,) bool, True for right images of NLVR2, which some families mark.
        """
        return self.backbone.image_prefix(images)
